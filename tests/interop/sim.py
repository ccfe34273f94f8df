"""The simulated DingTalk as a child process, steered over its control door."""

import http.client
import json
import re
import signal
import subprocess
import threading
import time

import daemon

CLIENT_ID = "dingboxapp0001"
CLIENT_SECRET = "box-client-secret-not-a-real-one"
CHAT = "cidBox+on/Call7x5EeiodoA=="
USER = "manager0001"
WAIT_S = 10


class Sim:
    """`with Sim() as sim:` runs `dingd sim` on free ports, with its time so many times faster."""

    def __init__(self, scale=1):
        free = "127.0.0.1:0"
        self.process = subprocess.Popen(
            [daemon.BINARY, "sim", "--listen", free, "--platform", free, "--control", free]
            + ["--scale", str(scale)],
            stdout=subprocess.PIPE,
            text=True,
        )
        line = self.process.stdout.readline()
        found = re.search(r"DingTalk is at http://(\S+), its controls at http://(\S+):", line)
        assert found, line
        self.address, self._control = found.groups()
        # The rest is help; nobody reads it, and a full pipe would stop the process.
        self._reader = threading.Thread(target=self.process.stdout.read)
        self._reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(daemon.STOP_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._reader.join()
            self.process.stdout.close()

    def request(self, host, method, path, body=None, headers=None):
        """(status, parsed body) of one request."""
        connection = http.client.HTTPConnection(host, timeout=daemon.START_S)
        try:
            body = None if body is None else json.dumps(body)
            connection.request(
                method, path, body, {"Content-Type": "application/json", **(headers or {})}
            )
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def records(self, kind):
        """What happened, of one kind."""
        status, body = self.request(self._control, "GET", f"/{kind}")
        assert status == 200, body
        return body

    def do(self, what, **members):
        """Asks the box to do something, and returns what came of it."""
        status, body = self.request(self._control, "POST", f"/{what}", members)
        assert status == 200, body
        return body

    def token(self):
        """An access token."""
        app = {"appKey": CLIENT_ID, "appSecret": CLIENT_SECRET}
        status, body = self.request(self.address, "POST", "/v1.0/oauth2/accessToken", app)
        assert status == 200, body
        return body["accessToken"]

    def call(self, method, path, body):
        """A call of the app with a token."""
        headers = {"x-acs-dingtalk-access-token": self.token()}
        status, answer = self.request(self.address, method, path, body, headers)
        assert status == 200, answer
        return answer


def until(condition, what):
    """Waits until a condition holds."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} within {WAIT_S} s"
        time.sleep(0.02)
