#!/usr/bin/env python3
"""`graft serve` below the requests: TLS, pages of other origins, paths as proxies send them, errors before a handler.

GRAFT_BIN names the binary (required). The certificates in tls/ are good for a hundred years and for nothing else.
"""
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import sys
import unittest
from pathlib import Path

from serving import GRAFT, TIMEOUT, BASE, Case, Server, in_threads, read_all, request_bytes, wait_until

TLS = Path(__file__).resolve().parent / "tls"
BODY = {"model": "alder", "prompt": "abc", "max_tokens": 40, "temperature": 0, "ignore_eos": True}


class Tls(Case):
    @classmethod
    def setUpClass(cls):
        cls.plain = Server()
        cls.files = Path(cls.plain.folder)
        for end in ["crt", "key"]:
            shutil.copy(TLS / f"first.{end}", cls.files / f"now.{end}")
        cls.server = Server("--tls-cert", cls.files / "now.crt", "--tls-key", cls.files / "now.key", "--request-ms", 500,
                            "--connections", 40)

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        cls.plain.close()

    def context(self, name="first"):
        return ssl.create_default_context(cafile=TLS / f"{name}.crt")

    def connect(self, name="first"):
        return http.client.HTTPSConnection("localhost", self.server.port, timeout=TIMEOUT, context=self.context(name))

    def tls_socket(self):
        return self.context().wrap_socket(self.server.socket(), server_hostname="localhost")

    def ask(self, method, path, body=None, connection=None):
        return self.server.ask(method, path, body, connection=connection or self.connect())

    def test_answers_and_streams(self):
        expected = self.plain.post("/v1/completions", BODY).json["choices"]
        connection = self.connect()
        for _ in range(2):  # one connection, many requests
            reply = self.ask("POST", "/v1/completions", BODY, connection)
            self.assertEqual((reply.status, reply.json["choices"]), (200, expected))
        events = self.ask("POST", "/v1/completions", {**BODY, "stream": True}, connection).events
        self.assertEqual(events.pop(), "[DONE]")
        self.assertEqual("".join(json.loads(e)["choices"][0]["text"] for e in events), expected[0]["text"])
        connection.close()

    def test_large_bodies_both_ways(self):
        text = "a" * 300000
        reply = self.ask("POST", "/v1/completions", {"model": "alder", "prompt": text, "max_tokens": 1})
        self.assertEqual((reply.status, reply.json["error"]["code"]), (400, "context_length_exceeded"))
        reply = self.ask("POST", "/v1/completions", {**BODY, "max_tokens": 400, "n": 8, "logprobs": 5})
        self.assertEqual((reply.status, len(reply.json["choices"])), (200, 8))

    def test_many_at_once(self):
        expected = self.plain.post("/v1/completions", BODY).json["choices"]
        replies = in_threads([lambda: self.ask("POST", "/v1/completions", BODY)] * 24)
        self.assertEqual([r.json["choices"] for r in replies], [expected] * 24)

    def test_who_does_not_speak_it(self):
        with self.server.socket() as s:
            s.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            self.assertNotIn(b"200", read_all(s)[:20])
        with self.server.socket() as s:  # half a greeting, then nothing but an end
            s.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
            s.shutdown(socket.SHUT_WR)
            read_all(s)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("ALL:@SECLEVEL=0")
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with self.server.socket() as s, self.assertRaises((ssl.SSLError, OSError)):
            old.wrap_socket(s)
        self.assertEqual(self.ask("GET", "/health").status, 200)

    def test_leaving(self):
        """Gone in the middle of an answer, politely and not: noticed, and the memory of each goes (ASan sees it)."""
        for polite in [True, False]:
            s = self.tls_socket()
            s.sendall(request_bytes({**BODY, "max_tokens": 1500, "stream": True}))
            self.assertIn(b"200", s.recv(100))
            if polite:
                try:
                    s.unwrap()
                except (ssl.SSLError, OSError):
                    pass  # data of the answer came first
            s.close()

        def running():
            return [float(line.split()[1]) for line in self.ask("GET", "/metrics").text.splitlines()
                    if line.startswith("graft_answers_running ")] == [0]
        wait_until(running, "the end of the answers")

    def test_slow_requests_are_cut_off(self):
        with self.tls_socket() as s:
            s.sendall(b"GET /health HTTP/1.1\r\n")
            read_all(s)

    def test_renewal(self):
        def serial():
            with self.server.socket() as s:
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                with context.wrap_socket(s) as t:
                    return t.getpeercert(binary_form=True)
        before, open_one = serial(), self.connect()
        self.assertEqual(self.ask("GET", "/health", connection=open_one).status, 200)
        for end in ["crt", "key"]:
            shutil.copy(TLS / f"second.{end}", self.files / f"now.{end}")
        self.server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: serial() != before, "the other certificate")
        self.assertEqual(self.ask("GET", "/health", connection=open_one).status, 200)
        after = serial()
        (self.files / "now.key").write_text("nothing")
        self.server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "stays as it was" in self.server.log(), "the refusal")
        self.assertEqual(serial(), after)
        for end in ["crt", "key"]:
            shutil.copy(TLS / f"first.{end}", self.files / f"now.{end}")
        self.server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: serial() == before, "the first certificate")

    def test_files_that_are_none(self):
        bad = [(["--tls-cert", TLS / "first.crt"], "bad_request"), (["--tls-key", TLS / "first.key"], "bad_request"),
               (["--tls-cert", TLS / "none.crt", "--tls-key", TLS / "first.key"], "none.crt"),
               (["--tls-cert", TLS / "first.crt", "--tls-key", TLS / "second.key"], "second.key"),
               (["--tls-cert", TLS / "first.crt", "--tls-key", TLS / "locked.key"], "locked.key"),
               (["--tls-cert", TLS / "first.key", "--tls-key", TLS / "first.key"], "first.key"),
               (["--tls-cert", __file__, "--tls-key", TLS / "first.key"], "test_transport.py")]
        for args, said in bad:
            server = Server(*args, wait=False)
            self.assertEqual(server.process.wait(TIMEOUT), 1, args)
            lines = server.log().strip().splitlines()
            self.assertEqual(len(lines), 1, lines)
            self.assertIn(said, lines[0])
            server.close()


