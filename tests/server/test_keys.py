#!/usr/bin/env python3
"""Tests of keys and their scopes: a key for one project finds no door to another project's adapters.

GRAFT_BIN names the binary (required). The base is the tiny one of tests/oracle/golden. Python's standard library only.
"""
import hashlib
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from serving import BASE, GRAFT, PROMPT, TIMEOUT, Case, Server, in_threads, request_bytes, wait_until

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
# What a key for `alder` alone must not tell apart. Of one length, so that even the headers can be compared.
OTHER, UNKNOWN = "birch", "larch"
LONG = {"model": "birch", "prompt": "abc", "max_tokens": 60000, "temperature": 0, "ignore_eos": True, "stream": True}


def bearer(secret):
    return {"Authorization": "Bearer " + secret}


def make_key(server, name, projects=None, by=None):
    body = {"name": name} if projects is None else {"name": name, "projects": projects}
    reply = server.post("/v1/keys", body, headers=bearer(by) if by else None)
    assert reply.status == 200, reply.text
    return reply.json["key"]


class KeyCase(Case):
    """A server with a key for everything, one for alder, one for birch, one for a project that is not there."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.root = make_key(cls.server, "root")
        cls.alder = make_key(cls.server, "only-alder", ["alder"], by=cls.root)
        cls.birch = make_key(cls.server, "only-birch", ["birch"], by=cls.root)
        cls.later = make_key(cls.server, "later", ["later", "cedar"], by=cls.root)

    def ask(self, key, method, path, body=None):
        return self.server.ask(method, path, body, headers=bearer(key))

    def metric(self, name):
        lines = self.ask(self.root, "GET", "/metrics").text.splitlines()
        return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"graft_{name} "))

    def refused(self, status, code, method, path, body=None, key=None, param=None):
        return self.bad(status, code, method, path, body, param=param, headers=bearer(key or self.root))


# Ways to write a name; N stands for it.
FORMS = ["N", "N/default", "llama:N", "llama::N", "N:latest", "llama:N/default", "llama::N/default:latest", "N/other"]
CASES = [str.capitalize, str.upper]


def doors(name):
    """Each call that takes a name, with the name in it in all its forms: method, path, body."""
    for form in FORMS:
        text = form.replace("N", name)
        quoted = "".join(f"%{ord(c):02x}" for c in text)
        for path in [text, quoted, text.replace("/", "%2F"), quoted.upper()]:
            yield "GET", f"/v1/models/{path}", None
            yield "HEAD", f"/v1/models/{path}", None
            for verb in ["pin", "unpin", "load", "unload"]:
                yield "POST", f"/v1/lora_adapters/{path}/{verb}", {}
        for stream in [False, True]:
            yield "POST", COMPLETIONS, {"model": text, "prompt": "a", "max_tokens": 2, "stream": stream}
            yield "POST", CHAT, {"model": text, "messages": [{"role": "user", "content": "a"}], "max_tokens": 2, "stream": stream}
        for fallback in ["base", "error"]:
            yield "POST", COMPLETIONS, {"model": text, "prompt": "a", "max_tokens": 2, "fallback": fallback}
        for model in ["llama", "alder"]:
            yield "POST", COMPLETIONS, {"model": model, "lora": [{"name": text, "scale": 1}], "prompt": "a", "max_tokens": 2}
            yield "POST", COMPLETIONS, {"model": model, "lora": [{"name": text, "scale": 0}], "prompt": "a", "max_tokens": 2}
        yield "POST", "/v1/load_lora_adapter", {"lora_name": text, "lora_path": "alder"}
        yield "POST", "/v1/load_lora_adapter", {"lora_name": text, "lora_path": "alder", "load_inplace": True}
        yield "POST", "/v1/unload_lora_adapter", {"lora_name": text}
        yield "POST", "/v1/unload_lora_adapter", {"lora_name": text, "unregister": True}
        yield "POST", "/v1/projects/current", {"project": text, "adapter": "default"}
        yield "DELETE", f"/v1/keys/{text}", None


def seen(reply, name):
    """All that a client sees of a reply but for what differs anyway, with a name of its own kind in it."""
    headers = sorted((k, v) for k, v in reply.headers.items() if k not in ("X-Request-Id", "Date"))
    text = reply.text
    for change in [str, *CASES]:
        text = text.replace(change(name), change("n-a-m-e"))
    quoted = "".join(f"%{ord(c):02x}" for c in name)
    return reply.status, headers, text.replace(quoted, "%%")


class Doors(KeyCase):
    args = ["--ctx", "65536", "--slots", "2"]

    def test_other_project_is_as_unknown(self):
        """Every call, with every way to write the name: the same answer, to the byte, as for a name that is nobody's."""
        def row():
            return [r for r in self.ask(self.root, "GET", "/v1/lora_adapters").json["data"] if r["id"] == OTHER]

        count = 0
        before = row(), self.ask(self.root, "GET", "/v1/projects/current").text
        for change in [str, *CASES]:
            for other, unknown in zip(doors(change(OTHER)), doors(change(UNKNOWN)), strict=True):
                there = self.ask(self.alder, *other)
                nowhere = self.ask(self.alder, *unknown)
                self.assertEqual(seen(there, OTHER), seen(nowhere, UNKNOWN), other)
                self.assertIn(there.status, (403, 404), other)
                count += 1
        self.assertGreater(count, 500)
        # Nothing was done behind the refusals.
        self.assertEqual((row(), self.ask(self.root, "GET", "/v1/projects/current").text), before)

    def test_doors_are_doors(self):
        """The same calls open for those who may; or the test above proves nothing."""
        for path in [OTHER, "%62irch", "llama%3A%3Abirch", "birch%2fdefault"]:
            self.assertEqual(self.ask(self.birch, "GET", f"/v1/models/{path}").status, 200, path)
        for model in ["birch", "birch/default", "llama:birch", "llama::birch", "birch:latest"]:
            reply = self.ask(self.birch, "POST", COMPLETIONS, {"model": model, "prompt": PROMPT, "max_tokens": 2, "fallback": "error"})
            self.assertEqual((reply.status, reply.json["adapter"]), (200, "birch"), model)
        reply = self.ask(self.birch, "POST", COMPLETIONS, {"model": "llama", "lora": [{"name": "birch", "scale": 1}], "prompt": "a",
                                                          "max_tokens": 2})
        self.assertEqual((reply.status, reply.json["adapter"]), (200, "birch"))
        self.assertEqual(self.ask(self.root, "POST", "/v1/lora_adapters/birch/pin", {}).status, 200)
        self.assertEqual(self.ask(self.root, "POST", "/v1/lora_adapters/birch/unpin", {}).status, 200)
        self.assertEqual(self.ask(self.root, "POST", "/v1/unload_lora_adapter", {"lora_name": "birch"}).status, 200)

    def test_lists(self):
        for key, visible in [(self.alder, ["alder"]), (self.birch, ["birch"]), (self.later, ["cedar"]), (self.root, ["alder", "birch", "cedar"])]:
            models = self.ask(key, "GET", "/v1/models")
            self.assertEqual([m["id"] for m in models.json["data"]], ["llama", *visible])
            adapters = self.ask(key, "GET", "/v1/lora_adapters")
            self.assertEqual([(a["id"], a["index"]) for a in adapters.json["data"]], [(v, i) for i, v in enumerate(visible)])
            projects = self.ask(key, "GET", "/v1/projects")
            self.assertEqual([p["id"] for p in projects.json["data"]], visible)
            for name in {"alder", "birch", "cedar"} - set(visible):
                for reply in [models, adapters, projects]:
                    self.assertNotIn(name, reply.text)
            llama = self.ask(key, "GET", "/lora-adapters").json
            self.assertEqual([a["id"] for a in llama], list(range(len(visible))))
            self.assertEqual([bool(a["path"]) for a in llama], [key == self.root] * len(visible))
            whole = {"llama": str(BASE), **{name: str(self.server.adapters / name) for name in visible}}
            want = whole if key == self.root else {name: Path(path).name for name, path in whole.items()}
            self.assertEqual({m["id"]: m["root"] for m in models.json["data"]}, want)
            self.assertEqual({m: self.ask(key, "GET", f"/v1/models/{m}").json["root"] for m in want}, want)
            self.assertEqual({"llama": want["llama"], **{a["id"]: a["source"] for a in adapters.json["data"]}}, want)
            if key != self.root:
                self.assertNotIn(str(BASE), self.ask(key, "GET", "/props").text)

    def test_ids(self):
        """Ids count what the key may see: neither use nor number of the others shows."""
        def use(key, n):
            return self.ask(key, "POST", COMPLETIONS, {"model": "llama", "lora": [{"id": n, "scale": 1}], "prompt": PROMPT, "max_tokens": 2})
        self.assertEqual(use(self.alder, 0).json["adapter"], "alder")
        self.assertEqual(use(self.birch, 0).json["adapter"], "birch")
        self.assertEqual(use(self.root, 1).json["adapter"], "birch")
        for n in [1, 2, 3, 1000, -1, -2**63, 2**63 - 1]:
            reply = self.refused(404, "model_not_found", "POST", COMPLETIONS, {"lora": [{"id": n, "scale": 1}], "prompt": "a"}, key=self.alder,
                                 param="lora")
            self.assertEqual(reply.json["error"]["message"], f"lora: no adapter has the id {n}")

    def test_both_in_one_request(self):
        """One's own adapter opens no other."""
        for model, lora in [("alder", "birch"), ("birch", "alder")]:
            self.refused(404, "model_not_found", "POST", COMPLETIONS, {"model": model, "lora": [{"name": lora}], "prompt": "a"}, key=self.alder,
                         param="lora" if model == "alder" else "model")

    def test_base_is_everybodys(self):
        for key in [self.alder, self.later, self.root]:
            self.assertEqual(self.ask(key, "GET", "/v1/models/llama").status, 200)
            reply = self.ask(key, "POST", COMPLETIONS, {"model": "llama", "prompt": PROMPT, "max_tokens": 2})
            self.assertEqual((reply.status, reply.json["adapter"]), (200, None))
            self.assertEqual(self.ask(key, "GET", "/health").json["status"], "ok")

    def test_prompts_of_others_are_not_to_be_guessed(self):
        """What was asked before shows in how much need not be computed again."""
        body = {"model": "llama", "prompt": "the words of a secret that nobody must guess", "max_tokens": 1}
        second = make_key(self.server, "alder-too", ["alder"], by=self.root)

        def cached(key):
            reply = self.ask(key, "POST", COMPLETIONS, body)
            return reply.json["usage"]["prompt_tokens_details"]["cached_tokens"]
        self.assertEqual(cached(self.alder), 0)
        self.assertGreater(cached(self.alder), 5)
        self.assertGreater(cached(second), 5)
        for key in [self.birch, self.root]:
            self.assertEqual(cached(key), 0)
            self.assertGreater(cached(key), 5)

    def test_current_project_is_no_door(self):
        """What requests without `model` get is the base for those who may not see it."""
        self.assertEqual(self.ask(self.root, "POST", "/v1/projects/current", {"project": "cedar", "adapter": "default"}).status, 200)
        self.assertEqual(self.ask(self.root, "GET", "/v1/projects/current").json["id"], "cedar")
        for key, adapter in [(self.root, "cedar"), (self.later, "cedar"), (self.alder, None)]:
            reply = self.ask(key, "POST", COMPLETIONS, {"prompt": PROMPT, "max_tokens": 2})
            self.assertEqual((reply.status, reply.json["adapter"]), (200, adapter))
            self.assertNotIn("cedar" if not adapter else "alder", reply.text)
        self.assertEqual(self.ask(self.alder, "GET", "/v1/projects/current").status, 404)
        self.assertEqual(self.ask(self.later, "GET", "/v1/projects/current").json["id"], "cedar")

    def test_status(self):
        """Of other projects' answers only that a slot is busy; paths and current project for those who may."""
        self.assertEqual(self.ask(self.root, "POST", "/v1/projects/current", {"project": "cedar", "adapter": "default"}).status, 200)
        with self.server.socket() as s:
            s.sendall(request_bytes(LONG, extra=f"X-Api-Key: {self.birch}\r\n"))
            self.assertIn(b"200 OK", s.recv(4096))
            for key, admin, adapter, current in [(self.root, True, "birch", "cedar"), (self.birch, False, "birch", None),
                                                 (self.alder, False, None, None), (self.later, False, None, "cedar")]:
                reply = self.ask(key, "GET", "/v1/status")
                status = reply.json
                self.assertEqual((status["admin"], status["current"], status["model"]["path"] is not None), (admin, current, admin))
                busy = [(slot["adapter"], slot["hidden"]) for slot in status["slots"] if slot["state"] != "idle"]
                self.assertEqual(busy, [(adapter, adapter is None)])
                for name in {"alder", "birch", "cedar"} - {adapter, current}:
                    self.assertNotIn(name, reply.text)
                slots = self.ask(key, "GET", "/slots").json
                self.assertEqual([slot["adapter"] for slot in slots if slot["is_processing"]], [adapter])
        wait_until(lambda: self.metric("answers_running") == 0, "the end of all answers")

    def test_only_for_everything(self):
        for method, path, body in [("GET", "/metrics", None), ("GET", "/v1/keys", None), ("POST", "/v1/keys", {"name": "mine"}),
                                   ("POST", "/v1/keys", {"name": "mine", "projects": ["alder"]}), ("DELETE", "/v1/keys/root", None),
                                   ("DELETE", "/v1/keys/only-alder", None), ("POST", "/v1/lora_adapters/alder/pin", {}),
                                   ("POST", "/v1/lora_adapters/scan", {}), ("POST", "/lora-adapters", []), ("POST", "/v1/unload_lora_adapter", {"lora_name": "alder"}),
                                   ("POST", "/v1/load_lora_adapter", {"lora_name": "alder", "lora_path": "alder"})]:
            self.refused(403, "admin_key_needed", method, path, body, key=self.alder)
        self.assertEqual(len(self.ask(self.root, "GET", "/v1/keys").json["data"]), 4)

    def test_project_that_comes_later(self):
        self.refused(404, "model_not_found", "GET", "/v1/models/later", key=self.later, param="model")
        added = self.ask(self.root, "POST", "/v1/load_lora_adapter", {"lora_name": "later/two", "lora_path": str(self.server.adapters / "alder")})
        self.assertEqual(added.status, 200, added.text)
        try:
            self.assertEqual(self.ask(self.later, "GET", "/v1/models/later/two").status, 200)
            self.refused(404, "model_not_found", "GET", "/v1/models/later/two", key=self.alder, param="model")
        finally:
            self.ask(self.root, "POST", "/v1/unload_lora_adapter", {"lora_name": "later/two", "unregister": True})


