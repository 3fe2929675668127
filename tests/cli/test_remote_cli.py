#!/usr/bin/env python3
"""Tests of the commands that ask a server by its address (ps, load, unload, pin, unpin, switch, chat, key) and of graft doctor.

GRAFT_BIN names the binary (required). The servers are a real `graft serve` with adapters of the tiny base, and a small one of our own that
says what no graft would. Python's standard library only.
"""
import contextlib
import itertools
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

import command

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "server"))
import serving  # noqa: E402

GRAFT = serving.GRAFT
TIMEOUT = 120
CHANGES = ["load", "unload", "pin", "unpin", "switch"]
TLS = Path(__file__).resolve().parents[1] / "server/tls"
KEY = "a key of the tests 0123456789"


def closed_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Fake:
    """A server that answers each connection's one request with what `reply(request)` returns: bytes, or a generator of bytes."""
    def __init__(self, reply):
        self.reply, self.requests, self.gone = reply, [], threading.Event()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection):
        with connection:
            data = b""
            while b"\r\n\r\n" not in data:
                piece = connection.recv(65536)
                if not piece:
                    return
                data += piece
            head, body = data.split(b"\r\n\r\n", 1)
            found = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
            while found and len(body) < int(found[1]):
                body += connection.recv(65536)
            request = {"line": head.split(b"\r\n")[0].decode(), "head": head.decode(), "body": json.loads(body) if body else None}
            self.requests.append(request)
            reply = self.reply(request)
            try:
                for piece in [reply] if isinstance(reply, bytes) else reply:
                    connection.sendall(piece)
            except OSError:
                self.gone.set()

    def close(self):
        self.socket.close()


def http(body, status="200 OK", type="application/json", more=""):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\nContent-Type: {type}\r\nContent-Length: {len(body)}\r\n{more}Connection: close\r\n\r\n".encode() + body


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def event(value):
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def said(text):
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})


def ending(adapter="alder", fallback=None):
    return (event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "adapter": adapter, "fallback": fallback,
                   "timings": {"predicted_per_second": 12.5}}) +
            event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 5}}}) +
            event(b"[DONE]"))