class Origins(Case):
    args = ["--cors-origins", "https://a.example, http://localhost:3000"]

    def headers(self, origin, method="GET", path="/v1/models", server=None, **more):
        reply = (server or self.server).ask(method, path, headers={"Origin": origin, **more})
        return reply.status, reply.headers

    def test_listed_origins(self):
        for origin in ["https://a.example", "http://localhost:3000"]:
            status, headers = self.headers(origin)
            self.assertEqual((status, headers["Access-Control-Allow-Origin"], headers["Vary"]), (200, origin, "Origin"))
            self.assertIn("X-Request-Id", headers["Access-Control-Expose-Headers"])
        status, headers = self.headers("https://a.example", path="/nothing")  # errors can be read too
        self.assertEqual((status, headers["Access-Control-Allow-Origin"]), (404, "https://a.example"))

    def test_preflight(self):
        ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
        status, headers = self.headers("https://a.example", "OPTIONS", "/v1/chat/completions", **ask)
        self.assertEqual(status, 204)
        self.assertIn("POST", headers["Access-Control-Allow-Methods"])
        self.assertIn("Authorization", headers["Access-Control-Allow-Headers"])
        status, headers = self.headers("https://b.example", "OPTIONS", "/v1/chat/completions", **ask)
        self.assertEqual((status, headers["Access-Control-Allow-Methods"]), (204, None))

    def test_others(self):
        for origin in ["https://b.example", "https://a.example.evil", "https://a.exampl", "http://a.example", "null", "", ","]:
            status, headers = self.headers(origin)
            self.assertEqual((status, headers["Access-Control-Allow-Origin"], headers["Vary"]), (200, None, "Origin"), origin)

    def test_none_and_any(self):
        for args, expected in [([], None), (["--cors-origins", "*"], "*")]:
            server = Server(*args)
            status, headers = self.headers("https://a.example", server=server)
            self.assertEqual((status, headers["Access-Control-Allow-Origin"]), (200, expected))
            server.close()