class Keys(KeyCase):
    def test_wrong_keys(self):
        before = self.metric("http_unauthorized_total")
        right = self.alder
        swapped = right[:3] + right[3:].swapcase()
        wrong = ["", "gk_", "gk", right[:-1], right + "A", right[1:], right[3:], right.upper(), swapped, '"' + right + '"', "root", "only-alder",
                 hashlib.sha256(right.encode()).hexdigest(), "x" * 8000, "\xff\xfe", self.root[:20] + right[20:], right + "," + self.root]
        wrong += [right[:i] + ("x" if right[i] != "x" else "y") + right[i + 1:] for i in range(len(right))]
        for key in wrong:
            for headers in [bearer(key), {"X-Api-Key": key}]:
                reply = self.server.ask("GET", "/v1/models", headers=headers)
                self.assertEqual((reply.status, reply.headers["WWW-Authenticate"]), (401, "Bearer"), key)
                self.assertEqual(reply.json["error"]["code"], "invalid_api_key")
                self.assertNotIn(right, reply.text)
        for headers in [{}, {"Authorization": right}, {"Authorization": "Basic " + right}, {"Cookie": "key=" + right}]:
            self.assertEqual(self.server.ask("GET", "/v1/models", headers=headers).status, 401)
        self.assertEqual(self.server.get(f"/v1/models?api_key={right}").status, 401)
        self.assertEqual(self.metric("http_unauthorized_total") - before, 2 * len(wrong) + 5)
        for headers in [bearer(right), {"X-Api-Key": right}, {"authorization": "bearer  " + right}]:
            self.assertEqual(self.server.ask("GET", "/v1/models", headers=headers).status, 200)
        # A wrong one is not made good by another beside it.
        self.assertEqual(self.server.get("/v1/models", headers={**bearer("gk_wrong"), "X-Api-Key": right}).status, 401)

    def test_shown_once(self):
        reply = self.ask(self.root, "POST", "/v1/keys", {"name": "once", "projects": ["birch", "alder", "birch"]})
        made = reply.json
        self.assertEqual((made["id"], made["object"], made["admin"], made["projects"]), ("once", "key", False, ["alder", "birch"]))
        self.assertRegex(made["key"], r"\Agk_[A-Za-z0-9_-]{43}\Z")
        self.assertEqual(reply.headers["Cache-Control"], "no-store")
        listed = self.ask(self.root, "GET", "/v1/keys")
        self.assertEqual(listed.json["object"], "list")
        self.assertEqual([k["id"] for k in listed.json["data"]], ["later", "once", "only-alder", "only-birch", "root"])
        self.assertEqual({**listed.json["data"][1], "key": made["key"]}, made)
        self.assertEqual((listed.json["data"][4]["admin"], listed.json["data"][4]["projects"]), (True, []))
        for secret in [made["key"], self.root, self.alder]:
            self.assertNotIn(secret[3:], listed.text)
            self.assertNotIn(hashlib.sha256(secret.encode()).hexdigest(), listed.text)
        taken = self.refused(409, "conflict", "POST", "/v1/keys", {"name": "once"})
        self.assertEqual(taken.headers["X-Should-Retry"], "false")
        gone = self.ask(self.root, "DELETE", "/v1/keys/%6fnce")
        self.assertEqual((gone.status, gone.json), (200, {"id": "once", "object": "key", "deleted": True}))
        self.assertEqual(self.ask(made["key"], "GET", "/v1/models").status, 401)
        self.refused(404, "not_found", "DELETE", "/v1/keys/once")

    def test_bodies(self):
        for body, code, param in [({}, "invalid_value", "name"), ({"name": 7}, "invalid_value", "name"), ({"name": None}, "invalid_value", "name"),
                                  ({"name": ""}, "bad_name", None), ({"name": "a b"}, "bad_name", None), ({"name": "../x"}, "bad_name", None),
                                  ({"name": "x" * 129}, "bad_name", None), ({"name": "x", "projects": []}, "invalid_value", "projects"),
                                  ({"name": "x", "projects": None}, "invalid_value", "projects"),
                                  ({"name": "x", "projects": "alder"}, "invalid_value", "projects"),
                                  ({"name": "x", "projects": [1]}, "invalid_value", "projects"),
                                  ({"name": "x", "projects": ["a"] * 257}, "invalid_value", "projects"),
                                  ({"name": "x", "projects": ["alder", "../birch"]}, "bad_name", None),
                                  ({"name": "x", "project": ["alder"]}, "unknown_field", None), ([], "bad_type", None), (b"{", "json_syntax", None)]:
            reply = self.server.ask("POST", "/v1/keys", body, headers={**bearer(self.root), "Content-Type": "application/json"})
            self.assertEqual((reply.status, reply.json["error"]["code"], reply.json["error"]["param"]), (400, code, param), body)
        reply = self.server.ask("POST", "/v1/keys", b'{"name":"x"}', headers={**bearer(self.root), "Content-Type": "text/plain"})
        self.assertEqual(reply.status, 415)
        for path in ["/v1/keys/nobody", "/v1/keys/a%20b", "/v1/keys/" + "x" * 300, "/v1/keys/a/b", "/v1/keys/%1b"]:
            self.refused(404, "not_found", "DELETE", path)
        for method, path, allow in [("DELETE", "/v1/keys", "GET, HEAD, POST, OPTIONS"), ("GET", "/v1/keys/root", "DELETE, OPTIONS"),
                                    ("DELETE", "/v1/models", "GET, HEAD, OPTIONS")]:
            self.assertEqual(self.refused(405, "method_not_allowed", method, path).headers["Allow"], allow)
        self.assertEqual(len(self.ask(self.root, "GET", "/v1/keys").json["data"]), 4)

    def test_many_at_once(self):
        """Of several that make one name one wins, and every key that was told works."""
        replies = in_threads([lambda i=i: self.ask(self.root, "POST", "/v1/keys", {"name": f"t{i % 4}", "projects": ["alder"]}) for i in range(12)])
        self.assertEqual(sorted(r.status for r in replies), [200] * 4 + [409] * 8)
        made = [r.json for r in replies if r.status == 200]
        self.assertEqual(len({m["key"] for m in made}), 4)
        for m in made:
            self.assertEqual(self.ask(m["key"], "GET", "/v1/models").status, 200)
            self.assertEqual(self.ask(self.root, "DELETE", "/v1/keys/" + m["id"]).status, 200)
            self.assertEqual(self.ask(m["key"], "GET", "/v1/models").status, 401)

    def test_last_key_for_everything(self):
        reply = self.refused(409, "last_admin_key", "DELETE", "/v1/keys/root")
        self.assertEqual(reply.headers["X-Should-Retry"], "false")
        second = make_key(self.server, "second", by=self.root)
        self.assertEqual(self.ask(second, "GET", "/v1/keys").status, 200)
        self.assertEqual(self.ask(second, "DELETE", "/v1/keys/second").status, 200)  # its own
        self.assertEqual(self.ask(second, "GET", "/v1/keys").status, 401)