class Terminal:
    """graft at a terminal that is its own."""
    def __init__(self, *args, env):
        self.seen = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                os.execve(GRAFT, [GRAFT, *map(str, args)], {**env, "TERM": "xterm"})
            finally:
                os._exit(99)

    def read(self, seconds):
        if not select.select([self.fd], [], [], seconds)[0]:
            return False
        try:
            piece = os.read(self.fd, 65536)
        except OSError:
            return False
        self.seen += piece.decode(errors="replace")
        return bool(piece)

    def expect(self, pattern, seconds=60):
        """All that came up to and with the pattern, which is then taken away."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            if not self.read(max(0, end - time.monotonic())):
                raise AssertionError(f"no {pattern!r} in {self.seen!r}")
        text, self.seen = self.seen[:found.end()], self.seen[found.end():]
        return text

    def send(self, text):
        os.write(self.fd, text.encode())

    def wait(self):
        while self.read(TIMEOUT):
            pass
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def close(self):
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("GRAFT_", "XDG_", "LC_"))}
        self.env.update(HOME=str(self.folder / "home"), GRAFT_CONFIG="/dev/null", GRAFT_SERVER=f"http://127.0.0.1:{closed_port()}")

    def graft(self, *args, input="", **env):
        return subprocess.run([GRAFT, *map(str, args)], capture_output=True, encoding="utf-8", timeout=TIMEOUT, input=input,
                              env={**self.env, **env})

    def good(self, *args, **more):
        done = self.graft(*args, **more)
        self.assertEqual((done.returncode, done.stderr), (0, ""), args)
        return done.stdout

    def object(self, *args, **more):
        return json.loads(self.good(*args, "--json", **more))

    def bad(self, status, code, *args, **env):
        return command.refused(self, self.graft, status, code, args, env)

    def fake(self, reply):
        server = Fake(reply if callable(reply) else lambda request: reply)
        self.addCleanup(server.close)
        self.env["GRAFT_SERVER"] = server.url
        return server

    def terminal(self, *args, **env):
        t = Terminal(*args, env={**self.env, **env})
        self.addCleanup(t.close)
        return t


class Served(Case):
    """With a real server."""
    args = []

    @classmethod
    def setUpClass(cls):
        cls.server = serving.Server(*cls.args)

    @classmethod
    def tearDownClass(cls):
        status, log = cls.server.stop(), cls.server.log()
        cls.server.close()
        assert status == 0 and "Sanitizer" not in log, log

    def setUp(self):
        super().setUp()
        self.env["GRAFT_SERVER"] = f"http://127.0.0.1:{self.server.port}"

    def memory(self, name):
        return next(a for a in self.server.get("/v1/lora_adapters").json["data"] if a["id"] == name)


class Usage(Case):
    def test_help(self):
        names = ["ps", *CHANGES, "chat", "doctor", "key add", "key list", "key remove"]
        for name in names:
            text = self.good(*name.split(), "--help")
            self.assertTrue(text.startswith(f"usage: graft {name}"), text)
            for part in ["options:", "examples:", "exit codes:", "--json", "--server", "--ca-file", "--api-key-file"]:
                self.assertIn(part, text, name)
            self.assertRegex(self.good("--help"), rf"(?m)^  {name.split()[0]} ")

    def test_wrong_usage(self):
        for args in [["ps", "x"], *[[c] for c in CHANGES], *[[c, "a", "b"] for c in CHANGES], ["load", ""], ["chat", "a", "b"],
                     ["doctor", "x"], ["key"], ["key", "frob"], ["key", "add"], ["key", "list", "x"], ["key", "remove"], ["ps", "--frob"]]:
            self.bad(2, "bad_request", *args)

    def test_addresses_that_cannot_be(self):
        for url in ["localhost:8080", "ftp://localhost", "file:///etc/passwd", "http://", "http://user:word@localhost", "http://localhost/?a=b",
                    "http://local host", "x"]:
            with self.subTest(url):
                self.assertIn("server", self.bad(2, "bad_setting", "ps", "--server", url))

    def test_nothing_listens(self):
        for args in [["ps"], *[[c, "alder"] for c in CHANGES], ["key", "list"], ["key", "add", "x"], ["key", "remove", "x"]]:
            message = self.bad(1, "unreachable", *args)
            self.assertIn(self.env["GRAFT_SERVER"], message)
            self.assertIn("graft serve", message)
        done = self.graft("chat", input="hello\n")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertRegex(done.stderr, r"\Agraft: error: unreachable: .+\n\Z")

    def test_where_the_settings_say_that_serve_listens(self):
        port = closed_port()
        del self.env["GRAFT_SERVER"]
        self.assertIn(f"http://127.0.0.1:{port}:", self.bad(1, "unreachable", "ps", GRAFT_PORT=str(port), GRAFT_HOST="0.0.0.0"))
        self.assertIn(f"http://[::1]:{port}:", self.bad(1, "unreachable", "ps", GRAFT_PORT=str(port), GRAFT_HOST="::"))


class Ps(Served):
    def test_ps_and_what_changes_it(self):
        self.assertIn("no adapter is in memory\n3 more are registered", self.good("ps"))
        self.assertEqual(self.good("load", "alder"), "loaded alder\n")
        self.assertEqual(self.memory("alder")["memory"], "resident")
        bytes_held = self.memory("alder")["bytes"]
        text = self.good("ps")
        self.assertRegex(text, r"(?m)^model    llama, context \d+, 8 slots, adapters by rows; graft 0\.1\.0")
        self.assertRegex(text, r"(?m)^memory   .+ of 4\.00 GiB; base .+, caches .+, adapters .+ \(1 of at most 8\)")
        self.assertRegex(text, r"(?m)^slots    0 of 8 busy")
        self.assertRegex(text, r"(?m)^alder +resident +16\.76 KiB +0  -  +0  -$")
        self.assertIn("2 more are registered", text)
        self.assertEqual(self.good("pin", "alder"), "pinned alder\n")
        self.assertTrue(self.memory("alder")["pinned"])
        self.assertRegex(self.good("ps", "--all"), r"(?m)^alder .*pinned")
        self.assertRegex(self.good("ps", "--all"), r"(?m)^birch +registered +- ")
        self.assertEqual(self.good("unpin", "alder"), "unpinned alder\n")
        self.assertFalse(self.memory("alder")["pinned"])
        self.assertEqual(self.good("load", "alder", "--reload"), "loaded alder\n")
        self.assertEqual(self.object("unload", "alder/default"),
                         {"adapter": "alder/default", "done": "unloaded", "freed_bytes": bytes_held, "pending_bytes": 0})
        self.assertEqual(self.memory("alder")["memory"], "absent")


class Changes(Served):
    def test_freed(self):
        self.good("load", "cedar")
        self.assertRegex(self.good("unload", "cedar"), r"\Aunloaded cedar, [\d.]+ KiB freed\n\Z")

    def test_switch(self):
        self.assertEqual(self.good("switch", "birch"), "switched to birch\n")
        self.assertEqual(self.server.get("/v1/projects/current").json["project"], "birch")
        self.assertRegex(self.good("ps"), r"(?m)^current  birch$")
        self.assertEqual(self.object("chat", "-n", 2, input="abc\n")["adapter"], "birch")

    def test_json(self):
        shown = self.object("ps")
        self.assertEqual(list(shown), ["status", "adapters"])
        self.assertEqual(shown["status"]["model"]["id"], "llama")
        self.assertEqual([a["id"] for a in self.object("ps", "--all")["adapters"]], ["alder", "birch", "cedar"])

    def test_names_that_are_not_there(self):
        for name in CHANGES:
            for text in ["nobody", "alder/nothing", "no such/../name", "%2e%2e", "ä", "a" * 300]:
                with self.subTest((name, text)):
                    done = self.graft(name, text)
                    self.assertEqual((done.returncode, done.stdout), (1, ""))
                    self.assertRegex(done.stderr, r"\Agraft: error: (not_found|bad_name|bad_request|invalid_value): .+\n\Z")
        self.bad(1, "not_found", "load", "nobody")

    def test_chat(self):
        done = self.graft("chat", "alder", "-n", 8, "--temp", 0, input="abc\n\n  \nWhat?\n/stats\n/models\n")
        self.assertEqual(done.returncode, 0, done.stderr)
        first = self.server.post("/v1/chat/completions", {"model": "alder", "messages": [{"role": "user", "content": "abc"}], "max_tokens": 8,
                                                          "temperature": 0}).json
        self.assertTrue(done.stdout.startswith(first["choices"][0]["message"]["content"] + "\n"), done.stdout)
        self.assertRegex(done.stderr, r"(?m)^last answer: 8 tokens at [\d.]+ tokens/s, the first after \d+ ms; \d+ tokens of prompt, [1-9]\d* of them")
        self.assertRegex(done.stderr, r"(?m)^this talk: 2 answers, 16 tokens; 4 messages")
        self.assertRegex(done.stderr, r"(?m)^  alder ")

    def test_chat_switches_only_to_what_is_there(self):
        done = self.graft("chat", "alder", "-n", 2, "--json", input="/switch nobody\nabc\n/switch birch\nabc\n/model llama\nabc\n")
        self.assertEqual(done.returncode, 1)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertEqual(lines[0]["error"]["code"], "model_not_found")
        self.assertEqual([a["adapter"] for a in lines[1:]], ["alder", "birch", None])

    def test_a_talk_that_is_too_long(self):
        done = self.graft("chat", "-n", 2, "--json", input="x" * 4000 + "\nabc\n")
        error, answer = map(json.loads, done.stdout.splitlines())
        self.assertEqual(error["error"]["code"], "context_length_exceeded")
        self.assertIn("/reset", error["error"]["message"])
        self.assertEqual(answer["completion_tokens"], 2)  # the long one was not kept
        self.assertEqual(done.returncode, 1)


class Fallback(Served):
    def test_fallback(self):
        shutil.copytree(self.server.adapters / "alder", self.server.adapters / "damaged")
        (self.server.adapters / "damaged" / "adapter_model.safetensors").write_bytes(b"nothing")
        self.server.post("/v1/lora_adapters/scan", {})
        done = self.graft("chat", "damaged", "-n", 2, input="abc\n", GRAFT_LOG_FORMAT="human")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stderr, r"(?m)^graft: .*the base answered instead: header_too_small: ")
        self.assertEqual(self.object("chat", "damaged", "-n", 2, input="abc\n")["fallback"]["code"], "header_too_small")
        self.assertRegex(self.good("ps", "--all"), r"(?m)^damaged +failed .*\n  header_too_small: ")


class Keys(Served):
    @classmethod
    def setUpClass(cls):
        cls.server = serving.Server(env={"GRAFT_API_KEY": KEY})

    def test_a_key_is_needed(self):
        for args in [["ps"], ["load", "alder"]]:
            self.assertIn("GRAFT_API_KEY", self.bad(1, "invalid_api_key", *args))
            self.bad(1, "invalid_api_key", *args, GRAFT_API_KEY="another that is long enough")
        self.good("ps", GRAFT_API_KEY=KEY)
        file = self.folder / "key"
        file.write_text(KEY + "\r\nanother line\n")
        self.good("ps", "--api-key-file", file, GRAFT_API_KEY="another that is long enough")

    def test_keys_that_cannot_be(self):
        self.assertIn("control", self.bad(1, "bad_request", "ps", GRAFT_API_KEY="a\r\nX-Other: b"))
        file = self.folder / "key"
        file.write_bytes(b"k" * 5000)
        self.bad(1, "too_large", "ps", "--api-key-file", file)
        self.bad(1, "not_readable", "ps", "--api-key-file", self.folder / "nowhere")

    def test_chat(self):
        done = self.graft("chat", input="abc\n")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertRegex(done.stderr, r"\Agraft: error: invalid_api_key: ")
        self.assertEqual(self.object("chat", "-n", 2, input="abc\n", GRAFT_API_KEY=KEY)["completion_tokens"], 2)


class Tls(Served):
    args = ["--tls-cert", TLS / "first.crt", "--tls-key", TLS / "first.key"]

    def setUp(self):
        super().setUp()
        self.env["GRAFT_SERVER"] = f"https://localhost:{self.server.port}"

    def test_only_what_is_trusted(self):
        self.assertIn("--ca-file", self.bad(1, "tls_failed", "ps"))
        self.bad(1, "tls_failed", "ps", "--ca-file", TLS / "second.crt")
        self.bad(1, "tls_failed", "ps", "--ca-file", self.folder / "nowhere")
        self.assertIn("model    llama", self.good("ps", "--ca-file", TLS / "first.crt"))
        self.assertIn("model    llama", self.good("ps", GRAFT_CA_FILE=str(TLS / "first.crt"), GRAFT_SERVER=f"https://127.0.0.1:{self.server.port}"))
        self.assertEqual(self.object("chat", "-n", 2, "--ca-file", TLS / "first.crt", input="abc\n")["completion_tokens"], 2)

    def test_where_serve_listens(self):
        del self.env["GRAFT_SERVER"]
        self.good("ps", "--ca-file", TLS / "first.crt", GRAFT_PORT=str(self.server.port), GRAFT_TLS_CERT=str(TLS / "first.crt"))

    def test_without_tls(self):
        self.bad(1, "bad_reply", "ps", "--server", f"http://localhost:{self.server.port}")


class Strange(Case):
    """What only something else than graft would say."""
    def refusal(self, reply, code, *args):
        self.fake(reply)
        return self.bad(1, code, *(args or ["ps"]))

    def test_replies_that_are_none(self):
        plain = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        for what, reply in {
            "nothing": b"",
            "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
            "HTTP 0.9": b"<html>hello</html>",
            "no JSON": http(b"hello"),
            "half": http(b'{"a":'),
            "a list": http([]),
            "no UTF-8": http(b'{"a":"\xff"}'),
            "cut off": plain + b"Content-Length: 100\r\n\r\n{",
            "deep": http(b"[" * 100000),
            "a reason that is none": http({"error": None}, "500 Internal Server Error"),
            "no reason": http(b"<h1>Bad Gateway</h1>", "502 Bad Gateway"),
            "large by its word": plain + b"Content-Length: 99999999999\r\n\r\n",
        }.items():
            with self.subTest(what):
                self.refusal(reply, "bad_reply")

    def test_a_body_that_does_not_end(self):
        def endless(request):
            yield b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
            while True:
                yield b"x" * 65536
        server = self.fake(endless)
        for args in [["load", "alder"], ["ps"]]:
            self.assertIn("larger", self.bad(1, "bad_reply", *args))
            self.assertTrue(server.gone.wait(TIMEOUT))

    def test_headers_that_do_not_end(self):
        def endless(request):
            yield b"HTTP/1.1 200 OK\r\n"
            while True:
                yield b"X-More: " + b"x" * 1000 + b"\r\n"
        server = self.fake(endless)
        self.assertIn("headers", self.bad(1, "bad_reply", "ps"))
        self.assertTrue(server.gone.wait(TIMEOUT))

    def test_elsewhere(self):
        other = Fake(lambda r: http({}))
        self.addCleanup(other.close)
        message = self.refusal(http(b"", "302 Found", more=f"Location: {other.url}/v1/status\r\n"), "bad_reply")
        self.assertIn("302", message)
        self.assertEqual(other.requests, [])

    def test_no_proxy_is_asked(self):
        proxy = Fake(lambda r: http({}))
        self.addCleanup(proxy.close)
        server = self.fake(http({"data": []}))
        self.graft("ps", http_proxy=proxy.url, HTTP_PROXY=proxy.url, all_proxy=proxy.url)
        self.assertEqual((proxy.requests, len(server.requests)), ([], 2))

    def test_the_key_and_the_path(self):
        server = self.fake(http(b"done", type="text/plain", more="X-Graft-Freed-Bytes: 2048\r\nX-Graft-Pending-Bytes: 1024\r\n"))
        self.assertEqual(self.good("unload", "a/b c", GRAFT_API_KEY=KEY), "unloaded a/b c, 2.00 KiB freed, 1.00 KiB more when the answers that use it have ended\n")
        self.assertEqual(server.requests[0]["line"], "POST /v1/lora_adapters/a%2Fb%20c/unload HTTP/1.1")
        self.assertIn(f"\r\nAuthorization: Bearer {KEY}\r\n", server.requests[0]["head"] + "\r\n")
        self.good("load", "a", "--reload", "--server", server.url + "/below/")
        self.assertNotIn("Authorization", server.requests[1]["head"])
        self.assertEqual((server.requests[1]["line"], server.requests[1]["body"]), ("POST /below/v1/lora_adapters/a/load HTTP/1.1", {"reload": True}))

    def test_errors_are_one_clean_line(self):
        self.fake(http({"error": {"message": "a\x1b[31mred\nsecond \u202eline" + "x" * 5000, "code": "Not A Code!\n"}}, "400 Bad Request"))
        done = self.graft("ps")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertRegex(done.stderr, r"\Agraft: error: server_error: a\[31mred second linex+\n\Z")
        self.assertLess(len(done.stderr), 1100)
        self.fake(http({"error": {"message": "no", "type": "NotFoundError", "param": None, "code": 404, "reason": "not_found"}}, "404 Not Found"))
        self.assertEqual(self.bad(1, "not_found", "load", "x"), "no")

    def test_lists_are_cleaned(self):
        evil = "\x1b]0;title\x07\x9b31m\u202e"
        self.fake(lambda r: http({"data": [{"id": "a" + evil, "memory": "resident" + evil, "bytes": "many", "leases": -1, "pinned": 7, "last_used": 1e300,
                                            "error": {"code": evil, "message": evil}}, None, 7, {}]} if "adapters" in r["line"] else
                                 {"version": evil, "model": {"id": evil, "slots": "x"}, "slots": [None, {"state": evil, "adapter": evil}],
                                  "health": {"state": "degraded" + evil, "reasons": [{"name": evil}]}, "memory": 7, "current": evil}))
        text = self.good("ps", "--all")
        self.assertFalse(re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text), repr(text))
        self.assertEqual(len(self.object("ps", "--all")["adapters"]), 4)

    def test_a_wait_is_shown_on_a_terminal(self):
        def slow(request):
            time.sleep(2.2)
            return http(b"done", type="text/plain")
        self.fake(slow)
        seen = command.on_terminal([GRAFT, "load", "alder"], "stderr", {**self.env, "TERM": "xterm"}, TIMEOUT).decode()
        self.assertIn("\rloading alder … 1 s", seen)
        self.assertRegex(seen, r"\r +\r\Z")
        self.assertEqual(self.good("load", "alder"), "loaded alder\n")  # elsewhere nothing of it


class Talk(Case):
    """graft chat with a server of our own: what is sent, and what comes back."""
    def stream(self, *pieces):
        return self.fake(lambda r: http({"id": "x"}) if r["line"].startswith("GET") else (p for p in (STREAM, *pieces)))

    def test_what_is_sent(self):
        server = self.stream(said("one "), said("two"), ending())
        done = self.graft("chat", "alder", "--system", "be brief", "-n", 5, input="first\n/reset\n//second\n/system be long\nthird\n/system\n/quit\nnot sent\n")
        self.assertEqual((done.returncode, done.stdout), (0, "one two\n" * 3), done.stderr)
        bodies = [r["body"] for r in server.requests]
        user, assistant = lambda t: {"role": "user", "content": t}, {"role": "assistant", "content": "one two"}
        self.assertEqual(bodies[0], {"model": "alder", "messages": [{"role": "system", "content": "be brief"}, user("first")], "stream": True,
                                     "stream_options": {"include_usage": True}, "max_tokens": 5})
        self.assertEqual([b["messages"] for b in bodies[1:]],
                         [[{"role": "system", "content": "be brief"}, user("/second")],
                          [{"role": "system", "content": "be long"}, user("/second"), assistant, user("third")]])
        self.assertIn("forgotten", done.stderr)

    def test_json(self):
        self.stream(said("ä"), ending(None, {"code": "busy", "message": "no room"}))
        answer = self.object("chat", input="x\n")
        self.assertGreater(answer.pop("first_token_ms"), 0)
        self.assertEqual(answer, {"text": "ä", "model": None, "adapter": None, "fallback": {"code": "busy", "message": "no room"}, "finish_reason": "stop",
                                  "prompt_tokens": 7, "cached_tokens": 5, "completion_tokens": 3, "tokens_per_second": 12.5})

    def test_streams_that_go_wrong(self):
        for what, (pieces, code, shown) in {
            "cut off": ([said("a")], "bad_reply", "a\n"),
            "no JSON": ([said("a"), event(b"{")], "bad_reply", "a\n"),
            "a list": ([event(b"[]")], "bad_reply", ""),
            "an error": ([said("a"), event({"error": {"message": "gone", "code": "decode_failed"}})], "decode_failed", "a\n"),
            "other types": ([event({"choices": 7}), event({"choices": [{"delta": {"content": 7}}]}), event({"usage": []}), ending()], None, ""),
            "comments": ([b": still here\n\n", b"event: x\nid: 1\n", b"data:" + said("a")[6:], b"\r\n", ending()], None, "a\n"),
        }.items():
            with self.subTest(what):
                self.stream(*pieces)
                done = self.graft("chat", input="x\n")
                self.assertEqual((done.returncode, done.stdout), (1 if code else 0, shown), done.stderr)
                self.assertRegex(done.stderr, rf"\Agraft: error: {code}: .+\n\Z" if code else r"\A\Z")

    def test_a_line_that_does_not_end(self):
        server = self.fake(lambda r: (STREAM if i == 0 else b"x" * 65536 for i in itertools.count()))
        done = self.graft("chat", input="x\n")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertRegex(done.stderr, r"\Agraft: error: bad_reply: .*a line that does not end\n\Z")
        self.assertTrue(server.gone.wait(TIMEOUT))

    @unittest.skipUnless(os.path.exists("/dev/full"), "Linux has it")
    def test_nobody_reads_the_answers(self):
        server = self.fake(lambda r: (STREAM if i == 0 else said("x" * 1000) for i in itertools.count()))
        with open("/dev/full", "w") as full:
            done = subprocess.run([GRAFT, "chat"], input=b"one\ntwo\n", stdout=full, stderr=subprocess.PIPE, timeout=TIMEOUT,
                                  env=self.env)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr.decode(), r"\Agraft: error: io_error: cannot write to standard output\n\Z")
        self.assertTrue(server.gone.wait(TIMEOUT))
        self.assertEqual(len(server.requests), 1)

    def test_what_failed_is_not_part_of_the_talk(self):
        replies = [http({"error": {"message": "no", "code": "queue_full"}}, "429 Too Many Requests"), STREAM + said("yes") + ending()]
        server = self.fake(lambda r: replies.pop(0))
        done = self.graft("chat", input="one\ntwo\n")
        self.assertEqual((done.returncode, done.stdout), (1, "yes\n"))
        self.assertRegex(done.stderr, r"\Agraft: error: queue_full: no\n\Z")
        self.assertEqual([m["content"] for m in server.requests[1]["body"]["messages"]], ["two"])

    def test_a_line_that_is_too_long(self):
        self.stream(said("a"), ending())
        done = self.graft("chat", input="x" * (1 << 20) + "y\nz\n")
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"\Agraft: error: too_large: ")

    def test_at_a_terminal(self):
        server = self.stream(said("\x1b[31mred\x07 \u202eä"), said("\nnext"), ending())
        t = self.terminal("chat", "alder", LANG="C")
        self.assertIn("talking with alder at " + server.url, t.expect(r"alder> "))
        t.send("häl lo\x1b[D\x1b[D\x1b[D\x7fX\r")  # back over "lo" and the blank, which an X replaces after l and the blank went
        answer = t.expect(r"next\r\n")
        self.assertIn("[31mred ä\r\nnext", answer)
        self.assertNotIn("\x07", answer[answer.index("[31m"):])
        self.assertNotIn("\u202e", answer)
        t.expect(r"alder> ")
        self.assertEqual(server.requests[-1]["body"]["messages"], [{"role": "user", "content": "häX lo"}])
        t.send("never sent\x03")
        t.expect(r"\^C\r\n.*alder> ")
        t.send("/stats\r")
        t.expect(r"3 tokens at 12.5 tokens/s.*\r\n.*1 answers")
        t.expect(r"alder> ")
        t.send("\x04")
        self.assertEqual(t.wait(), 0)
        file = self.folder / "home/.local/state/graft/chat_history"
        self.assertEqual(stat.S_IMODE(file.stat().st_mode), 0o600)
        self.assertNotIn("never", file.read_text())
        again = self.terminal("chat", "alder")
        again.expect("alder> ")
        again.send("\x1b[A\x1b[A\r")  # /stats, and before it the message
        again.expect(r"next\r\n")
        self.assertEqual(server.requests[-1]["body"]["messages"], [{"role": "user", "content": "häX lo"}])
        again.expect("alder> ")
        again.send("/exit\r")
        self.assertEqual(again.wait(), 0)

    def test_history_goes_where_xdg_says(self):
        self.stream(said("a"), ending())
        t = self.terminal("chat", XDG_STATE_HOME=str(self.folder / "state"))
        t.expect("graft> ")
        t.send("one\r")
        t.expect("a\r\n")
        t.expect("graft> ")
        t.send("\x04")
        self.assertEqual(t.wait(), 0)
        self.assertIn("one", (self.folder / "state/graft/chat_history").read_text())

    def test_ctrl_c_ends_the_answer_and_not_the_talk(self):
        go_on = threading.Event()

        def reply(request):
            if request["line"].startswith("GET"):
                return http({"id": "x"})
            if len(request["body"]["messages"]) > 1:
                return STREAM + said("second") + ending()

            def slow():
                yield STREAM + said("partly")
                while not go_on.wait(0.05):
                    yield b": still here\n\n"
            return slow()

        server = self.fake(reply)
        t = self.terminal("chat", "alder")
        t.expect("alder> ")
        t.send("x\r")
        t.expect("partly")
        t.send("\x03")
        t.expect(r"\(interrupted\)\r\n")
        self.assertTrue(server.gone.wait(TIMEOUT))  # the server was left, so it ends the answer
        t.expect("alder> ")
        t.send("y\r")
        t.expect("second\r\n")
        self.assertEqual([m["content"] for m in server.requests[-1]["body"]["messages"]], ["x", "partly", "y"])
        t.expect("alder> ")
        t.send("\x04")
        self.assertEqual(t.wait(), 0)
        go_on.set()

    def test_ctrl_c_during_silence(self):
        stop = threading.Event()
        self.addCleanup(stop.set)

        def reply(request):
            if request["line"].startswith("GET"):
                return http({"id": "x"})
            stop.wait(TIMEOUT)
            return b""

        server = self.fake(reply)
        t = self.terminal("chat", "alder")
        t.expect("alder> ")
        t.send("x\r")
        serving.wait_until(lambda: len(server.requests) == 2, "the request")
        t.send("\x03")
        t.expect(r"\(interrupted\)\r\n")
        t.expect("alder> ")
        t.send("/stats\r")
        t.expect("0 answers, 0 tokens; 0 messages")
        t.expect("alder> ")
        t.send("\x04")
        self.assertEqual(t.wait(), 0)

    def test_a_terminal_is_not_left_waiting_for_a_server_that_is_not_there(self):
        t = self.terminal("chat", "alder")
        t.expect("graft: error: unreachable: ")
        self.assertEqual(t.wait(), 1)


class KeyServer(Served):
    def test_add_list_remove(self):
        self.assertIn("first key", self.bad(1, "admin_key_first", "key", "add", "app", "--project", "alder"))
        done = self.graft("key", "add", "root")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"\Agk_[A-Za-z0-9_-]{43}\n\Z")
        self.assertRegex(done.stderr, r"\Agraft: the key root, for all projects .*\n\Z")
        self.bad(1, "invalid_api_key", "key", "list")
        root = {"GRAFT_API_KEY": done.stdout.strip()}
        made = self.graft("key", "add", "app", "--project", "alder", "--json", **root)
        self.assertEqual(made.stderr, "")
        made = json.loads(made.stdout)
        self.assertEqual((made["id"], made["admin"], made["projects"]), ("app", False, ["alder"]))
        app = {"GRAFT_API_KEY": made["key"]}
        self.bad(1, "conflict", "key", "add", "app", **root)
        self.assertRegex(self.good("key", "list", **root), r"(?m)^app +alder +20.*\nroot +all \(admin\) +20")
        self.assertEqual([k["id"] for k in self.object("key", "list", **root)["keys"]], ["app", "root"])
        self.assertEqual([a["id"] for a in self.object("ps", "--all", **app)["adapters"]], ["alder"])
        self.assertEqual(self.object("chat", "alder", "-n", 2, input="abc\n", **app)["adapter"], "alder")
        self.assertIn("model_not_found", self.graft("chat", "birch", input="abc\n", **app).stderr)
        for args in [["load", "alder"], ["pin", "alder"], ["switch", "alder"], ["key", "list"]]:
            self.bad(1, "admin_key_needed", *args, **app)
        self.assertEqual(self.object("key", "remove", "app", **root), {"removed": "app"})
        self.bad(1, "not_found", "key", "remove", "app", **root)
        self.bad(1, "invalid_api_key", "ps", **app)
        self.assertEqual(self.good("key", "remove", "root", **root), "removed root\n")
        self.good("ps")


class KeyFile(Case):
    """graft key on the registry's file."""
    def setUp(self):
        super().setUp()
        self.where = ["--registry", self.folder / "registry.db"]

    def test_add_list_remove(self):
        done = self.graft("key", "add", "root", *self.where)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"\Agk_[A-Za-z0-9_-]{43}\n\Z")
        self.assertRegex(done.stderr, r"\Agraft: the key root, for all projects .*\n\Z")
        self.assertNotIn(done.stdout.strip(), done.stderr)
        made = json.loads(self.graft("key", "add", "app", "--project", "birch", "--project", "alder", "--json", *self.where).stdout)
        self.assertRegex(made.pop("key"), r"\Agk_")
        self.assertEqual((made["id"], made["admin"], sorted(made["projects"])), ("app", False, ["alder", "birch"]))
        text = self.good("key", "list", *self.where)
        self.assertRegex(text, r"(?m)^app +alder, birch +20\d\d-")
        self.assertRegex(text, r"(?m)^root +all \(admin\) ")
        self.assertNotIn("gk_", text)
        self.assertEqual([(k["id"], k["admin"], k["projects"]) for k in self.object("key", "list", *self.where)["keys"]],
                         [("app", False, ["alder", "birch"]), ("root", True, [])])
        self.bad(1, "conflict", "key", "add", "app", *self.where)
        self.bad(1, "bad_name", "key", "add", "a b", *self.where)
        self.assertEqual(self.good("key", "remove", "app", *self.where), "removed app\n")
        self.bad(1, "not_found", "key", "remove", "app", *self.where)
        self.assertEqual(len(self.object("key", "list", *self.where)["keys"]), 1)

    def test_only_a_flag_means_the_file(self):
        self.bad(1, "unreachable", "key", "list", GRAFT_REGISTRY=str(self.where[1]))
        self.assertFalse(self.where[1].exists())


