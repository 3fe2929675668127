"""What the tests of `graft serve` share: a server on a free port with adapters of the tiny base, and ways to ask it."""
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/oracle/golden"
BASE = GOLDEN / "bases/llama.gguf"
GRAFT = os.environ.get("GRAFT_BIN")
TIMEOUT = 120
# Neither the settings nor the registry of whoever runs the tests.
os.environ.update(GRAFT_CONFIG="/dev/null", GRAFT_REGISTRY="/nonexistent/registry.db")
os.environ.pop("GRAFT_API_KEY", None)

# One to which the base and each of the adapters below give another answer.
PROMPT = "What?"
# Name in the registry: adapter of the golden set.
ADAPTERS = {"alder": "plain", "birch": "rslora", "cedar": "rank16"}


def wait_until(condition, what, seconds=60):
    """Waits, without a bound that a busy machine could miss by chance."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body
        self.text = body.decode()

    @property
    def json(self):
        return json.loads(self.text)

    @property
    def events(self):
        """The data of each event of a stream; the last must be [DONE]."""
        assert self.headers["Content-Type"] == "text/event-stream", self.headers
        blocks = self.text.split("\n\n")
        assert blocks.pop() == "", self.text[-200:]
        assert all(re.fullmatch(r"data: [^\n]+", b) for b in blocks), blocks
        return [b[len("data: "):] for b in blocks]


class Server:
    def __init__(self, *args, folder=None, adapters=ADAPTERS, env=None, base=BASE, wait=True):
        self.own = None if folder else tempfile.TemporaryDirectory()
        self.folder = Path(folder or self.own.name)
        self.adapters = self.folder / "adapters"
        if not self.adapters.exists():
            self.adapters.mkdir()
            for name, golden in adapters.items():
                shutil.copytree(GOLDEN / "adapters/llama" / golden, self.adapters / name)
        self.port_file = self.folder / "port"
        self.port_file.unlink(missing_ok=True)
        self.log_path = self.folder / "log"
        command = [GRAFT, "serve", "-m", base, "-t", "1", "--port", "0", "--port-file", self.port_file, "--registry",
                   self.folder / "registry.db", "--adapters", self.adapters, *args]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env={**os.environ, **(env or {})})
        if wait:
            wait_until(lambda: self.port_file.exists() and self.port_file.read_text().endswith("\n") or self.process.poll() is not None,
                       "the server's start")
            assert self.process.poll() is None, self.log()
            self.port = int(self.port_file.read_text())

    def log(self):
        return self.log_path.read_text()

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(TIMEOUT)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()

    def close(self):
        self.stop()
        if self.own:
            self.own.cleanup()

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)

    def ask(self, method, path, body=None, headers=None, connection=None):
        own = None if connection else self.connect()
        connection = connection or own
        headers = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        connection.request(method, path, body, headers)
        reply = connection.getresponse()
        reply = Reply(reply.status, reply.headers, reply.read())
        if own:
            own.close()
        return reply

    def get(self, path, **more):
        return self.ask("GET", path, **more)

    def post(self, path, body, **more):
        return self.ask("POST", path, body, **more)

    def socket(self, receive=None):
        s = socket.socket()
        if receive:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        s.settimeout(TIMEOUT)
        s.connect(("127.0.0.1", self.port))
        return s

    def raw(self, data, close_after=True):
        """Sends bytes and returns all that comes until the server closes."""
        with self.socket() as s:
            s.sendall(data)
            return read_all(s)

    def metrics(self):
        found = {}
        for line in self.get("/metrics").text.splitlines():
            if not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                found[name] = float(value)
        return found

    def metric(self, name):
        return self.metrics()["graft_" + name]


def read_all(s):
    seen = b""
    while True:
        try:
            piece = s.recv(65536)
        except ConnectionResetError:
            return seen
        if not piece:
            return seen
        seen += piece


def request_bytes(body, path="/v1/completions", extra=""):
    text = json.dumps(body).encode()
    return (f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{extra}"
            f"Content-Length: {len(text)}\r\n\r\n").encode() + text


class Case(unittest.TestCase):
    """One server for all tests of a class."""
    args = []
    env = {}

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.args, env=cls.env)

    @classmethod
    def tearDownClass(cls):
        status = cls.server.stop()
        log = cls.server.log()
        cls.server.close()
        assert status == 0, log
        assert "Sanitizer" not in log, log

    def good(self, method, path, body=None, **more):
        reply = self.server.ask(method, path, body, **more)
        self.assertEqual(reply.status, 200, reply.text)
        return reply

    def complete(self, **body):
        body = {"model": "alder", "prompt": PROMPT, "max_tokens": 8, "temperature": 0, **body}
        return self.good("POST", "/v1/completions", body).json

    def chat(self, **body):
        body = {"model": "alder", "messages": [{"role": "user", "content": "abc"}], "max_tokens": 8, "temperature": 0, **body}
        return self.good("POST", "/v1/chat/completions", body).json

    def bad(self, status, code, method, path, body=None, param=None, **more):
        """An error of OpenAI's shape. Returns the reply."""
        reply = self.server.ask(method, path, body, **more)
        self.assertEqual(reply.status, status, reply.text)
        error = reply.json["error"]
        self.assertEqual(list(error), ["message", "type", "param", "code"])
        self.assertEqual((error["code"], error["param"]), (code, param), reply.text)
        self.assertTrue(error["message"])
        return reply

    def settled(self):
        """No request is under way."""
        wait_until(lambda: self.server.metric("answers_running") == 0, "the end of all answers")


