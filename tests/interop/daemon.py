"""Both ends of the daemon under test: the real binary as a child process, and an HTTP receiver."""

import http.client
import http.server
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import threading
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("DINGD", ROOT / "target/debug/dingd")).resolve()

APP = "oncall"
CORP_ID = "dingcorp0001"
CLIENT_ID = "dingabc123"
CALLBACK_TOKEN = "interop-callback-token"
# The last of the 43 characters carries bits beyond the 256 of the key, as DingTalk's own keys do.
AES_KEY = "0123456789abcdefghijABCDEFGHIJ0123456789abd"
API_TOKEN = "interop-api-token-0123456789"

START_S = 20
# Longer than the daemon's own deadline for its drain.
STOP_S = 40

# Nothing listens behind egress: what leaves is refused at once, and no test needs a network.
CONFIG = f"""
state_dir = "{{state_dir}}"
[callbacks]
listen = "127.0.0.1:0"
tls = false
[api]
listen = "127.0.0.1:0"
[[api.clients]]
name = "platform"
token = "{API_TOKEN}"
[admin]
listen = "127.0.0.1:0"
[egress]
api_url = "http://127.0.0.1:9"
oapi_url = "http://127.0.0.1:9"
[[apps]]
name = "{APP}"
corp_id = "{CORP_ID}"
client_id = "{CLIENT_ID}"
client_secret = "interop-client-secret"
[apps.callback]
token = "{CALLBACK_TOKEN}"
aes_key = "{AES_KEY}"
"""


class Daemon:
    """`with Daemon(…) as dingd:` runs it; leaving the block asks it to stop and checks its books."""

    def __init__(self, more_config=""):
        self._directory = tempfile.TemporaryDirectory(prefix="dingd-interop-")
        self.directory = pathlib.Path(self._directory.name)
        self.state_dir = self.directory / "state"
        config = self.directory / "config.toml"
        config.write_text(CONFIG.format(state_dir=self.state_dir) + more_config)
        self._log_path = self.directory / "log"
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen([BINARY, "run", "--config", config], stderr=log)
        self.doors = {}

    def __enter__(self):
        try:
            self._wait_until_ready()
        except BaseException:
            self.process.kill()
            self.process.wait()
            self._directory.cleanup()
            raise
        return self

    def __exit__(self, kind, error, trace):
        try:
            # Read before the stop; a failure in the block is the more interesting one.
            status = self.status() if kind is None else None
            self.process.send_signal(signal.SIGTERM)
            code = self.process.wait(STOP_S)
            if kind is None:
                assert status["conservation_mismatch"] == 0, status
                assert code == 0, f"exit code {code} after SIGTERM\n{self.log()}"
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            if kind is not None:
                print(self.log())
            self._directory.cleanup()

    def _wait_until_ready(self):
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                status = self.status()
            except RuntimeError:
                time.sleep(0.05)
                continue
            if status["ready"]:
                self.doors = status["doors"]
                return
        raise AssertionError(f"dingd was not ready\n{self.log()}")

    def log(self):
        """What the daemon wrote so far."""
        return self._log_path.read_text(errors="replace")

    def command(self, *words):
        """The answer of `dingd <words> --json`, asked through the admin socket."""
        socket = self.state_dir / "admin.sock"
        run = subprocess.run(
            [BINARY, *words, "--socket", socket, "--json"], capture_output=True, timeout=START_S
        )
        if run.returncode != 0:
            raise RuntimeError(run.stderr.decode(errors="replace"))
        return json.loads(run.stdout)

    def status(self):
        """`dingd status`."""
        return self.command("status")

    def request(self, door, method, target, body=None, headers=None):
        """(status, headers, body) of one request to one of the doors."""
        connection = http.client.HTTPConnection(self.doors[door], timeout=START_S)
        try:
            connection.request(method, target, body, headers or {})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def callback(self, sealed):
        """Posts what the SDK's `encrypt_message` returned, as DingTalk does."""
        query = urllib.parse.urlencode(
            {
                "signature": sealed["msg_signature"],
                "timestamp": sealed["timeStamp"],
                "nonce": sealed["nonce"],
            }
        )
        return self.request(
            "callbacks",
            "POST",
            f"/callback/{APP}/events?{query}",
            json.dumps({"encrypt": sealed["encrypt"]}),
            {"Content-Type": "application/json"},
        )


class Receiver:
    """An HTTP server that keeps every request; the platform's side of an upstream."""

    def __init__(self, answers=()):
        self.requests = []
        self._answers = list(answers)
        self._arrived = threading.Condition()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(receiver._take(self.path, dict(self.headers.items()), body))
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/dingtalk/events"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _take(self, path, headers, body):
        with self._arrived:
            self.requests.append((path, headers, body))
            self._arrived.notify_all()
            return self._answers.pop(0) if self._answers else 204

    def wait_for(self, count):
        """The first `count` requests, as soon as they have come."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: len(self.requests) >= count, START_S):
                raise AssertionError(f"{len(self.requests)} requests came instead of {count}")
            return self.requests[:count]