class Removal(KeyCase):
    args = ["--ctx", "65536", "--slots", "2"]

    def test_stream_goes_on(self):
        key = make_key(self.server, "short", ["birch"], by=self.root)
        with self.server.socket() as s:
            s.sendall(request_bytes(LONG, extra=f"X-Api-Key: {key}\r\n"))
            self.assertIn(b"200 OK", s.recv(4096))
            self.assertEqual(self.ask(self.root, "DELETE", "/v1/keys/short").status, 200)
            self.assertEqual(self.ask(key, "GET", "/v1/models").status, 401)
            self.assertEqual(self.metric("answers_running"), 1)
            more = 0
            while more < 200000:
                piece = s.recv(65536)
                self.assertTrue(piece)
                self.assertNotIn(b"error", piece)
                more += len(piece)
        wait_until(lambda: self.metric("answers_running") == 0, "the end of all answers")


class Lives(unittest.TestCase):
    """From the first key to the last, over restarts."""

    def setUp(self):
        self.own = tempfile.TemporaryDirectory()
        self.server = None

    def tearDown(self):
        if self.server:
            self.server.close()
            self.assertNotIn("Sanitizer", self.server.log())
        self.own.cleanup()

    def start(self, *args, env=None):
        if self.server:
            self.assertEqual(self.server.stop(), 0, self.server.log())
        self.server = Server(*args, folder=self.own.name, env=env)
        return self.server

    def status(self, key=None, method="GET", path="/v1/models", body=None):
        reply = self.server.ask(method, path, body, headers=bearer(key) if key else None)
        return reply.status if reply.status == 200 else (reply.status, reply.json["error"]["code"])

    def test_first_to_last(self):
        server = self.start("--log-level", "debug")
        self.assertEqual(self.status(), 200)
        self.assertEqual(self.status(path="/v1/keys"), 200)
        self.assertEqual(self.status("gk_whatever"), 200)  # nobody asks yet
        self.assertEqual(self.status(method="POST", path="/v1/keys", body={"name": "a", "projects": ["alder"]}), (409, "admin_key_first"))
        root = make_key(server, "root")
        self.assertEqual(self.status(), (401, "invalid_api_key"))
        self.assertEqual(self.status(path="/health"), 200)
        self.assertEqual(self.status(root), 200)
        alder = make_key(server, "a", ["alder"], by=root)
        server = self.start("--log-level", "debug")  # a restart keeps them
        self.assertEqual(self.status(), (401, "invalid_api_key"))
        self.assertEqual(self.status(root, path="/metrics"), 200)
        self.assertEqual(self.status(alder), 200)
        self.assertEqual(self.status(alder, path="/metrics"), (403, "admin_key_needed"))
        # Another address needs no more than that.
        server = self.start("--host", "0.0.0.0", "--log-level", "debug")
        self.assertEqual(self.status(), (401, "invalid_api_key"))
        self.assertEqual(self.status(alder), 200)
        self.assertEqual(self.status(root, "DELETE", "/v1/keys/root"), (409, "last_admin_key"))
        self.assertEqual(self.status(root, "DELETE", "/v1/keys/a"), 200)
        self.assertEqual(self.status(root, "DELETE", "/v1/keys/root"), (409, "last_admin_key"))  # then it would be open to all
        # A key by option is one for everything, so none of the registry's need be.
        server = self.start(env={"GRAFT_API_KEY": "correct-horse"})
        self.assertEqual(self.status(root, path="/v1/keys"), 200)
        self.assertEqual(self.status("correct-horse", path="/v1/keys"), 200)
        self.assertEqual(self.status("correct-horse", "DELETE", "/v1/keys/root"), 200)
        self.assertEqual(self.status(root), (401, "invalid_api_key"))
        birch = make_key(server, "b", ["birch"], by="correct-horse")
        self.assertEqual(self.status(birch), 200)
        # Only keys for projects are left: they are asked for all the same.
        server = self.start("--log-level", "debug")
        self.assertEqual(self.status(), (401, "invalid_api_key"))
        self.assertEqual(self.status(birch), 200)
        self.assertEqual(self.status(birch, path="/v1/keys"), (403, "admin_key_needed"))
        server = self.start(env={"GRAFT_API_KEY": "correct-horse"})
        self.assertEqual(self.status("correct-horse", "DELETE", "/v1/keys/b"), 200)
        server = self.start("--log-level", "debug")
        self.assertEqual(self.status(), 200)  # as it was
        self.assertEqual(self.status(path="/v1/keys"), 200)
        # On this machine's own address the last one may go.
        root2 = make_key(server, "root")
        self.assertEqual(self.status(), (401, "invalid_api_key"))
        self.assertEqual(self.status(root2, "DELETE", "/v1/keys/root"), 200)
        self.assertEqual(self.status(), 200)
        self.nowhere([root, alder, birch, root2, "correct-horse"])

    def nowhere(self, secrets, running=False):
        """No file that the server wrote holds a secret: registry, log of SQLite, backup, log."""
        files = [f for f in Path(self.own.name).iterdir() if f.is_file()]
        names = {f.name for f in files}
        self.assertLessEqual({"registry.db", "registry.db.backup" if not running else "registry.db-wal", "log"}, names)
        for f in files:
            data = f.read_bytes()
            for s in secrets:
                self.assertNotIn(s.removeprefix("gk_").encode(), data, f.name)
        return files

    def test_secret_is_nowhere(self):
        server = self.start("--log-level", "debug")
        root = make_key(server, "root")
        made = [root] + [make_key(server, f"k{i}", ["alder"], by=root) for i in range(20)]
        for key in made:
            self.assertEqual(self.status(key), 200)
        self.assertEqual(self.status(made[3], path="/metrics"), (403, "admin_key_needed"))
        self.assertEqual(self.status(made[3] + "x"), (401, "invalid_api_key"))
        server.ask("DELETE", f"/v1/keys/{made[5]}", headers=bearer(root))  # one that is mistaken for a name
        server.get("/v1/models?key=" + made[6])
        running = self.nowhere([m for m in made if m != made[5]], running=True)
        wal = next(f for f in running if f.name == "registry.db-wal").read_bytes()
        self.assertIn(hashlib.sha256(root.encode()).hexdigest().encode(), wal)  # or this looks in the wrong place
        self.assertEqual(server.stop(), 0)
        self.nowhere([m for m in made if m != made[5]])

    def test_address_is_refused_before_the_model(self):
        folder = Path(self.own.name)
        done = subprocess.run([GRAFT, "serve", "-m", folder / "none.gguf", "--registry", folder / "registry.db", "--host", "0.0.0.0", "--port", "0"],
                              capture_output=True, timeout=TIMEOUT, text=True)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("0.0.0.0 can be reached from elsewhere, and there is no key", done.stderr)
        done = subprocess.run([GRAFT, "serve", "-m", BASE, "--registry", folder / "registry.db", "--host", "0.0.0.0", "--port", "0",
                               "--adapters", folder / "none"], capture_output=True, timeout=TIMEOUT, text=True)
        self.assertEqual(done.returncode, 1, done.stderr)


if __name__ == "__main__":
    if not GRAFT:
        sys.exit("GRAFT_BIN must name the graft binary")
    unittest.main()
