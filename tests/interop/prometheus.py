"""Prometheus' own tools read what the admin door says: promtool judges it, a server scrapes it."""

import json
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time
import unittest
import urllib.parse
import urllib.request

from dingtalk.crypto import DingTalkCrypto

import daemon

WAIT_S = 30


def tool(name):
    path = shutil.which(name)
    assert path, f"{name} is missing; the Debian package prometheus has it"
    return path


class Prometheus(unittest.TestCase):
    # Whatever proxy the machine is set up with: the server is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    @classmethod
    def setUpClass(cls):
        receiver = cls.enterClassContext(daemon.Receiver())
        cls.dingd = cls.enterClassContext(
            daemon.Daemon(
                f'[[upstreams]]\nname = "platform"\nurl = "{receiver.url}"\n'
                'secret = "whsec_aW50ZXJvcCB3ZWJob29rIGtleSAwMTIzNDU2Nzg5"\n'
            )
        )
        cls.make_traffic()
        receiver.wait_for(2)

    @classmethod
    def make_traffic(cls):
        """A bit of everything, so that most metrics have samples."""
        crypto = DingTalkCrypto(daemon.CALLBACK_TOKEN, daemon.AES_KEY, daemon.CLIENT_ID)
        for kind in ("check_url", "interop_one", "interop_two"):
            sealed = crypto.encrypt_message(json.dumps({"EventType": kind}))
            for _ in range(2):
                cls.dingd.callback(sealed)
        sealed["msg_signature"] = "0" * 40
        cls.dingd.callback(sealed)
        token = {"Authorization": f"Bearer {daemon.API_TOKEN}", "Content-Type": "application/json"}
        message = {"to": {"chat": "cidAb+cd/Ef=="}, "content": {"text": {"content": "值班"}}}
        # Good, malformed, without a token, elsewhere.
        for target, body, headers in (
            ("/v1/messages", json.dumps(message), token),
            ("/v1/messages", "{", token),
            ("/v1/messages", json.dumps(message), {}),
            ("/nowhere", "", token),
        ):
            cls.dingd.request("api", "POST", target, body, headers)

    def scrape(self):
        status, headers, body = self.dingd.request("admin", "GET", "/metrics")
        self.assertEqual(status, 200)
        self.assertTrue(headers["content-type"].startswith("text/plain; version=0.0.4"), headers)
        return body

    def test_promtool_accepts_the_metrics_and_has_nothing_to_remark(self):
        body = self.scrape()
        for name in ("callbacks", "admissions", "http_requests", "delivery_attempts"):
            self.assertIn(f"dingd_{name}_total".encode(), body)
        run = subprocess.run(
            [tool("promtool"), "check", "metrics"], input=body, capture_output=True, timeout=WAIT_S
        )
        said = (run.stdout + run.stderr).decode()
        # The names of process_* are Prometheus' own convention, not ours to choose.
        remarks = [line for line in said.splitlines() if line and not line.startswith("process_")]
        self.assertEqual(remarks, [])

    def test_every_metric_is_described_and_every_name_of_ours_has_the_prefix(self):
        text = self.scrape().decode()
        samples = [line for line in text.splitlines() if line and not line.startswith("#")]
        described = {line.split(" ")[2] for line in text.splitlines() if line.startswith("# HELP ")}
        for sample in samples:
            name = sample.split("{")[0].split(" ")[0]
            with self.subTest(name):
                self.assertTrue(name.startswith(("dingd_", "process_")))
                family = {name, *(name.removesuffix(s) for s in ("_bucket", "_sum", "_count"))}
                self.assertTrue(family & described)

    def test_a_prometheus_server_scrapes_the_admin_door(self):
        with tempfile.TemporaryDirectory(prefix="dingd-prometheus-") as directory:
            self.run_server(pathlib.Path(directory))

    def run_server(self, directory):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            # Prometheus does not say which port it was given, so it is told a free one.
            port = probe.getsockname()[1]
        config = directory / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 1s}\n"
            "scrape_configs:\n"
            "  - job_name: dingd\n"
            f"    static_configs: [{{targets: ['{self.dingd.doors['admin']}']}}]\n"
        )
        log_path = directory / "log"
        with log_path.open("wb") as log:
            server = subprocess.Popen(
                [
                    tool("prometheus"),
                    f"--config.file={config}",
                    f"--storage.tsdb.path={directory / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stderr=log,
            )
        try:
            build = self.ask(port, "dingd_build_info")
            self.assertRegex(build["metric"]["version"], r"^\d+\.\d+\.\d+$")
            self.assertEqual(build["value"][1], "1")
            self.assertEqual(self.ask(port, 'up{job="dingd"}')["value"][1], "1")
            accepted = self.ask(port, 'dingd_callbacks_total{result="accepted",reason="stored"}')
            self.assertEqual(accepted["value"][1], "2")
            self.assertEqual(self.ask(port, "dingd_store_conservation_mismatch")["value"][1], "0")
        except AssertionError:
            print(log_path.read_text(errors="replace"))
            raise
        finally:
            server.terminate()
            server.wait(WAIT_S)

    def ask(self, port, query):
        """The one sample that `query` finds, as soon as there is one."""
        url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        deadline = time.monotonic() + WAIT_S
        found = None
        while time.monotonic() < deadline:
            try:
                with self.opener.open(url, timeout=5) as answer:
                    found = json.load(answer)["data"]["result"]
            except OSError as error:
                found = error
            else:
                if len(found) == 1:
                    return found[0]
            time.sleep(0.2)
        raise AssertionError(f"{query}: {found}")


if __name__ == "__main__":
    unittest.main(verbosity=2)
