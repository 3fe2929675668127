#!/usr/bin/env python3
"""Tests of Ollama's API on `graft serve`: every call, its shapes, its errors, and how long adapters stay in memory.

GRAFT_BIN names the binary (required). The base is the tiny one of tests/oracle/golden. Python's standard library only.
"""
import datetime
import json
import sys
import tempfile
import time
import unittest
from pathlib import Path

from serving import ADAPTERS, BASE, GRAFT, PROMPT, Case, RoomCase, Server, request_bytes, run_answer, wait_until

CHAT, GENERATE, EMBED = "/api/chat", "/api/generate", "/api/embed"
MESSAGES = [{"role": "user", "content": "abc"}]
# Greedy, and without the penalty that Ollama has by default: what `graft run` answers.
PLAIN = {"temperature": 0, "repeat_penalty": 1, "num_predict": 8}
END = ["done_reason", "total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration"]
UNKNOWN = "0" * 64


class Ollama(Case):
    def ask(self, path, **body):
        body = {"model": "alder", "stream": False, "options": PLAIN, **body}
        return self.good("POST", path, body).json

    def chat(self, **body):
        return self.ask(CHAT, **{"messages": MESSAGES, **body})

    def generate(self, **body):
        return self.ask(GENERATE, **{"prompt": "abc", **body})

    def lines(self, path, **body):
        body = {"model": "alder", "options": PLAIN, **body}
        reply = self.good("POST", path, body)
        self.assertEqual(reply.headers["Content-Type"], "application/x-ndjson")
        self.assertTrue(reply.text.endswith("}\n"))
        return [json.loads(line) for line in reply.text.splitlines()]

    def refuse(self, status, text, path, body, method="POST", **more):
        """An error of Ollama's shape, which holds the text."""
        reply = self.server.ask(method, path, body, **more)
        self.assertEqual(reply.status, status, reply.text)
        self.assertEqual(reply.headers["Content-Type"], "application/json")
        self.assertEqual(list(reply.json), ["error"])
        self.assertIsInstance(reply.json["error"], str)
        self.assertIn(text, reply.json["error"])
        return reply

    def assert_time(self, text, about_now=True):
        self.assertRegex(text, r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z\Z")
        when = datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=datetime.timezone.utc)
        if about_now:
            self.assertLess(abs((datetime.datetime.now(datetime.timezone.utc) - when).total_seconds()), 3600)

    def memory(self):
        return {m["model"]: m for m in self.good("GET", "/api/ps").json["models"]}