class Strangers(Case):
    """Without a key any page that a browser has open could ask: what could change something is refused to it."""
    calls = [("POST", "/v1/lora_adapters/alder/load", None), ("POST", "/v1/lora_adapters/scan", None), ("POST", "/v1/lora_adapters/alder/pin", None),
             ("POST", "/v1/lora_adapters/alder/unpin", None), ("POST", "/v1/lora_adapters/alder/unload", None),
             ("POST", "/v1/completions", {"prompt": "a", "max_tokens": 1})]

    def test_refused(self):
        for headers in [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://localhost:1"}, {"Sec-Fetch-Site": "cross-site"},
                        {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://evil.example", "Content-Type": "text/plain"}]:
            for method, path, body in self.calls:
                with self.subTest(path=path, headers=headers):
                    self.bad(403, "origin_refused", method, path, body, headers=headers)

    def test_its_own_pages_and_programs(self):
        own = f"http://localhost:{self.server.port}"
        for headers in [{}, {"Host": f"localhost:{self.server.port}", "Origin": own, "Sec-Fetch-Site": "same-origin"},
                        {"Sec-Fetch-Site": "none"}]:
            for method, path, body in self.calls:
                with self.subTest(path=path, headers=headers):
                    self.good(method, path, body, headers=headers)

    def test_listed_origins_and_keys(self):
        listed = Server("--cors-origins", "https://a.example")
        keyed = Server(env={"GRAFT_API_KEY": "a-long-enough-key"})
        for method, path, body in self.calls:
            self.assertEqual(listed.ask(method, path, body, headers={"Origin": "https://a.example"}).status, 200, path)
            self.assertEqual(listed.ask(method, path, body, headers={"Origin": "https://b.example"}).status, 403, path)
            headers = {"Origin": "https://b.example", "Authorization": "Bearer a-long-enough-key"}
            self.assertEqual(keyed.ask(method, path, body, headers=headers).status, 200, path)
        listed.close()
        keyed.close()


class Paths(Case):
    def status(self, line, headers=b"Host: localhost\r\n"):
        text = self.server.raw(line + b"\r\n" + headers + b"Connection: close\r\n\r\n")
        return int(text.split()[1]), text.split(b"\r\n\r\n", 1)[1]

    def test_absolute(self):
        self.assertEqual(self.status(b"GET http://localhost/v1/models?x=1 HTTP/1.1")[0], 200)
        self.assertEqual(self.status(b"GET http://localhost HTTP/1.1")[0], self.status(b"GET / HTTP/1.1")[0])
        self.assertEqual(self.status(b"GET http://localhost/nothing HTTP/1.1")[0], 404)
        self.assertEqual(self.status(b"GET //localhost/v1/models HTTP/1.1")[0], 404)  # a path, and none of ours

    def test_errors_before_a_handler(self):
        for line, headers, expected, code in [
                (b"GET /" + b"a" * 2000 + b" HTTP/1.1", b"Host: localhost\r\n", 414, "uri_too_long"),
                (b"POST /v1/completions HTTP/1.1", b"Host: localhost\r\nContent-Length: 0\r\nContent-Length: 0\r\n", 400, "bad_request")]:
            status, body = self.status(line, headers)
            self.assertEqual((status, json.loads(body)["error"]["code"]), (expected, code))


if __name__ == "__main__":
    if not GRAFT:
        sys.exit("GRAFT_BIN must name the graft binary")
    unittest.main(verbosity=2)