class Doctor(Case):
    def setUp(self):
        super().setUp()
        self.port = closed_port()
        del self.env["GRAFT_SERVER"]
        self.env.update(GRAFT_PORT=str(self.port), GRAFT_REGISTRY=str(self.folder / "registry.db"), GRAFT_MODEL=str(serving.BASE), GRAFT_THREADS="1")

    def checks(self, *args, status=0, **env):
        """{name: check}"""
        done = self.graft("doctor", "--json", *args, **env)
        self.assertEqual(done.returncode, status, (done.stdout, done.stderr))
        shown = json.loads(done.stdout)
        states = [c["state"] for c in shown["checks"]]
        self.assertEqual([shown[s] for s in ["ok", "warn", "fail"]], [states.count(s) for s in ["ok", "warn", "fail"]])
        for c in shown["checks"]:
            self.assertEqual(list(c), ["name", "state", "text", "fix"])
            self.assertEqual(c["fix"] is None, c["state"] == "ok", c)
        self.assertEqual(shown["fail"] > 0, status == 1)
        return {c["name"]: c for c in shown["checks"]}

    def fails(self, name, *args, **env):
        found = self.checks(*args, status=1, **env)
        self.assertEqual([n for n, c in found.items() if c["state"] == "fail"], [name], found)
        return found[name]["text"]

    def test_all_well(self):
        self.good("project", "add", "alder", serving.GOLDEN / "adapters/llama/plain")
        before = (self.folder / "registry.db").read_bytes()
        found = self.checks()
        self.assertEqual({c["state"] for n, c in found.items() if n not in ("open files", "processor", "memory")}, {"ok"}, found)
        for name, part in {"graft": "0.1.0", "libllama": ".", "processor": "cores", "memory": "GiB", "open files": "at once", "settings": "no file",
                           "model": "llama.gguf", "architecture": "llama", "adapters": "by rows", "registry": "1 projects, 1 adapters", "backup": "1 adapters",
                           "registered": "1 of 1", "keys": "0", "registry folder": "can be written", "disk": "free", "key": "none", "server": "is free"}.items():
            self.assertIn(part, found[name]["text"])
        text = self.good("doctor")
        self.assertRegex(text, r"(?m)^ok    model            /")
        self.assertRegex(text, r"\n\n\d+ ok, \d warn, 0 fail\n\Z")
        self.assertEqual((self.folder / "registry.db").read_bytes(), before)

    def test_quick(self):
        self.assertIn("unknown", self.checks("--quick")["architecture"]["text"])
        self.assertNotIn("adapters", self.checks("--quick"))

    def test_nothing_yet(self):
        del self.env["GRAFT_MODEL"], self.env["GRAFT_REGISTRY"]
        found = self.checks()
        self.assertEqual((found["model"]["state"], found["registry"]["state"]), ("warn", "ok"))
        self.assertFalse((self.folder / "home").exists())

    def test_settings(self):
        file = self.folder / "graft.ini"
        file.write_text("slots = 4\nmax_adaptors = 3\n")
        text = self.fails("settings", "--quick", "--config", file)
        self.assertIn(f"{file}:2", text)
        self.assertIn("max_adapters", text)
        file.write_text("slots = 4\n")
        self.assertEqual(self.checks("--quick", "--config", file)["settings"]["text"], str(file))

    def test_models(self):
        self.assertIn("nowhere.gguf", self.fails("model", "-m", self.folder / "nowhere.gguf"))
        (self.folder / "text.gguf").write_text("this is text")
        self.assertIn("no GGUF", self.fails("model", "-m", self.folder / "text.gguf"))
        (self.folder / "short.gguf").write_bytes(serving.BASE.read_bytes()[:100000])
        self.assertIn("model_invalid", self.fails("opening", "-m", self.folder / "short.gguf"))

    def test_registries(self):
        self.good("project", "add", "alder", command.copy_adapter(serving.GOLDEN / "adapters/llama/plain", self.folder / "alder"))
        self.good("project", "add", "birch", command.copy_adapter(serving.GOLDEN / "adapters/llama/rslora", self.folder / "birch"))
        (self.folder / "alder" / "adapter_model.safetensors").unlink()
        self.assertIn("adapter_model.safetensors", self.fails("alder/default", "--quick"))
        shutil.rmtree(self.folder / "alder")
        self.assertIn("No such file", self.fails("alder/default", "--quick"))
        found = self.checks("--quick", status=1)
        self.assertIn("1 of 2", found["registered"]["text"])
        (self.folder / "registry.db").write_bytes(b"SQLite format 3\0" + b"x" * 5000)
        self.assertIn("recover", self.checks("--quick", status=1)["registry"]["fix"])
        self.fails("registry folder", "--quick", GRAFT_REGISTRY=str(self.folder / "nowhere/registry.db"))

    def test_keys(self):
        file = self.folder / "key"
        self.assertIn("nowhere", self.checks("--quick", "--api-key-file", self.folder / "nowhere", status=1)["key"]["text"])
        file.write_text(KEY)
        file.chmod(0o644)
        self.assertEqual(self.checks("--quick", "--api-key-file", file)["key"]["state"], "warn")
        file.chmod(0o600)
        self.assertEqual(self.checks("--quick", "--api-key-file", file)["key"]["state"], "ok")
        self.assertIn("unencrypted", self.checks("--quick", "--server", "http://192.0.2.1:1", "--api-key-file", file, status=1)["key's way"]["text"])

    def test_tls(self):
        pair = lambda cert, key: ["--quick", "--tls-cert", TLS / cert, "--tls-key", TLS / key]  # noqa: E731
        found = self.checks(*pair("first.crt", "first.key"), "--ca-file", TLS / "first.crt")
        self.assertIn("good for", found["tls"]["text"])
        self.assertEqual(found["ca_file"]["state"], "ok")
        self.assertIn("not the certificate's", self.fails("tls", *pair("first.crt", "second.key")))
        self.assertIn("no private key", self.fails("tls", *pair("first.crt", "locked.key")))
        self.assertIn("no certificate", self.fails("tls", *pair("first.key", "first.key")))
        self.assertIn("nowhere", self.fails("tls", *pair("nowhere", "first.key")))
        self.assertIn("together", self.fails("tls", "--quick", "--tls-cert", TLS / "first.crt"))
        self.assertIn("no certificate", self.fails("tls", "--quick", "--ca-file", TLS / "first.key"))

    def test_servers(self):
        server = serving.Server(env={"GRAFT_API_KEY": KEY})
        self.addCleanup(server.close)
        here = ["--quick", "--server", f"http://127.0.0.1:{server.port}"]
        found = self.checks(*here)
        self.assertIn("answers: ok, healthy", found["server"]["text"])
        self.assertEqual(found["server's answer"]["state"], "warn")  # no key
        self.assertIn("model llama", self.checks(*here, GRAFT_API_KEY=KEY)["server's answer"]["text"])
        self.assertEqual(self.checks("--quick", "--port", server.port, GRAFT_API_KEY=KEY)["server's answer"]["state"], "ok")
        self.assertIn("something else", self.fails("server", "--quick", "--server", Fake(lambda r: http({})).url))
        self.assertIn("HTTP", self.fails("server", "--quick", "--server", Fake(lambda r: b"hello\r\n").url))
        self.assertIn("nothing answers", self.fails("server", "--quick", "--server", f"http://127.0.0.1:{self.port}"))
        self.assertIn("http://HOST", self.checks("--quick", "--server", "nonsense", status=1)["server"]["fix"])
        self.assertIn("503", json.dumps(self.checks("--quick", "--server", Fake(lambda r: http({"status": "draining", "state": "healthy"}, "503 No")).url)["server"]) + "503")


if __name__ == "__main__":
    unittest.main()