class RoomCase(unittest.TestCase):
    """A server with room for one adapter, which is alder's for good: who wants another waits."""

    def start(self, *args):
        server = Server("--max-adapters", 1, "--adapter-wait-ms", 100000, *args)
        self.addCleanup(server.close)
        for call in ["load", "pin"]:
            self.assertEqual(server.post(f"/v1/lora_adapters/alder/{call}", {}).status, 200)
        return server

    def waiting(self, server, calls):
        """Sends POSTs, each a path and a body, that wait; their connections."""
        connections = []
        for path, body in calls:
            connections.append(server.connect())
            self.addCleanup(connections[-1].close)
            connections[-1].request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        wait_until(lambda: server.metric("http_requests_open") == len(calls) + 1, "them to have come in")
        return connections

    def leave(self, server, connections):
        """The clients go; what they asked for, birch, comes all the same once there is room."""
        for c in connections:
            c.close()
        wait_until(lambda: server.metric("http_requests_open") == 1, "their ends")
        server.post("/v1/lora_adapters/alder/unpin", {})
        wait_until(lambda: server.get("/v1/lora_adapters").json["data"][1]["memory"] == "resident", "what they had asked for")

    def end(self, calls, check):
        """The server's end by one signal and its time, or by two: each that waits gets an answer, which check looks at."""
        for signals in [1, 2]:
            server = self.start("--drain-s", 1 if signals == 1 else 1000)
            connections = self.waiting(server, calls)
            for _ in range(signals):
                server.process.send_signal(signal.SIGTERM)
                time.sleep(0.2)
            for c in connections:
                check(c.getresponse())
            self.assertEqual(server.process.wait(TIMEOUT), 0, server.log())


def run_answer(prompt, adapter=None, n=8, base=BASE, chat=False):
    """What `graft run` answers."""
    args = [GRAFT, "run", "-m", base, "-t", "1", "--json", "-n", n, "-p", prompt]
    args += ["-a", f"x={GOLDEN}/adapters/llama/{ADAPTERS[adapter]}"] if adapter else []
    args += ["--chat"] if chat else []
    done = subprocess.run([str(a) for a in args], capture_output=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def in_threads(calls):
    """Runs all at once; their results in order. The first exception is raised."""
    results = [None] * len(calls)

    def run(i):
        try:
            results[i] = calls[i]()
        except BaseException as e:  # handed on below
            results[i] = e

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for r in results:
        if isinstance(r, BaseException):
            raise r
    return results