class Answers(Ollama):
    def check_end(self, answer):
        self.assertIs(answer["done"], True)
        for key in END[1:]:
            self.assertIsInstance(answer[key], int, key)
            self.assertGreaterEqual(answer[key], 0, key)
        self.assertGreater(answer["total_duration"], 1000)  # nanoseconds
        self.assertLess(answer["total_duration"], 10 ** 12)
        self.assertGreaterEqual(answer["total_duration"], answer["eval_duration"] + answer["prompt_eval_duration"])
        self.assertEqual(answer["eval_count"], 8)
        self.assertEqual((answer["adapter"], answer["fallback"]), ("alder", None))
        self.assertRegex(answer["adapter_generation"], r"\A[0-9a-f]{64}\Z")

    def test_chat(self):
        answer = self.chat()
        self.assertEqual(list(answer)[:5], ["model", "created_at", "message", "done", "done_reason"])
        self.assertEqual((answer["model"], answer["done_reason"]), ("alder", "length"))
        self.assert_time(answer["created_at"])
        self.assertEqual(answer["message"], {"role": "assistant", "content": run_answer("abc", "alder", chat=True)["text"]})
        self.check_end(answer)

    def test_generate(self):
        answer = self.generate()
        self.assertEqual(list(answer)[:5], ["model", "created_at", "response", "done", "done_reason"])
        self.assertEqual(answer["response"], run_answer("abc", "alder", chat=True)["text"])  # as the only message of a chat
        self.check_end(answer)
        self.assertEqual(self.generate(raw=True)["response"], run_answer("abc", "alder")["text"])
        with_system = self.generate(system="be brief")
        same = self.chat(messages=[{"role": "system", "content": "be brief"}, *MESSAGES])
        self.assertEqual(with_system["response"], same["message"]["content"])
        self.assertEqual(with_system["prompt_eval_count"], same["prompt_eval_count"])
        self.assertGreater(same["prompt_eval_count"], answer["prompt_eval_count"])

    def test_streams(self):
        """By default."""
        for path, body in [(CHAT, {"messages": MESSAGES}), (GENERATE, {"prompt": "abc"})]:
            for extra in [{}, {"stream": True}, {"stream": None}]:
                *pieces, last = self.lines(path, **body, **extra)
                self.assertGreaterEqual(len(pieces), 1)
                for p in pieces:
                    self.assertEqual((p["model"], p["done"]), ("alder", False))
                    self.assertFalse(set(p) & set(END))
                    self.assert_time(p["created_at"])
                said = [p["message"]["content"] if path == CHAT else p["response"] for p in [*pieces, last]]
                self.assertEqual("".join(said), run_answer("abc", "alder", chat=True)["text"])
                self.assertEqual(said[-1], "")
                self.check_end(last)
                if path == CHAT:
                    self.assertEqual({p["message"]["role"] for p in [*pieces, last]}, {"assistant"})

    def test_headers(self):
        reply = self.good("POST", CHAT, {"model": "alder", "messages": MESSAGES, "options": PLAIN})
        last = json.loads(reply.text.splitlines()[-1])
        self.assertEqual(reply.headers["X-Graft-Adapter-Generation"], last["adapter_generation"])

    def test_models(self):
        for model, name in [("alder", "alder"), ("alder:latest", "alder"), ("llama:birch", "birch"), ("llama", None), ("llama:latest", None)]:
            answer = self.generate(model=model, prompt=PROMPT, raw=True)
            self.assertEqual(answer["response"], run_answer(PROMPT, name)["text"], model)
            self.assertEqual((answer["model"], answer["adapter"]), (model, name))
        by_field = self.generate(model="llama", prompt=PROMPT, raw=True, lora=[{"name": "alder"}])
        self.assertEqual(by_field["response"], run_answer(PROMPT, "alder")["text"])

    def test_done_reasons(self):
        body = {"prompt": PROMPT, "raw": True}
        text = self.generate(**body, options={**PLAIN, "num_predict": 200})["response"]
        stop = text[30:32]
        for value in [stop, [stop], ["never in it", stop]]:
            answer = self.generate(**body, options={**PLAIN, "num_predict": 200, "stop": value})
            self.assertEqual((answer["response"], answer["done_reason"]), (text[:text.index(stop)], "stop"))
        for endless in [-1, -2, 0]:  # up to the context's end
            answer = self.generate(**body, options={**PLAIN, "num_predict": endless, "ignore_eos": True})
            self.assertEqual((answer["prompt_eval_count"] + answer["eval_count"], answer["done_reason"]), (512, "length"))

    def test_options(self):
        """Defaults are Ollama's, and each option arrives."""
        def answers(**options):
            return self.generate(prompt=PROMPT, raw=True, options={"num_predict": 40, "seed": 5, **options})["response"]

        usual = answers()
        explicit = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0, "repeat_penalty": 1.1, "repeat_last_n": 64, "presence_penalty": 0,
                    "frequency_penalty": 0}
        self.assertEqual(answers(**explicit), usual)
        for other in [{"temperature": 8}, {"top_k": 1}, {"top_p": 0.01}, {"min_p": 0.9}, {"repeat_penalty": 2}, {"presence_penalty": 2},
                      {"frequency_penalty": 2}, {"seed": 6}, {"repeat_last_n": 0}]:
            self.assertNotEqual(answers(**other), usual, other)
        self.assertEqual(answers(top_k=-1, temperature=4), answers(top_k=0, temperature=4))
        self.assertEqual(answers(repeat_last_n=-1), answers(repeat_last_n=512))
        self.assertGreater(len({answers(seed=-1, temperature=4) for _ in range(4)}), 1)
        self.assertEqual(answers(num_ctx=99999, num_keep=5, num_batch=2, num_gpu=1, num_thread=8, numa=False, use_mmap=True, mirostat=0,
                                 unheard_of=1), usual)

    def test_format(self):
        schema = {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", "y"]}}, "required": ["a", "b"]}
        options = {"num_predict": 100, "temperature": 2, "seed": 3}
        for call in [lambda **f: self.chat(**f)["message"]["content"], lambda **f: self.generate(**f)["response"]]:
            found = json.loads(call(format=schema, options=options))
            self.assertEqual(sorted(found), ["a", "b"])
            self.assertEqual(call(format="json", options={**options, "num_predict": 1}), "{")
            self.assertEqual(call(format=""), call())
        for value in ["xml", 5, [], True]:
            self.refuse(400, "format", CHAT, {"model": "alder", "messages": MESSAGES, "format": value})
        self.refuse(400, "format", CHAT, {"model": "alder", "messages": MESSAGES, "format": {"type": "string", "pattern": "a"}})

    def test_logprobs(self):
        for path, body in [(CHAT, {"messages": MESSAGES}), (GENERATE, {"prompt": "abc"})]:
            tokens = self.ask(path, logprobs=True, top_logprobs=2, **body)["logprobs"]
            self.assertEqual(len(tokens), 8)
            for t in tokens:
                self.assertEqual(sorted(t), ["bytes", "logprob", "token", "top_logprobs"])
                self.assertEqual(len(t["top_logprobs"]), 2)
                self.assertEqual(t["logprob"], t["top_logprobs"][0]["logprob"])  # greedy
            pieces = self.lines(path, logprobs=True, top_logprobs=2, **body)
            self.assertEqual([t for p in pieces for t in p.get("logprobs", [])], tokens)
            self.assertNotIn("logprobs", self.ask(path, **body))
        self.refuse(400, "top_logprobs", CHAT, {"model": "alder", "messages": MESSAGES, "top_logprobs": 2})

    def test_ignored(self):
        usual = self.chat()["message"]
        self.assertEqual(self.chat(think=False, tools=[], keep_alive=None, format=None, unheard_of=1)["message"], usual)
        self.assertEqual(self.chat(messages=[{"role": "user", "content": "abc", "images": [], "tool_calls": []}])["message"], usual)
        self.assertEqual(self.generate(template="", suffix="", context=[], images=[])["response"], usual["content"])

    def test_refused(self):
        chat = {"model": "alder", "messages": MESSAGES}
        for key, value, text in [("tools", [{"type": "function"}], "does not support tools"), ("think", True, "does not support thinking"),
                                 ("think", "high", "does not support thinking"), ("messages", "a", "messages"), ("messages", [5], "messages"),
                                 ("messages", [{"role": "tool", "content": "x"}], "roles"), ("messages", [{"role": "user"}], "content"),
                                 ("messages", [{"role": "user", "content": "a", "images": ["x"]}], "images"), ("stream", "no", "stream"),
                                 ("options", [], "options"), ("options", {"temperature": "hot"}, "temperature"), ("options", {"top_p": 2}, "top_p"),
                                 ("options", {"num_predict": 1.5}, "num_predict"), ("options", {"stop": [""]}, "stop"),
                                 ("options", {"seed": "x"}, "seed"), ("fallback", "never", "fallback"), ("logprobs", 3, "logprobs")]:
            with self.subTest(key=key, value=value):
                self.refuse(400, text, CHAT, {**chat, key: value})
        for key, value, text in [("suffix", "x", "insert"), ("images", ["x"], "images"), ("template", "{{ .Prompt }}", "template"),
                                 ("context", [1, 2], "context"), ("prompt", 5, "prompt"), ("raw", 1, "raw"), ("system", 5, "system")]:
            with self.subTest(key=key, value=value):
                self.refuse(400, text, GENERATE, {"model": "alder", "prompt": "a", key: value})
        self.refuse(400, "raw", GENERATE, {"model": "alder", "prompt": "a", "raw": True, "system": "x"})
        self.refuse(400, "fit", GENERATE, {"model": "alder", "prompt": "a" * 5000})

    def test_unknown_models(self):
        for path, body in [(CHAT, {"messages": MESSAGES}), (GENERATE, {"prompt": "a"}), (GENERATE, {}), (EMBED, {"input": "a"}),
                           ("/api/embeddings", {"prompt": "a"}), ("/api/show", {})]:
            for name in ["elm", "elm:latest", "alder:7b", "a b"]:
                self.assertEqual(self.refuse(404, "not found", path, {"model": name, **body}).json["error"], f"model '{name}' not found")
            for body_without in [body, {**body, "model": ""}, {**body, "model": None}]:
                self.refuse(400, "model is required", path, body_without)
            self.refuse(400, "string", path, {**body, "model": 5})

    def test_requests_that_are_none(self):
        js = {"Content-Type": "application/json"}
        self.refuse(400, "JSON", CHAT, b"{", headers=js)
        self.refuse(400, "object", CHAT, b"[]", headers=js)
        self.refuse(404, "path", "/api/nothing", None, method="GET")
        self.assertEqual(self.refuse(405, "POST", CHAT, None, method="GET").headers["Allow"], "POST, OPTIONS")
        for kind in ["application/x-www-form-urlencoded", "text/plain"]:  # curl's own, a page's
            self.refuse(415, "application/json", CHAT, b'{"model":"alder"}', headers={"Content-Type": kind})
        self.refuse(403, "Host", "/api/tags", None, method="GET", headers={"Host": "evil.example"})


class Failing(Ollama):
    args = ["--ctx", "65536", "--slots", "2", "--queue", "1", "--deadline-s", "3"]
    LONG = {"model": "alder", "prompt": "abc", "options": {"temperature": 0, "ignore_eos": True}}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        broken = cls.server.adapters / "cedar/adapter_model.safetensors"
        broken.write_bytes(broken.read_bytes()[:-100])

    def test_before_and_after_the_first_token(self):
        self.refuse(504, "3 s", GENERATE, {**self.LONG, "stream": False})
        lines = [json.loads(line) for line in self.good("POST", GENERATE, self.LONG).text.splitlines()]
        self.assertEqual(list(lines[-1]), ["error"])
        self.assertIn("3 s", lines[-1]["error"])
        self.assertTrue(all("error" not in line for line in lines[:-1]))
        self.settled()

    def test_client_leaves(self):
        before = self.server.metric("answers_cancelled_total")
        for wait_for in [b"", b'"done":false']:
            s = self.server.socket()
            s.sendall(request_bytes(self.LONG, path=GENERATE))
            seen = b""
            while wait_for not in seen:
                seen += s.recv(65536)
            s.close()
            self.settled()
        wait_until(lambda: self.server.metric("answers_cancelled_total") == before + 2, "both to be cancelled")

    def test_full_queue(self):
        busy = [self.server.socket() for _ in range(3)]
        for s in busy:
            s.sendall(request_bytes(self.LONG, path=GENERATE))
        wait_until(lambda: self.server.metric("answers_running") == 3, "three to run or wait")
        self.assertGreater(int(self.refuse(503, "at most", GENERATE, self.LONG).headers["Retry-After"]), 0)
        for s in busy:
            s.close()
        self.settled()

    def test_fallback(self):
        answer = self.generate(model="cedar", options={"num_predict": 2})
        self.assertIn(answer["fallback"]["code"], ["changed_on_disk", "truncated"])
        self.assertIsNone(answer["adapter_generation"])
        for body in [{"prompt": "a", "fallback": "error"}, {}]:  # asked for, or only to be loaded
            reply = self.server.post(GENERATE, {"model": "cedar", **body})
            self.assertIn(reply.status, [409, 422], reply.text)
            self.assertIsInstance(reply.json["error"], str)


class Embeddings(Ollama):
    def openai(self, input, model="alder"):
        return [d["embedding"] for d in self.good("POST", "/v1/embeddings", {"model": model, "input": input}).json["data"]]

    def assert_near(self, a, b):
        self.assertEqual(len(a), len(b))
        self.assertTrue(all(abs(x - y) < 2e-3 for x, y in zip(a, b)))

    def test_embed(self):
        answer = self.ask(EMBED, input=["What?", "abc"])
        self.assertEqual(list(answer)[:2], ["model", "embeddings"])
        self.assertEqual(answer["model"], "alder")
        for found, wanted in zip(answer["embeddings"], self.openai(["What?", "abc"])):
            self.assert_near(found, wanted)
        for key in ["total_duration", "load_duration", "prompt_eval_count"]:
            self.assertIsInstance(answer[key], int)
        self.assertGreater(answer["total_duration"], 1000)
        one = self.ask(EMBED, input="What?")
        self.assert_near(one["embeddings"][0], answer["embeddings"][0])
        self.assertEqual(answer["prompt_eval_count"], one["prompt_eval_count"] + self.ask(EMBED, input="abc")["prompt_eval_count"])

    def test_truncate(self):
        cut = self.ask(EMBED, input=["a" * 5000, "b"])
        self.assertEqual(cut["prompt_eval_count"], 512 + self.ask(EMBED, input="b")["prompt_eval_count"])
        self.assert_near(self.ask(EMBED, input="a" * 200000)["embeddings"][0], cut["embeddings"][0])  # far beyond
        self.assert_near(self.ask(EMBED, input="ä" * 100001)["embeddings"][0], self.ask(EMBED, input="ä" * 600)["embeddings"][0])
        self.refuse(400, "fit", EMBED, {"model": "alder", "input": "a" * 5000, "truncate": False})
        self.refuse(400, "truncate", EMBED, {"model": "alder", "input": "a", "truncate": "yes"})

    def test_nothing(self):
        for value in ["", [], None]:
            self.assertEqual(self.ask(EMBED, input=value), {"model": "alder", "embeddings": []})
        self.assertEqual(len(self.ask(EMBED, input=["", "a"])["embeddings"]), 2)
        self.assertEqual(self.ask("/api/embeddings", prompt="")["embedding"], [])

    def test_old_call(self):
        answer = self.ask("/api/embeddings", prompt="What?")
        self.assertEqual(list(answer), ["embedding"])
        length = sum(x * x for x in answer["embedding"]) ** 0.5
        self.assertGreater(abs(length - 1), 0.1)  # not normalized
        self.assert_near([x / length for x in answer["embedding"]], self.openai("What?")[0])

    def test_refused(self):
        for value in [5, {}, True, [5], [[1]], ["a", None], ["a"] * 2049]:
            self.refuse(400, "input", EMBED, {"model": "alder", "input": value})
        self.refuse(400, "dimensions", EMBED, {"model": "alder", "input": "a", "dimensions": 3})
        self.refuse(400, "prompt", "/api/embeddings", {"model": "alder", "prompt": ["a"]})


class Models(Ollama):
    def check_details(self, m, adapter):
        self.assertEqual(sorted(m["details"]), ["families", "family", "format", "parameter_size", "parent_model", "quantization_level"])
        self.assertEqual((m["details"]["parent_model"], m["details"]["format"]), ("llama", "peft") if adapter else ("", "gguf"))
        self.assertEqual((m["details"]["family"], m["details"]["families"]), ("llama", ["llama"]))

    def test_tags(self):
        self.generate(model="birch")
        models = self.good("GET", "/api/tags").json["models"]
        self.assertEqual([m["name"] for m in models], ["llama:latest", *(f"{a}:latest" for a in sorted(ADAPTERS))])
        generations = {a["id"] + ":latest": a["generation"] for a in self.good("GET", "/v1/lora_adapters").json["data"]}
        for m in models:
            self.assertEqual(m["name"], m["model"])
            self.assert_time(m["modified_at"], about_now=False)
            self.check_details(m, m["name"] != "llama:latest")
            self.assertRegex(m["digest"], r"\A[0-9a-f]{64}\Z")
        self.assertEqual(models[0]["size"], BASE.stat().st_size)
        self.assertNotEqual(models[0]["digest"], UNKNOWN)
        for m in models[1:]:
            path = self.server.adapters / m["name"].split(":")[0] / "adapter_model.safetensors"
            self.assertEqual(m["size"], path.stat().st_size)
            self.assertEqual(m["digest"], generations[m["name"]] or UNKNOWN)
        self.assertNotEqual(models[2]["digest"], UNKNOWN)

    def test_ps(self):
        self.assertNotIn("cedar:latest", self.memory())
        self.generate(model="cedar")
        memory = self.memory()
        rows = {a["id"] + ":latest": a for a in self.good("GET", "/v1/lora_adapters").json["data"]}
        cedar = memory["cedar:latest"]
        self.assertEqual(sorted(cedar), ["context_length", "details", "digest", "expires_at", "model", "name", "size", "size_vram"])
        self.assertEqual((cedar["size"], cedar["size_vram"]), (rows["cedar:latest"]["bytes"],) * 2)
        self.assertEqual((cedar["digest"], cedar["context_length"]), (rows["cedar:latest"]["loaded_generation"], 512))
        self.assertEqual(cedar["expires_at"], "9999-12-31T23:59:59Z")
        self.check_details(cedar, True)
        self.check_details(memory["llama:latest"], False)
        self.assertGreater(memory["llama:latest"]["size"], BASE.stat().st_size // 2)

    def test_show(self):
        for body in [{"model": "alder"}, {"name": "alder"}, {"model": "alder:latest", "verbose": True}]:
            shown = self.good("POST", "/api/show", body).json
            self.assertEqual(list(shown), ["license", "modelfile", "parameters", "template", "details", "model_info", "capabilities", "modified_at"])
            self.check_details(shown, True)
            self.assertEqual(shown["modelfile"], "FROM llama\nADAPTER alder\n")
            info = shown["model_info"]
            self.assertEqual((info["general.architecture"], info["general.type"], info["adapter.type"]), ("llama", "adapter", "lora"))
            self.assertEqual((info["llama.context_length"], info["llama.embedding_length"]), (512, 64))
            self.assertEqual(shown["capabilities"], ["completion", "embedding"])
        base = self.good("POST", "/api/show", {"model": "llama"}).json
        self.check_details(base, False)
        self.assertEqual((base["modelfile"], base["model_info"]["general.type"]), ("FROM llama\n", "model"))

    def test_version(self):
        self.assertRegex(self.good("GET", "/api/version").json["version"], r"\A\d+\.\d+\.\d+\Z")

    def test_elsewhere(self):
        for method, path in [("POST", "/api/create"), ("POST", "/api/pull"), ("POST", "/api/push"), ("POST", "/api/copy"),
                             ("DELETE", "/api/delete"), ("POST", "/api/blobs/sha256:00")]:
            self.refuse(501, "graft", path, {"model": "x"}, method=method)
        self.assertEqual(self.server.ask("HEAD", "/api/blobs/sha256:00").status, 501)


class KeepAlive(Ollama):
    def tearDown(self):
        for name in ADAPTERS:  # nothing said of any, and none in memory
            self.server.post("/v1/unload_lora_adapter", {"lora_name": name})

    def loaded(self, name):
        return f"{name}:latest" in self.memory()

    def gone(self, name):
        wait_until(lambda: not self.loaded(name), f"{name} to leave memory")

    def load(self, **body):
        return self.good("POST", GENERATE, {"model": "alder", **body}).json

    def test_load_and_unload(self):
        for path, body in [(GENERATE, {}), (GENERATE, {"prompt": ""}), (CHAT, {}), (CHAT, {"messages": []})]:
            answer = self.good("POST", path, {"model": "alder", **body}).json
            self.assertEqual((answer["done"], answer["done_reason"]), (True, "load"))
            self.assertEqual(answer.get("response", answer.get("message")), "" if path == GENERATE else {"role": "assistant", "content": ""})
            self.assertTrue(self.loaded("alder"))
            answer = self.good("POST", path, {"model": "alder", "keep_alive": 0, **body}).json
            self.assertEqual((answer["done"], answer["done_reason"]), (True, "unload"))
            self.gone("alder")
        self.assertEqual(self.good("POST", GENERATE, {"model": "llama"}).json["done_reason"], "load")
        self.assertEqual(self.good("POST", GENERATE, {"model": "llama", "keep_alive": 0}).json["done_reason"], "unload")
        self.assertTrue(self.loaded("llama"))

    def test_after_the_reply(self):
        for call in [lambda: self.generate(keep_alive=0), lambda: self.chat(keep_alive="0s"), lambda: self.ask(EMBED, input="a", keep_alive=0),
                     lambda: self.lines(GENERATE, prompt="a", keep_alive="0"), lambda: self.ask("/api/embeddings", prompt="a", keep_alive=0)]:
            call()
            self.gone("alder")
        self.generate()  # what was said is over: this one stays
        time.sleep(0.6)
        self.assertTrue(self.loaded("alder"))

    def test_idle(self):
        self.generate(keep_alive="300ms")
        self.generate(model="birch", keep_alive="1h")
        self.generate(model="cedar")
        self.gone("alder")
        memory = self.memory()
        self.assertEqual(memory["cedar:latest"]["expires_at"], "9999-12-31T23:59:59Z")
        left = datetime.datetime.strptime(memory["birch:latest"]["expires_at"], "%Y-%m-%dT%H:%M:%S.%fZ") - datetime.datetime.utcnow()
        self.assertTrue(0 < left.total_seconds() <= 3600, left)
        self.generate(model="birch", keep_alive=0.2)  # the last word counts
        self.gone("birch")

    def test_not_while_used(self):
        """An answer that takes longer than its keep_alive keeps what it uses."""
        body = {"model": "alder", "prompt": "abc", "raw": True, "keep_alive": "1ms", "options": {**PLAIN, "num_predict": 400, "ignore_eos": True}}
        for _ in range(3):
            self.assertEqual(self.good("POST", GENERATE, {**body, "stream": False}).json["fallback"], None)
        self.gone("alder")

    def test_for_ever(self):
        for value in [-1, "-1m", -0.5]:
            self.generate(keep_alive=value)
            self.assertEqual(self.memory()["alder:latest"]["expires_at"], "9999-12-31T23:59:59Z")
            wait_until(lambda: self.row("alder")["leases"] == 1, "the lease to be taken")
            self.assertFalse(self.row("alder")["pinned"])  # not written down: for as long as the server runs
            self.load(keep_alive=0)
            self.gone("alder")
        self.generate(keep_alive=-1)
        wait_until(lambda: self.row("alder")["leases"] == 1, "the lease to be taken")
        # Unloading by hand goes before.
        self.good("POST", "/v1/unload_lora_adapter", {"lora_name": "alder"})
        self.gone("alder")
        wait_until(lambda: self.row("alder")["memory"] == "absent", "the lease to be given back")
        self.generate()
        self.assertEqual(self.row("alder")["leases"], 0)

    def row(self, name):
        return {a["id"]: a for a in self.good("GET", "/v1/lora_adapters").json["data"]}[name]

    def test_for_ever_follows_a_reload(self):
        self.generate(keep_alive=-1)
        wait_until(lambda: self.row("alder")["leases"] == 1, "the lease to be taken")
        self.good("POST", "/v1/load_lora_adapter", {"lora_name": "alder", "lora_path": str(self.server.adapters / "alder"), "load_inplace": True})
        wait_until(lambda: self.row("alder")["memory"] == "resident" and self.row("alder")["leases"] == 1, "the new version to be held")
        wait_until(lambda: self.good("GET", "/v1/status").json["memory"]["draining"] == 0, "the old version to be let go")
        self.load(keep_alive=0)
        self.gone("alder")

    def test_pinned_stays(self):
        self.good("POST", "/v1/lora_adapters/alder/pin")
        self.generate(keep_alive=0)
        self.assertEqual(self.load(keep_alive=0)["done_reason"], "unload")
        time.sleep(0.6)
        self.assertTrue(self.loaded("alder"))
        self.good("POST", "/v1/lora_adapters/alder/unpin")
        self.gone("alder")

    def test_spellings(self):
        for good in ["5m", "1h30m", "300ms", "1.5h", "100us", "100µs", "2h45m10.5s", "+1s", ".5s", "1.s", "10ns", "0", 0, 0.0, 3600, -1, "-1h", 1e9]:
            with self.subTest(good):
                self.load(model="llama", keep_alive=good)
        for bad in ["", "5", "-1", "m", "5x", "1e3s", "0x1s", "1.2.3s", "5 m", "5m ", " 5m", ".", ".s", "--1s", "1s1", "9" * 400 + "h", True, [], {},
                    1e300]:
            with self.subTest(bad):
                self.refuse(400, "keep_alive", GENERATE, {"model": "llama", "keep_alive": bad})


class IdleUnload(Ollama):
    args = ["--idle-unload-s", "1"]

    def test_for_all(self):
        self.good("POST", "/v1/completions", {"model": "alder", "prompt": "a", "max_tokens": 2})
        self.generate(model="birch", keep_alive=-1)
        self.generate(model="cedar", keep_alive="1h")
        self.assertNotEqual(self.memory()["alder:latest"]["expires_at"], "9999-12-31T23:59:59Z")
        wait_until(lambda: "alder:latest" not in self.memory(), "alder to leave memory")
        self.assertEqual(set(self.memory()), {"llama:latest", "birch:latest", "cedar:latest"})


class WaitingForRoom(RoomCase):
    """A load that waits for room holds up nobody, also not who makes the room."""
    birch = (GENERATE, {"model": "birch"})

    def test_unpin_comes_through(self):
        server = self.start()
        connections = self.waiting(server, [self.birch] * 3)
        self.assertEqual(server.post("/v1/lora_adapters/alder/unpin", {}).status, 200)
        for c in connections:
            reply = c.getresponse()
            self.assertEqual((reply.status, json.loads(reply.read())["done_reason"]), (200, "load"))
        self.assertEqual({a["id"]: a["memory"] for a in server.get("/v1/lora_adapters").json["data"]},
                         {"alder": "absent", "birch": "resident", "cedar": "absent"})

    def test_too_many(self):
        """They count with vLLM's loads."""
        server = self.start()
        connections = self.waiting(server, [self.birch] * 64)
        self.assertEqual(server.post("/v1/lora_adapters/cedar/load", {}).status, 429)
        reply = server.post(GENERATE, {"model": "cedar"})
        self.assertEqual((reply.status, reply.json), (503, {"error": "64 adapters are being loaded already"}))
        self.assertEqual(server.post(GENERATE, {"model": "cedar", "keep_alive": 0}).status, 200)  # loads nothing
        server.post("/v1/lora_adapters/alder/unpin", {})
        self.assertEqual([c.getresponse().status for c in connections], [200] * 64)
        self.assertEqual(server.post(GENERATE, {"model": "cedar"}).status, 200)

    def test_clients_that_leave(self):
        server = self.start()
        self.leave(server, self.waiting(server, [(GENERATE, {"model": "birch", "keep_alive": "1ms"})] * 5))

    def test_end_of_the_server(self):
        def check(reply):
            self.assertEqual((reply.status, json.loads(reply.read())), (503, {"error": "the server is shutting down"}))
        self.end([self.birch] * 3, check)


class Scopes(Ollama):
    """A key for alder sees the base and alder; of birch, in memory and pinned for ever, it learns nothing."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.keys = {}
        cls.key("root", None)
        cls.key("alder", ["alder"])
        assert cls.server.post(GENERATE, {"model": "birch", "keep_alive": -1}, headers=cls.keys["root"]).status == 200

    @classmethod
    def key(cls, name, projects):
        body = {"name": name, **({"projects": projects} if projects else {})}
        reply = cls.server.post("/v1/keys", body, headers=cls.keys.get("root"))
        assert reply.status == 200, reply.text
        cls.keys[name] = {"Authorization": "Bearer " + reply.json["key"]}

    def as_key(self, key, method, path, body=None):
        return self.server.ask(method, path, body, headers=self.keys[key])

    def names(self, key, path):
        return [m["name"] for m in self.as_key(key, "GET", path).json["models"]]

    def test_lists(self):
        self.assertEqual(self.names("alder", "/api/tags"), ["llama:latest", "alder:latest"])
        self.assertEqual(len(self.names("root", "/api/tags")), 4)
        self.as_key("alder", "POST", GENERATE, {"model": "alder"})
        self.assertEqual(self.names("alder", "/api/ps"), ["llama:latest", "alder:latest"])
        self.assertEqual(self.names("root", "/api/ps"), ["llama:latest", "alder:latest", "birch:latest"])

    def test_names(self):
        for path, body in [(CHAT, {"messages": MESSAGES}), (CHAT, {}), (GENERATE, {"prompt": "a"}), (GENERATE, {"keep_alive": 0}),
                           (EMBED, {"input": "a"}), (EMBED, {"input": ""}), ("/api/embeddings", {"prompt": "a"}), ("/api/show", {}), ("/v1/embeddings", {"input": "a"})]:
            for form in ["{}", "{}:latest", "llama:{}", "llama::{}", "{}/default"]:
                other, none = (self.as_key("alder", "POST", path, {"model": form.format(n), **body}) for n in ["birch", "larch"])
                self.assertEqual((other.status, other.text.replace("birch", "larch")), (404, none.text), path)
            self.assertEqual(self.as_key("alder", "POST", path, {"model": "alder", "stream": False, "options": PLAIN, **body}).status, 200, path)
        reply = self.as_key("alder", "POST", CHAT, {"model": "alder", "messages": MESSAGES, "lora": [{"name": "birch"}]})
        self.assertEqual(reply.status, 404)

    def test_every_call_needs_a_key(self):
        for method, path in [("POST", CHAT), ("POST", GENERATE), ("POST", EMBED), ("POST", "/api/embeddings"), ("POST", "/api/show"),
                             ("GET", "/api/tags"), ("GET", "/api/ps"), ("GET", "/api/version"), ("POST", "/api/pull"), ("DELETE", "/api/delete")]:
            reply = self.server.ask(method, path, {"model": "alder"} if method == "POST" else None)
            self.assertEqual((reply.status, list(reply.json)), (401, ["error"]), path)
            self.assertIsInstance(reply.json["error"], str)

    def leases(self, name):
        return {a["id"]: a for a in self.as_key("root", "GET", "/v1/lora_adapters").json["data"]}[name]["leases"]

    def test_for_ever_is_an_admins(self):
        """A project's key keeps the clock from running out, no more; and does not undo what an admin said."""
        keep = lambda key, value: self.assertEqual(self.as_key(key, "POST", GENERATE, {"model": "alder", "keep_alive": value}).status, 200)
        keep("alder", -1)
        time.sleep(0.6)
        self.assertEqual(self.leases("alder"), 0)
        keep("root", -1)
        wait_until(lambda: self.leases("alder") == 1, "the lease to be taken")
        keep("alder", 0)
        time.sleep(0.6)
        self.assertEqual(self.leases("alder"), 1)
        keep("root", "1h")
        wait_until(lambda: self.leases("alder") == 0, "the lease to be given back")
        keep("alder", 0)
        wait_until(lambda: "alder:latest" not in self.names("root", "/api/ps"), "alder to leave memory")


class Stopping(unittest.TestCase):
    def test_held_adapters_do_not_hinder(self):
        with tempfile.TemporaryDirectory() as folder:
            server = Server(folder=folder)
            try:
                self.assertEqual(server.post(GENERATE, {"model": "alder", "keep_alive": -1}).status, 200)
                self.assertEqual(server.stop(), 0)
                self.assertNotIn("Sanitizer", server.log())
            finally:
                server.close()


if __name__ == "__main__":
    if not GRAFT:
        sys.exit("GRAFT_BIN must name the graft binary")
    unittest.main(verbosity=2)
