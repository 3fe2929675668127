#!/usr/bin/env python3
"""Tests of `graft serve` from outside, over sockets: what is answered, what is refused, and what a client can do to it.

GRAFT_BIN names the binary (required). The base is the tiny one of tests/oracle/golden. Python's standard library only.
"""
import json
import os
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

from serving import (ADAPTERS, BASE, GOLDEN, GRAFT, PROMPT, TIMEOUT, Case, RoomCase, Server, in_threads, read_all, request_bytes, run_answer,
                     wait_until)

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "abc"}]
# An answer that goes on for as long as a test needs: the tiny base makes some thousand tokens a second.
LONG = {"model": "alder", "prompt": "abc", "max_tokens": 60000, "temperature": 0, "ignore_eos": True, "stream": True}
LONG_ARGS = ["--ctx", "65536", "--slots", "4"]


class Models(Case):
    def test_list(self):
        reply = self.good("GET", "/v1/models").json
        self.assertEqual(reply["object"], "list")
        self.assertEqual([m["id"] for m in reply["data"]], ["llama", *sorted(ADAPTERS)])
        base, alder = reply["data"][:2]
        self.assertEqual((base["object"], base["root"], base["parent"]), ("model", str(BASE), None))
        self.assertEqual((alder["parent"], alder["root"]), ("llama", str(self.server.adapters / "alder")))
        for m in reply["data"]:
            self.assertIsInstance(m["created"], int)
            self.assertIn("owned_by", m)
            self.assertIn("state", m)

    def test_one(self):
        for path, found in [("llama", "llama"), ("alder", "alder"), ("alder%2Fdefault", "alder"), ("alder/default", "alder"),
                            ("llama:alder", "alder"), ("llama%3A%3Abirch", "birch"), ("alder:latest", "alder"), ("llama:latest", "llama")]:
            self.assertEqual(self.good("GET", f"/v1/models/{path}").json["id"], found, path)
        for path in ["elm", "alder/other", "other:alder", "llama:", "llama:elm", "llama-alder", "alder:", ":latest", "alder/", "%61lder%2F"]:
            self.bad(404, "model_not_found", "GET", f"/v1/models/{path}", param="model")
        self.bad(400, "bad_request", "GET", "/v1/models/a%00b")
        self.bad(400, "bad_request", "GET", "/v1/models/a%ffb")

    def test_names_in_requests(self):
        alone = {name: run_answer(PROMPT, name)["text"] for name in ADAPTERS}
        alone[None] = run_answer(PROMPT)["text"]
        self.assertEqual(len(set(alone.values())), 4, alone)  # or the next lines prove nothing
        for model, name in [("alder", "alder"), ("alder/default", "alder"), ("llama:birch", "birch"), ("llama::cedar", "cedar"),
                            ("birch:latest", "birch"), ("llama", None), ("llama:latest", None)]:
            answer = self.complete(model=model)
            self.assertEqual(answer["choices"][0]["text"], alone[name], model)
            self.assertEqual((answer["adapter"], answer["model"]), (name, model))
            self.assertEqual(answer["adapter_generation"] is None, name is None)
        for path in [COMPLETIONS, CHAT]:
            reply = self.bad(404, "model_not_found", "POST", path, {"model": "elm", "prompt": "a", "messages": MESSAGES}, param="model")
            self.assertEqual(reply.json["error"]["message"], "The model `elm` does not exist.")

    def test_all_at_once_answer_as_alone(self):
        prompts = ["abc", "What?", "x", "Hello there, my friend"]
        wanted = [(name, p) for p in prompts for name in [*ADAPTERS, None]]
        alone = [run_answer(p, name, 24)["text"] for name, p in wanted]
        answers = in_threads([lambda n=name, p=p: self.complete(model=n or "llama", prompt=p, max_tokens=24) for name, p in wanted])
        self.assertEqual([a["choices"][0]["text"] for a in answers], alone)


class OpenAi(Case):
    def test_completion_shape(self):
        answer = self.complete()
        self.assertRegex(answer["id"], r"\Acmpl-.+")
        self.assertEqual(answer["object"], "text_completion")
        choice = answer["choices"][0]
        self.assertEqual((choice["index"], choice["logprobs"], choice["finish_reason"]), (0, None, "length"))
        self.assertEqual(answer["usage"]["prompt_tokens"] + 8, answer["usage"]["total_tokens"])
        self.assertEqual(answer["usage"]["completion_tokens"], 8)
        self.assertIn("cached_tokens", answer["usage"]["prompt_tokens_details"])
        self.assertEqual(answer["timings"]["predicted_n"], 8)
        self.assertEqual(answer["timings"]["prompt_n"] + answer["timings"]["cache_n"], answer["usage"]["prompt_tokens"])
        self.assertIsNone(answer["fallback"])
        self.assertRegex(answer["adapter_generation"], r"\A[0-9a-f]{64}\Z")

    def test_chat_shape(self):
        answer = self.chat()
        self.assertRegex(answer["id"], r"\Achatcmpl-.+")
        self.assertEqual(answer["object"], "chat.completion")
        self.assertEqual(answer["choices"][0]["message"]["role"], "assistant")
        self.assertEqual(answer["choices"][0]["message"]["content"], run_answer("abc", "alder", chat=True)["text"])

    def test_contents(self):
        plain = self.chat(messages=[{"role": "system", "content": "be"}, {"role": "user", "content": "a\nb"}])
        parts = self.chat(messages=[{"role": "developer", "content": "be"},
                                    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}])
        self.assertEqual(plain["usage"], {**parts["usage"], "prompt_tokens_details": plain["usage"]["prompt_tokens_details"]})
        self.assertEqual(plain["choices"], parts["choices"])

    def streamed(self, path, **body):
        body = {"model": "alder", "max_tokens": 8, "temperature": 0, "stream": True, **body}
        reply = self.good("POST", path, body)
        self.assertEqual(reply.headers["X-Accel-Buffering"], "no")
        events = reply.events
        self.assertEqual(events.pop(), "[DONE]")
        chunks = [json.loads(e) for e in events]
        for key in ["id", "created", "model", "object"]:
            self.assertEqual(len({c[key] for c in chunks}), 1, key)
        return chunks

    def test_chat_stream(self):
        chunks = self.streamed(CHAT, messages=MESSAGES)
        self.assertEqual(chunks[0]["object"], "chat.completion.chunk")
        self.assertEqual(chunks[0]["choices"][0]["delta"], {"role": "assistant", "content": ""})
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
        self.assertEqual(text, self.chat()["choices"][0]["message"]["content"])
        self.assertEqual([c["choices"][0]["finish_reason"] for c in chunks], [None] * (len(chunks) - 1) + ["length"])
        self.assertEqual(chunks[-1]["choices"][0]["delta"], {})
        self.assertIn("timings", chunks[-1])
        self.assertEqual(chunks[-1]["adapter"], "alder")
        self.assertTrue(all("usage" not in c for c in chunks))

    def test_stream_usage(self):
        chunks = self.streamed(COMPLETIONS, prompt=PROMPT, stream_options={"include_usage": True})
        self.assertEqual(chunks[-1]["choices"], [])
        self.assertEqual(chunks[-1]["usage"]["completion_tokens"], 8)
        self.assertEqual("".join(c["choices"][0]["text"] for c in chunks[:-1]), self.complete()["choices"][0]["text"])

    def test_several_answers(self):
        answer = self.complete(n=3, prompt=[PROMPT, "one two"], temperature=4, seed=7)
        self.assertEqual([c["index"] for c in answer["choices"]], list(range(6)))
        self.assertGreater(len({c["text"] for c in answer["choices"]}), 2)
        again = self.complete(n=3, prompt=[PROMPT, "one two"], temperature=4, seed=7)
        self.assertEqual(answer["choices"], again["choices"])
        one = self.complete()["usage"]["prompt_tokens"] + self.complete(prompt="one two")["usage"]["prompt_tokens"]
        self.assertEqual(answer["usage"]["prompt_tokens"], one)
        chunks = self.streamed(CHAT, messages=MESSAGES, n=2)
        for index in range(2):
            mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
            self.assertEqual(mine[0]["delta"]["role"], "assistant")
            self.assertEqual(mine[-1]["finish_reason"], "length")

    def test_stop(self):
        text = self.complete(max_tokens=200)["choices"][0]["text"]
        stop = text[30:32]
        for value in [stop, [stop], ["never in it", stop]]:
            choice = self.complete(max_tokens=200, stop=value)["choices"][0]
            self.assertEqual((choice["text"], choice["finish_reason"]), (text[:text.index(stop)], "stop"))

    def test_seed(self):
        texts = [self.complete(temperature=4, seed=s)["choices"][0]["text"] for s in [1, 1, 2, -5, 2 ** 40]]
        self.assertEqual(texts[0], texts[1])
        self.assertEqual(len(set(texts)), 4)

    def test_tokens_as_prompt(self):
        self.assertEqual(self.complete(prompt=[66, 67, 68])["usage"]["prompt_tokens"], 3)
        two = self.complete(prompt=[[66, 67], [68]])
        self.assertEqual(len(two["choices"]), 2)
        self.assertEqual(two["usage"]["prompt_tokens"], 3)
        for prompt in [[264], [-1], [2 ** 33], [1, "a"], [[1], "a", 3], [1.5], [], [[]], {}, 5, None]:
            self.bad(400, "invalid_value", "POST", COMPLETIONS, {"model": "alder", "prompt": prompt}, param="prompt")

    def test_defaults(self):
        self.assertEqual(self.good("POST", COMPLETIONS, {"prompt": "abc", "ignore_eos": True}).json["usage"]["completion_tokens"], 16)
        self.assertEqual(self.good("POST", COMPLETIONS, {"prompt": "abc"}).json["model"], "llama")
        self.assertEqual(self.chat(max_completion_tokens=3, max_tokens=7, ignore_eos=True)["usage"]["completion_tokens"], 3)

    def test_ignored(self):
        want = self.chat()["choices"]
        same = self.chat(user="u", metadata={"a": "b"}, store=True, service_tier="auto", reasoning_effort="low", prompt_cache_key="k",
                         safety_identifier="s", tools=[], tool_choice="none", parallel_tool_calls=True, modalities=["text"],
                         response_format={"type": "text"}, stop=None, seed=None, n=None, logit_bias={}, stream=False, unheard_of=1)
        self.assertEqual(same["choices"], want)

    def test_ranges(self):
        for key, values in {
            "temperature": [-0.1, 101, "1", True, []], "top_p": [-1, 1.1], "min_p": [2], "top_k": [-1, 1.5],
            "presence_penalty": [-3, 3], "frequency_penalty": [2.1], "repeat_penalty": [0], "max_tokens": [-1, 0, 2 ** 31, 1.5, "8"],
            "max_completion_tokens": [0], "n": [0, 65, 10 ** 6], "seed": [0.5, 1e300, "1"], "top_logprobs": [21, -1],
            "stop": [[""], "", ["a"] * 17, 5, [5], "x" * 257, ["a"] * 100000], "stream": ["yes", 1], "fallback": ["never", 1],
            "logit_bias": [{"a": 1}, {"5": 101}, {"99999": 1}, {"5": "x"}, [], {str(i): 0 for i in range(1025)}],
            "model": [5, ["alder"]], "stream_options": [{}], "logprobs": [1, "x"], "response_format": [5, {}, {"type": "xml"}],
            "lora": [{}, [5], [{}], [{"name": "alder", "scale": 1000}], [{"name": "alder", "id": 0}], [{"id": "0"}]],
            "grammar": [5], "messages": [[], None, "a", [5], [{}], [{"role": "user"}], [{"role": "tool", "content": "x"}],
                                         [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
                                         [{"role": "assistant", "content": None, "tool_calls": [{}]}]],
        }.items():
            for value in values:
                body = {"model": "alder", "messages": MESSAGES, "max_tokens": 2, key: value}
                with self.subTest(key=key, value=str(value)[:40]):
                    self.bad(400, "invalid_value", "POST", CHAT, body, param=key)
        # JSON has no NaN, but Python sends it.
        self.bad(400, "json_syntax", "POST", CHAT, {"messages": MESSAGES, "temperature": float("nan")})

    def test_unsupported(self):
        for key, value in [("tools", [{"type": "function"}]), ("tool_choice", "required"), ("functions", [{}]), ("suffix", "x"),
                           ("echo", True), ("audio", {"voice": "x"}), ("modalities", ["audio"]), ("best_of", 3),
                           ("guided_json", {"a": 1}), ("min_tokens", 1), ("stop_token_ids", [5]), ("bad_words", ["a"]), ("typical_p", 0.9),
                           ("typical_p", 0), ("mirostat", 2), ("dynatemp_range", 0.5), ("dry_multiplier", 0.8), ("xtc_probability", 0.5),
                           ("samplers", ["top_k"]), ("top_n_sigma", 1), ("continue_final_message", True), ("add_generation_prompt", False),
                           ("chat_template", "x"), ("chat_template_kwargs", {"enable_thinking": False}), ("adapter", "birch"),
                           ("adapters", ["birch"]), ("n_probs", 1), ("length_penalty", 2), ("echo", 1), ("tool_choice", ["required"])]:
            body = {"model": "alder", "messages": MESSAGES, "prompt": "a", "max_tokens": 2, key: value}
            for path in [CHAT, COMPLETIONS]:
                self.bad(400, "unsupported_parameter", "POST", path, body, param=key)
        self.bad(400, "unsupported_parameter", "POST", "/v1/embeddings", {"model": "alder", "input": "a", "adapter": "birch"}, param="adapter")

    def test_neutral_values_are_no_wishes(self):
        same = self.chat(min_tokens=0, stop_token_ids=[], bad_words=[], typical_p=1, mirostat=0, dynatemp_range=0.0, dry_multiplier=0,
                         xtc_probability=0, samplers=[], top_n_sigma=-1, tfs_z=1.0, continue_final_message=False, add_generation_prompt=True,
                         chat_template="", chat_template_kwargs={}, adapter=None, echo=False, n_probs=0, length_penalty=1,
                         repetition_penalty=None, n_predict=None, json_schema=None, cache_prompt=None)
        self.assertEqual(same["choices"], self.chat()["choices"])
        self.assertEqual(self.chat(tool_choice="auto", modalities=["text"])["choices"], same["choices"])

    def test_other_names(self):
        """What vLLM and llama-server call otherwise."""
        penalty = {"prompt": "aaaaaaaa", "max_tokens": 24}
        self.assertEqual(self.complete(repetition_penalty=5, **penalty)["choices"], self.complete(repeat_penalty=5, **penalty)["choices"])
        self.assertNotEqual(self.complete(repetition_penalty=5, **penalty)["choices"], self.complete(**penalty)["choices"])
        for path, body in [(CHAT, {"messages": MESSAGES}), (COMPLETIONS, {"prompt": "a"})]:
            body = {"model": "alder", "ignore_eos": True, "temperature": 0, **body}
            self.assertEqual(self.good("POST", path, {**body, "n_predict": 3}).json["usage"]["completion_tokens"], 3)
            whole = self.good("POST", path, {**body, "n_predict": -1}).json["usage"]
            self.assertGreater(whole["completion_tokens"], 100)
            for key, more in [("n_predict", {"n_predict": 3, "max_tokens": 3}), ("n_predict", {"n_predict": -1, "max_completion_tokens": 3}),
                              ("n_predict", {"n_predict": 0}), ("n_predict", {"n_predict": -2}), ("repetition_penalty", {"repetition_penalty": 0}),
                              ("repetition_penalty", {"repetition_penalty": 1, "repeat_penalty": 1}), ("cache_prompt", {"cache_prompt": 1}),
                              ("grammar", {"grammar": "root ::= \"a\"", "json_schema": {"const": "a"}}),
                              ("json_schema", {"response_format": {"type": "json_object"}, "json_schema": {"const": "a"}})]:
                self.bad(400, "invalid_value", "POST", path, {**body, "n": 1, **more}, param=key)
        for more in [{}, {"response_format": {"type": "text"}}]:
            self.assertEqual(self.complete(json_schema={"enum": ["one"]}, max_tokens=20, **more)["choices"][0]["text"], '"one"')

    def test_cache_prompt(self):
        def cached(**body):
            return self.complete(prompt="a prompt that no other test has", **body)["usage"]["prompt_tokens_details"]["cached_tokens"]
        cached()
        self.assertGreater(cached(), 0)
        self.assertEqual(cached(cache_prompt=False), 0)
        self.assertGreater(cached(cache_prompt=True), 0)

    def test_bodies(self):
        js = {"Content-Type": "application/json"}
        for body in [b"{", b"[]", b"5", b"null", b"", b"{\"a\":1}x", b"{\"prompt\":\"\xff\"}", b"{\"model\":1,\"model\":2}", b"\0", b"{\"prompt\":\"\\u0000\"}",
                     b"[" * 100000, b"{\"a\":" * 5000, b"{\"n\":1e999999}"]:
            reply = self.server.ask("POST", COMPLETIONS, body, headers=js)
            self.assertEqual(reply.status, 400, body[:20])
            self.assertIn("message", reply.json["error"])
        for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx"]:
            self.bad(415, "unsupported_media_type", "POST", COMPLETIONS, b"{\"prompt\":\"a\"}", headers={"Content-Type": kind})
        for page in ({"Origin": "http://elsewhere"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
            self.bad(403, "origin_refused", "POST", COMPLETIONS, b"{\"prompt\":\"a\"}", headers=page)
        self.bad(415, "unsupported_media_type", "POST", COMPLETIONS, b"{\"prompt\":\"a\"}", headers={**js, "Content-Encoding": "gzip"})
        self.good("POST", COMPLETIONS, b"{\"prompt\":\"a\"}")  # without a type, as litellm asks Ollama's calls
        self.good("POST", COMPLETIONS, b"{\"prompt\":\"a\"}", headers={"Content-Type": "Application/JSON; charset=utf-8"})

    def test_values_are_bounded(self):
        body = b'{"prompt":"a","max_tokens":1,"metadata":[' + b",".join([b"{}"] * 600000) + b"]}"
        self.bad(400, "too_many_values", "POST", COMPLETIONS, body, headers={"Content-Type": "application/json"})
        text = ',[{:' * 200000 + '\\"' * 1000  # in a string they are no values
        self.assertEqual(self.server.post(COMPLETIONS, {"model": "llama", "prompt": "a", "max_tokens": 1, "user": text}).status, 200)

    def test_context_length(self):
        reply = self.bad(400, "context_length_exceeded", "POST", COMPLETIONS, {"model": "alder", "prompt": "a" * 5000})
        self.assertRegex(reply.json["error"]["message"], r"\d+.*\d+")
        self.bad(400, "context_length_exceeded", "POST", COMPLETIONS, {"model": "alder", "prompt": "a" * 3_000_000})

    def test_bad_grammar(self):
        self.bad(400, "bad_grammar", "POST", COMPLETIONS, {"model": "alder", "prompt": "a", "grammar": "root ::= ("})

    def test_grammar_and_json_object(self):
        ended = set()
        answer = self.complete(grammar='root ::= "yes" | "no"', max_tokens=20)
        self.assertIn(answer["choices"][0]["text"], ["yes", "no"])
        self.assertEqual(answer["choices"][0]["finish_reason"], "stop")
        # The tiny base would never close a string by itself.
        ids = {self.complete(logit_bias={str(i): 100}, max_tokens=1)["choices"][0]["text"]: str(i) for i in range(3, 264)}
        for wanted in ['"}', '":1,}', '":[{}]']:
            bias = {ids[c]: 30 for c in wanted}
            for seed in range(8):
                choice = self.complete(response_format={"type": "json_object"}, max_tokens=400, temperature=2, seed=seed, logit_bias=bias)["choices"][0]
                self.assertEqual(choice["text"][0], "{")
                if choice["finish_reason"] == "stop":
                    self.assertIsInstance(json.loads(choice["text"]), dict)
                    ended.add(choice["text"])
        self.assertGreater(len(ended), 3)

    def test_lora_field(self):
        by_name = self.complete(model="llama", lora=[{"name": "alder"}])
        self.assertEqual(by_name["choices"], self.complete()["choices"])
        self.assertEqual(by_name["adapter"], "alder")
        self.assertEqual(self.complete(model="llama", lora=[{"id": 1, "scale": 1}])["choices"], self.complete(model="birch")["choices"])
        self.assertEqual(self.complete(model="llama", lora=[{"name": "alder", "scale": 0}])["choices"], self.complete(model="llama")["choices"])
        both = [self.complete(model="llama", lora=[{"name": "alder"}, {"name": "birch"}]), self.complete(lora=[{"name": "birch"}])]
        self.assertEqual(both[0]["choices"], both[1]["choices"])
        self.bad(404, "model_not_found", "POST", COMPLETIONS, {"prompt": "a", "lora": [{"name": "elm"}]}, param="lora")
        self.bad(404, "model_not_found", "POST", COMPLETIONS, {"prompt": "a", "lora": [{"id": 99}]}, param="lora")
        self.bad(400, "invalid_value", "POST", COMPLETIONS, {"prompt": "a", "lora": [{"id": 0}] * 9}, param="lora")


class Schemas(Case):
    """Small schemas whose every text ends by itself: the tiny base babbles."""

    def answers(self, schema, n=12):
        body = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}, "max_tokens": 400,
                "temperature": 8, "seed": 5, "n": n}
        choices = self.complete(**body)["choices"]
        self.assertEqual({c["finish_reason"] for c in choices}, {"stop"}, choices)
        return [json.loads(c["text"]) for c in choices]

    def test_object(self):
        kind = {"enum": ["cat", 'say "no" \\ ö\n', 3.5, None, {"a": [1]}]}
        schema = {"type": "object", "properties": {"kind": kind, "b": {"type": "boolean"}, "c\"": {"const": 1}, "d": {"type": "null"}},
                  "required": ["b"], "additionalProperties": False}
        seen = self.answers(schema, 40)
        for found in seen:
            self.assertEqual([k for k in schema["properties"] if k in found], list(found))  # in their order
            self.assertIsInstance(found["b"], bool)
            self.assertIn(found.get("kind", None), kind["enum"])
            self.assertIn(found.get('c"', 1), [1])
        self.assertGreater(len({tuple(f) for f in seen}), 3)  # optional ones come and go
        everything = {**schema, "required": list(schema["properties"])}
        self.assertTrue(all(list(f) == list(schema["properties"]) for f in self.answers(everything)))
        self.assertTrue(all(f in [{}, {"a": True}, {"a": False}] for f in self.answers({"properties": {"a": {"type": "boolean"}}})))
        self.assertEqual(self.answers({"type": "object", "properties": {}, "additionalProperties": False}), [{}] * 12)

    def test_lists_and_strings(self):
        for least, most in [(0, 0), (0, 1), (1, 1), (0, 3), (2, 2), (1, 3)]:
            lengths = {len(a) for a in self.answers({"type": "array", "items": {"type": "boolean"}, "minItems": least, "maxItems": most})}
            self.assertTrue(least <= min(lengths) and max(lengths) <= most, (least, most, lengths))
            lengths = {len(a) for a in self.answers({"type": "string", "minLength": least, "maxLength": most})}
            self.assertTrue(least <= min(lengths) and max(lengths) <= most, (least, most, lengths))

    def test_choices_and_references(self):
        tree = {"$ref": "#/$defs/t", "$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}, "maxItems": 1}}}
        for found in self.answers({"anyOf": [{"type": "boolean"}, {"const": "x"}, {"type": ["null", "boolean"]}]}) + [True, "x", None]:
            self.assertIn(found, [True, False, "x", None])
        body = {"response_format": {"type": "json_schema", "json_schema": {"schema": tree}}, "max_tokens": 30, "temperature": 8}
        self.assertRegex(self.complete(**body)["choices"][0]["text"], r"\A[\[\]\s]+\Z")

    def test_references_in_a_circle(self):
        circle = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
        body = {"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": circle}}}
        reply = self.server.post(COMPLETIONS, body)
        self.assertEqual((reply.status, reply.json["error"]["param"]), (400, "response_format"))
        self.assertIn("leads to nothing", reply.json["error"]["message"])
        through = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"const": 7}}}
        self.assertEqual(self.answers(through), [7] * len(self.answers(through)))

    def test_work_is_bounded(self):
        """A schema that is small and would take minutes: names that are required again and again."""
        properties = {f"p{i}": True for i in range(3000)}
        for required in [["p0"] * 200000, ["p0", "p0"]]:
            reply = self.server.post(COMPLETIONS, {"prompt": "a", "max_tokens": 1, "response_format": {"type": "json_schema", "json_schema": {
                "name": "x", "schema": {"type": "object", "properties": properties, "required": required}}}})
            self.assertEqual(reply.status, 400)
            self.assertIn("names one twice", reply.json["error"]["message"])
        reply = self.server.post(COMPLETIONS, {"prompt": "a", "max_tokens": 1, "response_format": {"type": "json_schema", "json_schema": {
            "name": "x", "schema": {"type": "object", "properties": {f"p{i}": True for i in range(100000)}}}}})
        self.assertEqual(reply.status, 400)
        self.assertIn("too large", reply.json["error"]["message"])

    def test_refused(self):
        deep = {"type": "boolean"}
        for _ in range(50):
            deep = {"type": "array", "items": deep}
        for schema in [5, None, [], {"pattern": "a+", "type": "string"}, {"minimum": 1, "type": "integer"}, {"type": "x"}, {"type": []}, {"type": 5}, {"enum": []},
                       {"enum": 5}, {"anyOf": []}, {"$ref": 5}, {"$ref": "#/$defs/no"}, {"$ref": "http://x"}, {"type": "string", "maxLength": 5000},
                       {"type": "string", "minLength": -1}, {"type": "string", "minLength": 3, "maxLength": 2}, {"type": "array", "minItems": 1, "maxItems": 0}, deep,
                       {"required": ["a"], "type": "object"}, {"properties": 5, "type": "object"}, {"properties": {"a": {"not": {}}}},
                       {"properties": {"k%d" % i: {"type": "string"} for i in range(5000)}}, {"enum": ["x" * 100000]}]:
            body = {"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
            with self.subTest(str(schema)[:60]):
                self.bad(400, "invalid_schema", "POST", COMPLETIONS, body, param="response_format")
        self.bad(400, "invalid_schema", "POST", COMPLETIONS,
                 {"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}}, param="response_format")


class Probabilities(Case):
    def test_chat(self):
        choice = self.chat(logprobs=True, top_logprobs=3, ignore_eos=True)["choices"][0]
        content = choice["logprobs"]["content"]
        self.assertEqual(len(content), 8)
        for token in content:
            self.assertEqual(len(token["top_logprobs"]), 3)
            self.assertEqual(token["logprob"], token["top_logprobs"][0]["logprob"])  # greedy
            self.assertTrue(all(t["logprob"] <= 0 for t in token["top_logprobs"]))
        self.assertEqual(bytes(b for t in content for b in t["bytes"]).decode(errors="replace"), choice["message"]["content"])
        self.assertEqual(self.chat(logprobs=True)["choices"][0]["logprobs"]["content"][0]["top_logprobs"], [])

    def test_completions(self):
        choice = self.complete(logprobs=2, ignore_eos=True)["choices"][0]
        shape = choice["logprobs"]
        self.assertEqual(sorted(shape), ["text_offset", "token_logprobs", "tokens", "top_logprobs"])
        self.assertTrue(all(len(shape[k]) == 8 for k in shape))
        self.assertTrue(all(len(t) == 2 for t in shape["top_logprobs"]))
        self.assertEqual([max(t.values()) for t in shape["top_logprobs"]], shape["token_logprobs"])
        self.assertEqual(shape["text_offset"][0], 0)

    def test_streamed(self):
        whole = self.chat(logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
        body = {"model": "alder", "messages": MESSAGES, "max_tokens": 8, "temperature": 0, "stream": True, "logprobs": True, "top_logprobs": 2}
        events = self.good("POST", CHAT, body).events[:-1]
        pieces = [json.loads(e)["choices"][0]["logprobs"] for e in events]
        self.assertEqual([t for p in pieces if p for t in p["content"]], whole)

    def test_bias(self):
        choice = self.complete(logit_bias={"70": 100}, max_tokens=3)["choices"][0]
        self.assertEqual(choice["text"], choice["text"][0] * 3)
        banned = self.complete(max_tokens=1, logprobs=1)["choices"][0]["logprobs"]
        self.assertNotEqual(self.complete(max_tokens=1, logit_bias={str(i): -100 for i in range(100)})["choices"][0]["text"], "")
        self.assertEqual(len(banned["tokens"]), 1)


class Fallback(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        broken = cls.server.adapters / "cedar/adapter_model.safetensors"
        broken.write_bytes(broken.read_bytes()[:-100])

    def test_base_answers_and_says_so(self):
        body = {"model": "cedar", "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
        reply = self.good("POST", COMPLETIONS, body)
        answer = reply.json
        self.assertEqual(answer["choices"][0]["text"], run_answer(PROMPT)["text"])
        self.assertEqual(sorted(answer["fallback"]), ["code", "message"])
        self.assertEqual(reply.headers["X-Graft-Fallback"], answer["fallback"]["code"])
        self.assertEqual((answer["adapter"], answer["adapter_generation"]), ("cedar", None))
        last = json.loads(self.good("POST", COMPLETIONS, {**body, "stream": True}).events[-2])
        self.assertEqual(last["fallback"], answer["fallback"])
        self.assertGreater(self.server.metric("answers_fallback_total"), 0)

    def test_or_an_error(self):
        for stream in [False, True]:
            body = {"model": "cedar", "prompt": "abc", "fallback": "error", "stream": stream}
            reply = self.server.post(COMPLETIONS, body)
            self.assertIn(reply.status, [409, 422], reply.text)  # a stream that has not begun fails as any request
            self.assertEqual(reply.headers["Content-Type"], "application/json")
            self.assertIn(reply.json["error"]["code"], ["changed_on_disk", "truncated"])


class Management(Case):
    def load(self, name, path, status=200, **more):
        reply = self.server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path), **more})
        self.assertEqual(reply.status, status, reply.text)
        return reply

    def unload(self, name, status=200, **more):
        reply = self.server.post("/v1/unload_lora_adapter", {"lora_name": name, **more})
        self.assertEqual(reply.status, status, reply.text)
        return reply

    def row(self, name):
        return {a["id"]: a for a in self.good("GET", "/v1/lora_adapters").json["data"]}.get(name)

    def place(self, golden, name):
        """An adapter below the root that no scan has seen."""
        path = self.server.adapters / name
        subprocess.run(["cp", "-r", GOLDEN / "adapters/llama" / golden, path], check=True)
        return path

    def test_load_and_unload(self):
        path = self.place("rank16", "late-one")
        self.bad(404, "model_not_found", "POST", COMPLETIONS, {"model": "late", "prompt": "a"}, param="model")
        reply = self.load("late", path)
        self.assertEqual(reply.text, "Success: LoRA adapter 'late' added successfully.")
        self.assertEqual(self.row("late")["memory"], "resident")
        self.assertEqual(self.complete(model="late")["choices"], self.complete(model="cedar")["choices"])
        error = self.load("late", path, 400).json["error"]
        self.assertEqual(error["message"], "The lora adapter 'late' has already been loaded. If you want to load the adapter in place, "
                                           "set 'load_inplace' to True.")
        self.assertEqual((error["type"], error["code"]), ("InvalidUserInput", 400))
        reply = self.unload("late")
        self.assertEqual(reply.text, "Success: LoRA adapter 'late' removed successfully.")
        self.assertGreater(int(reply.headers["X-Graft-Freed-Bytes"]), 0)
        self.assertEqual(self.row("late")["memory"], "absent")
        error = self.unload("late", 404).json["error"]
        self.assertEqual((error["message"], error["type"], error["code"]), ("The lora adapter 'late' cannot be found.", "NotFoundError", 404))
        self.load("late", path)
        self.unload("late", unregister=True)
        self.assertIsNone(self.row("late"))

    def test_in_place(self):
        path = self.place("plain", "swap")
        self.load("swap", path)
        before = self.row("swap")["generation"]
        for name in ["adapter_config.json", "adapter_model.safetensors"]:
            (path / name).write_bytes((GOLDEN / "adapters/llama/rslora" / name).read_bytes())
        reply = self.load("swap", path, 409, load_inplace=True, expected_generation="0" * 64)
        self.assertEqual(reply.json["error"]["reason"], "lora_generation_mismatch")
        self.assertEqual(reply.headers["X-Should-Retry"], "false")
        self.load("swap", path, load_inplace=True, expected_generation=before)
        self.assertNotEqual(self.row("swap")["generation"], before)
        self.assertEqual(self.complete(model="swap")["choices"], self.complete(model="birch")["choices"])
        self.unload("swap", 409, expected_generation=before)
        self.unload("swap", unregister=True)

    def test_missing_fields(self):
        for body in [{}, {"lora_name": "a"}, {"lora_path": "b"}, {"lora_name": "", "lora_path": "x"}]:
            reply = self.server.post("/v1/load_lora_adapter", body)
            self.assertEqual((reply.status, reply.json["error"]["message"]), (400, "Both 'lora_name' and 'lora_path' must be provided."))
        reply = self.server.post("/v1/unload_lora_adapter", {})
        self.assertEqual((reply.status, reply.json["error"]["message"]), (400, "'lora_name' needs to be provided to unload a LoRA adapter."))

    def test_names(self):
        for name in ["a b", "../x", "a/b/c", "x" * 129, "a/", "/a", "..", "ä"]:
            self.assertIn(self.server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(self.server.adapters / "alder")}).status, [400],
                          name)
            self.unload(name, 404)

    def test_relative_paths_begin_at_the_folder(self):
        self.place("plain", "relative")
        self.load("relative", "relative")
        self.unload("relative", unregister=True)
        self.load("relative", "../relative", 404)

    def test_the_bases_name(self):
        path = self.place("plain", "as-base")
        self.load("llama", path, 400)
        self.assertIsNone(self.row("llama"))

    def test_paths(self):
        self.load("gone", self.server.adapters / "nothing", 404)
        outside = GOLDEN / "adapters/llama/plain"
        self.load("outside", outside, 403)
        link = self.server.adapters / "link"
        link.symlink_to(outside)
        self.load("outside", link, 403)
        self.load("outside", f"{self.server.adapters}/../adapters/../../../etc", 403 if Path("/etc").exists() else 404)
        beside = Path(f"{self.server.adapters}-beside")  # begins as the root does
        subprocess.run(["cp", "-r", outside, beside], check=True)
        self.load("outside", beside, 403)
        bad = self.place("dora", "bad-one")
        (bad / "adapter_model.safetensors").write_bytes(b"x" * 100)
        self.assertIn(self.load("bad", bad, 400).json["error"]["type"], ["BadRequestError"])
        for name in ["gone", "outside", "bad"]:
            self.assertIsNone(self.row(name))

    def test_link_exchanged_later(self):
        """What was below the folder when it was registered must still be there when it is loaded."""
        with tempfile.TemporaryDirectory() as folder:
            outside, inside = Path(folder) / "outside", Path(folder) / "own"
            for path in [outside, inside / "adapters" / "alder"]:
                subprocess.run(["mkdir", "-p", path.parent], check=True)
                subprocess.run(["cp", "-r", GOLDEN / "adapters/llama/plain", path], check=True)
            server = Server("--adapter-root", inside / "adapters", folder=inside)
            try:
                ask = lambda: server.post("/v1/completions", {"model": "alder", "prompt": "a", "max_tokens": 1, "fallback": "error"})
                self.assertEqual(ask().status, 200)
                self.assertEqual(server.post("/v1/lora_adapters/alder/unload", {}).status, 200)
                shutil.rmtree(inside / "adapters" / "alder")
                (inside / "adapters" / "alder").symlink_to(outside)
                reply = ask()
                self.assertEqual((reply.status, reply.json["error"]["code"]), (422, "outside_root"), reply.text)
            finally:
                server.close()

    def test_pin(self):
        self.good("POST", "/v1/lora_adapters/alder/pin")
        self.assertTrue(self.row("alder")["pinned"])
        self.good("POST", "/v1/lora_adapters/alder%2Fdefault/unpin")
        self.assertFalse(self.row("alder")["pinned"])
        for name in ["elm", "a%20b", "a/b/c"]:
            self.assertEqual(self.server.post(f"/v1/lora_adapters/{name}/pin", {}).status, 404)

    def test_load_and_unload_by_name(self):
        path = self.place("plain", "named")
        self.load("named", path)
        reply = self.good("POST", "/v1/lora_adapters/named/unload")
        self.assertGreater(int(reply.headers["X-Graft-Freed-Bytes"]), 0)
        self.assertEqual(self.row("named")["memory"], "absent")
        self.assertEqual(self.server.post("/v1/lora_adapters/named/unload", {}).status, 404)
        self.good("POST", "/v1/lora_adapters/named%2Fdefault/load")
        self.assertEqual(self.row("named")["memory"], "resident")
        before = self.row("named")["generation"]
        for name in ["adapter_config.json", "adapter_model.safetensors"]:
            (path / name).write_bytes((GOLDEN / "adapters/llama/rslora" / name).read_bytes())
        self.good("POST", "/v1/lora_adapters/named/load", {"reload": False})
        self.assertEqual(self.row("named")["generation"], before)
        self.good("POST", "/v1/lora_adapters/named/load", {"reload": True})
        self.assertNotEqual(self.row("named")["generation"], before)
        self.assertEqual(self.complete(model="named")["choices"], self.complete(model="birch")["choices"])
        self.bad(400, "invalid_value", "POST", "/v1/lora_adapters/named/load", {"reload": 1}, param="reload")
        self.good("POST", "/v1/lora_adapters/named/unload", {"unregister": True})
        self.assertIsNone(self.row("named"))
        for name in ["elm", "a%20b", "a/b/c"]:
            self.assertEqual(self.server.post(f"/v1/lora_adapters/{name}/load", {}).status, 404)

    def test_current(self):
        """What requests without a model get."""
        with_base = self.complete(model=None)["choices"]
        self.bad(404, "not_found", "GET", "/v1/projects/current")
        for project, adapter in [("alder", None), ("birch", "default")]:
            body = {"project": project} | ({"adapter": adapter} if adapter else {})
            expected = {"id": project, "project": project, "adapter": "default"}
            self.assertEqual(self.good("POST", "/v1/projects/current", body).json, expected)
            self.assertEqual(self.good("GET", "/v1/projects/current").json, expected)
            answer = self.complete(model=None)
            self.assertEqual((answer["model"], answer["adapter"]), (project, project))
            self.assertEqual(answer["choices"], self.complete(model=project)["choices"])
            self.assertNotEqual(answer["choices"], with_base)
        self.assertEqual(self.server.post("/v1/projects/current", {"project": "elm"}).status, 404)
        for body in [{}, {"project": ""}, {"project": 1}, {"project": "alder", "adapter": 1}]:
            self.assertEqual(self.server.post("/v1/projects/current", body).status, 400, body)
        self.assertEqual(self.good("GET", "/v1/projects/current").json["id"], "birch")

    def test_scan(self):
        self.place("plain", "found")
        bad = self.place("plain", "broken")
        (bad / "adapter_model.safetensors").write_bytes(b"x" * 100)
        reply = self.good("POST", "/v1/lora_adapters/scan")
        self.assertEqual(reply.headers["Content-Type"], "application/x-ndjson")
        lines = [json.loads(line) for line in reply.text.splitlines()]
        end = lines.pop()
        by_id = {line["id"]: line for line in lines}
        self.assertEqual((by_id["found"]["outcome"], by_id["found"]["code"]), ("added", None))
        self.assertEqual((by_id["broken"]["outcome"], by_id["broken"]["code"]), ("broken", "header_length"))
        self.assertEqual(by_id["alder"]["outcome"], "known")
        self.assertEqual((end["done"], end["complete"], end["lines_missed"]), (True, True, 0))
        for outcome in ["added", "known", "broken", "refused", "skipped"]:
            self.assertEqual(end[outcome], sum(line["outcome"] == outcome for line in lines), outcome)

    def test_projects(self):
        projects = self.good("GET", "/v1/projects").json["data"]
        self.assertTrue(set(ADAPTERS) <= {p["id"] for p in projects})

    def test_two_at_once(self):
        path = self.place("plain", "race")
        statuses = [r.status for r in in_threads([lambda: self.server.post("/v1/load_lora_adapter", {"lora_name": "race", "lora_path": str(path)})] * 8)]
        self.assertEqual(sorted(statuses), [200] + [400] * 7)
        statuses = [r.status for r in in_threads([lambda: self.server.post("/v1/unload_lora_adapter", {"lora_name": "race"})] * 8)]
        self.assertEqual(sorted(statuses), [200] + [404] * 7)


class WaitingForRoom(RoomCase):
    """A load that waits for room must not hold up what makes room."""
    birch, cedar = ("/v1/lora_adapters/birch/load", {}), ("/v1/lora_adapters/cedar/load", {})

    def test_unpin_comes_through(self):
        server = self.start()
        connections = self.waiting(server, [self.birch] * 3)
        self.assertEqual(server.post("/v1/lora_adapters/alder/unpin", {}).status, 200)
        self.assertEqual([c.getresponse().status for c in connections], [200] * 3)
        self.assertEqual({a["id"]: a["memory"] for a in server.get("/v1/lora_adapters").json["data"]},
                         {"alder": "absent", "birch": "resident", "cedar": "absent"})

    def test_too_many(self):
        server = self.start()
        connections = self.waiting(server, [self.birch] * 64)
        wait_until(lambda: server.post(*self.cedar).status == 429, "a refusal")
        server.post("/v1/lora_adapters/alder/unpin", {})
        self.assertEqual([c.getresponse().status for c in connections], [200] * 64)
        self.assertEqual(server.post(*self.cedar).status, 200)

    def test_clients_that_leave(self):
        server = self.start()
        self.leave(server, self.waiting(server, [self.birch] * 5))

    def test_end_of_the_server(self):
        self.end([self.birch, self.cedar], lambda reply: self.assertEqual(reply.status, 503))


class Http(Case):
    def test_routes(self):
        self.bad(404, "not_found", "GET", "/nothing")
        self.bad(404, "not_found", "GET", "/v1/models/")
        self.assertEqual(self.bad(405, "method_not_allowed", "GET", CHAT).headers["Allow"], "POST, OPTIONS")
        self.assertEqual(self.bad(405, "method_not_allowed", "DELETE", "/v1/models").headers["Allow"], "GET, HEAD, OPTIONS")
        self.assertEqual(self.bad(405, "method_not_allowed", "PUT", "/v1/models/alder", b"x").headers["Allow"], "GET, HEAD, OPTIONS")
        self.assertEqual(self.bad(405, "method_not_allowed", "TRACE", "/health").headers["Allow"], "GET, HEAD, OPTIONS")
        reply = self.server.ask("OPTIONS", CHAT)
        self.assertEqual((reply.status, reply.headers["Allow"]), (204, "POST, OPTIONS"))
        self.assertFalse([h for h in reply.headers if h.lower().startswith("access-control")])
        self.assertEqual(self.good("GET", "/v1/models?x=y&z=%00").json["object"], "list")

    def test_head(self):
        head, get = self.server.ask("HEAD", "/v1/models"), self.good("GET", "/v1/models")
        self.assertEqual((head.status, head.body, head.headers["Content-Length"]), (200, b"", str(len(get.body))))

    def test_request_id(self):
        self.assertEqual(self.good("GET", "/health", headers={"X-Request-Id": "abc-1.2_3"}).headers["X-Request-Id"], "abc-1.2_3")
        first = self.good("GET", "/health", headers={"X-Request-Id": "a b"}).headers["X-Request-Id"]
        second = self.good("GET", "/health").headers["X-Request-Id"]
        self.assertNotIn("a b", [first, second])
        self.assertNotEqual(first, second)

    def test_health(self):
        for path in ["/health", "/v1/health"]:
            self.assertEqual(self.good("GET", path).json["status"], "ok")

    def test_metrics(self):
        self.complete()
        reply = self.good("GET", "/metrics")
        self.assertTrue(reply.headers["Content-Type"].startswith("text/plain; version=0.0.4"))
        names = set()
        for line in reply.text.splitlines():
            if line.startswith("# TYPE "):
                self.assertNotIn(line.split()[2], names)
                names.add(line.split()[2])
            elif not line.startswith("#"):
                self.assertRegex(line, r'\A(graft_|vllm:)[a-z0-9_]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? \S+\Z')
        found = self.server.metrics()
        before = found['graft_adapter_requests_total{adapter="alder"}']
        self.complete(n=2)
        self.assertEqual(self.server.metric('adapter_requests_total{adapter="alder"}'), before + 2)
        self.assertGreater(found['graft_adapter_bytes{adapter="alder",state="resident"}'], 0)
        self.assertEqual(found["graft_answer_seconds_count"], found["graft_answers_total"])
        self.assertEqual(found['graft_answer_seconds_bucket{le="+Inf"}'], found["graft_answers_total"])

    def test_keep_alive_and_pipelining(self):
        connection = self.server.connect()
        for _ in range(3):
            self.good("POST", COMPLETIONS, {"prompt": "a", "max_tokens": 2}, connection=connection)
            self.bad(404, "not_found", "GET", "/nothing", connection=connection)
        with self.server.socket() as s:
            s.sendall(request_bytes({"prompt": "abc", "max_tokens": 3, "stream": True}) * 2 +
                      b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            seen = read_all(s)
        self.assertEqual(seen.count(b"HTTP/1.1 200 OK"), 3)
        self.assertEqual(seen.count(b"data: [DONE]"), 2)
        self.assertLess(seen.rindex(b"[DONE]"), seen.index(b'"status":"ok"'))

    def test_http_1_0(self):
        seen = self.server.raw(request_bytes({"prompt": "abc", "max_tokens": 3, "stream": True}).replace(b"HTTP/1.1", b"HTTP/1.0"))
        self.assertIn(b"data: [DONE]", seen)
        self.assertNotIn(b"chunked", seen)

    def test_chunked_body_and_continue(self):
        body = b'{"prompt":"abc","max_tokens":2}'
        chunked = b"".join(b"%x\r\n%s\r\n" % (1, body[i:i + 1]) for i in range(len(body))) + b"0\r\n\r\n"
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
        self.assertIn(b"200 OK", self.server.raw(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked))
        with self.server.socket() as s:
            s.sendall(head + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
            self.assertTrue(s.recv(100).startswith(b"HTTP/1.1 100"))
            s.sendall(body)
            self.assertIn(b"200 OK", read_all(s))

    def test_a_body_is_never_the_next_request(self):
        inner = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        last = b"GET /v1/projects HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        for method in ["GET", "HEAD", "DELETE", "OPTIONS", "PUT", "PATCH", "TRACE"]:
            for how, body in [(b"Content-Length: %d" % len(inner), inner),
                              (b"Transfer-Encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (len(inner), inner))]:
                replies = self.server.raw(method.encode() + b" /v1/models HTTP/1.1\r\nHost: localhost\r\n" + how + b"\r\n\r\n" + body + last)
                self.assertNotIn(b'"status"', replies, method)
                self.assertLessEqual(replies.count(b"HTTP/1.1 "), 2, method)

    def test_one_connection_after_the_other(self):
        """A descriptor's number is soon another connection's: its bytes must be its own."""
        body = {"model": "alder", "prompt": "a", "max_tokens": 1, "user": "x" * 30000}
        request = request_bytes(body, extra="Connection: close\r\n")
        for _ in range(60):
            with self.server.socket() as s:
                for i in range(0, len(request), 5000):
                    s.sendall(request[i:i + 5000])
                    time.sleep(0.001)
                self.assertEqual(read_all(s).split()[1], b"200")

    def test_ambiguous_lengths(self):
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        for lengths in [b"Content-Length: 2\r\nContent-Length: 3\r\n", b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
                        b"Content-Length: -2\r\n", b"Content-Length: 0x2\r\n", b"Content-Length: 99999999999999999999\r\n",
                        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"]:
            seen = self.server.raw(head + lengths + b"\r\n2\r\n{}\r\n0\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            with self.subTest(lengths):
                self.assertTrue(seen == b"" or seen.split()[1] in [b"400", b"413"], seen[:80])
                self.assertEqual(seen.count(b"HTTP/1.1"), min(1, len(seen)))

    def test_limits(self):
        body = b"x" * (5 << 20)
        with self.server.socket() as s:
            s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body))
            self.assertIn(b" 413 ", read_all(s))
        with self.server.socket() as s:
            s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            try:
                for _ in range(6):
                    s.sendall(b"100000\r\n" + b"x" * (1 << 20) + b"\r\n")
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused before all was sent
            seen = read_all(s)
            self.assertTrue(seen == b"" or seen.split()[1] == b"413", seen[:80])
        for head in [b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 10000, b"GET /health HTTP/1.1\r\nX: " + b"y" * (1 << 20),
                     b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n"]:
            with self.server.socket() as s:
                try:
                    s.sendall(head + b"\r\n\r\n")
                except (BrokenPipeError, ConnectionResetError):
                    pass
                seen = read_all(s)
                self.assertTrue(seen == b"" or seen.split()[1] in [b"400", b"413", b"431", b"414"], seen[:80])
        self.assertEqual(self.server.get("/" + "a" * 2000).status, 414)
        self.good("GET", "/health")

    def test_garbage(self):
        for data in [b"\x16\x03\x01\x02\x00\x01\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /health\r\n\r\n", b"\0\0\0\0\r\n\r\n", b"GET\r\n\r\n",
                     b"FROB / HTTP/1.1\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\n\r\n", os.urandom(2000) + b"\r\n\r\n",
                     b"GET /health HTTP/1.1\r\nNo colon\r\n\r\n", b"GET /health HTTP/1.1\r\n : \r\n\r\n"]:
            with self.server.socket() as s:
                s.sendall(data)
                s.shutdown(socket.SHUT_WR)
                seen = read_all(s)
                self.assertNotIn(b" 200 ", seen[:20], data[:20])
        self.good("GET", "/health")

    def test_host(self):
        self.bad(403, "host_refused", "GET", "/v1/models", headers={"Host": "evil.example:80"})
        for host in ["localhost", "localhost:1", "127.0.0.1:8080", "[::1]:80", "LOCALHOST"]:
            self.good("GET", "/v1/models", headers={"Host": host})


class Disconnects(Case):
    args = LONG_ARGS

    def leave(self, body, wait_for, reset=False):
        """Leaves once `wait_for` has come ("" = at once)."""
        s = self.server.socket()
        s.sendall(request_bytes(body))
        seen = b""
        while wait_for not in seen:
            seen += s.recv(65536)
        if reset:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.close()

    def test_while_streaming(self):
        for reset in [False, True]:
            self.leave(LONG, b"data: ", reset)
            self.settled()
        self.assertEqual(self.server.metric("answers_failed_total"), 0)

    def test_while_silent(self):
        """Neither a stream that has not begun nor a whole answer is written to."""
        before = self.server.metrics()
        for body in [LONG, {**LONG, "stream": False}]:
            self.leave(body, b"")
        self.settled()
        wait_until(lambda: self.server.metric("http_disconnects_total") == before["graft_http_disconnects_total"] + 2, "both to be noticed")
        self.assertEqual(self.server.metric("answers_total"), before["graft_answers_total"])

    def test_while_queued(self):
        busy = [self.server.socket() for _ in range(4)]
        for s in busy:
            s.sendall(request_bytes(LONG))
            self.assertIn(b"200", s.recv(100))
        steps = self.server.metric("answers_cancelled_total")
        self.leave({**LONG, "model": "birch"}, b"")
        wait_until(lambda: self.server.metric("answers_running") == 4, "the queued one to go")
        self.assertEqual(self.server.metric("answers_cancelled_total"), steps + 1)
        for s in busy:  # nobody else was cancelled
            self.assertIn(b"data: ", s.recv(65536))
            s.close()
        self.settled()

    def test_storm(self):
        in_threads([lambda i=i: self.leave({**LONG, "n": 1 + i % 3, "model": ["alder", "birch", "llama"][i % 3]}, [b"", b"data: "][i % 2], i % 4 == 0)
                    for i in range(48)])
        self.settled()
        self.assertEqual(self.complete()["choices"][0]["finish_reason"], "length")
        wait_until(lambda: self.server.metric("http_requests_open") == 1, "all exchanges to end")
        wait_until(lambda: self.server.metric("http_connections") < 4, "all connections to go")


class Slow(Case):
    args = [*LONG_ARGS, "--write-ms", "700", "--request-ms", "700", "--idle-ms", "1500"]

    def test_slow_reader(self):
        s = self.server.socket(receive=4096)
        s.sendall(request_bytes({**LONG, "logprobs": 20}))
        wait_until(lambda: self.server.metric("http_timeouts_total") >= 1, "the reader to be cut off")
        self.settled()
        self.assertGreaterEqual(self.server.metric("answers_cancelled_total"), 1)
        s.close()

    def test_pausing_reader_loses_nothing(self):
        """Reads in bursts that are shorter than the limit apart: paused, not cut off."""
        s = self.server.socket(receive=4096)
        s.sendall(request_bytes({**LONG, "max_tokens": 6000, "logprobs": 10}, extra="Connection: close\r\n"))
        seen = bytearray()
        for _ in range(6):
            time.sleep(0.4)
            for _ in range(64):
                seen += s.recv(4096)
        seen += read_all(s)
        events = [l for l in dechunk(bytes(seen)).split(b"\n\n") if l.startswith(b"data: {")]
        tokens = sum(len(json.loads(e[6:])["choices"][0]["logprobs"]["tokens"]) for e in events if json.loads(e[6:])["choices"][0]["logprobs"])
        self.assertEqual(tokens, 6000)
        self.assertIn(b"[DONE]", seen)

    def test_long_reading_is_not_idling(self):
        server = Server("--idle-ms", 500)
        self.addCleanup(server.close)
        with server.socket(receive=4096) as s:
            s.sendall(request_bytes({"content": "a " * 200000, "with_pieces": True}, "/tokenize", "Connection: close\r\n"))
            seen = b""
            for _ in range(20):  # longer than idle_ms
                seen += s.recv(65536)
                time.sleep(0.05)
            seen += read_all(s)
        head, body = seen.split(b"\r\n\r\n", 1)
        self.assertEqual(len(body), int(re.search(rb"Content-Length: (\d+)", head)[1]))

    def test_slowloris(self):
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
        for data in [b"G", b"GET /health HTTP/1.1\r\nX: ", head]:
            with self.server.socket() as s:
                s.sendall(data)
                ended = False
                for _ in range(200):  # a byte each 50 ms: libevent's own timeout would never come
                    time.sleep(0.05)
                    try:
                        s.sendall(b"x")
                        s.setblocking(False)
                        ended = s.recv(100) == b""
                    except BlockingIOError:
                        pass
                    except OSError:
                        ended = True
                    s.setblocking(True)
                    if ended:
                        break
                self.assertTrue(ended, data)

    def test_idle_goes_and_silent_answer_stays(self):
        with self.server.socket() as idle, self.server.socket() as silent:
            silent.sendall(request_bytes({**LONG, "stream": False, "max_tokens": 6000}, extra="Connection: close\r\n"))
            self.assertEqual(idle.recv(10), b"")
            self.assertIn(b"200 OK", read_all(silent))

    def test_many_idle(self):
        with_fds = [self.server.socket() for _ in range(300)]
        self.complete()
        for s in with_fds:
            self.assertEqual(s.recv(10), b"")
            s.close()


def dechunk(data):
    body, out = data.split(b"\r\n\r\n", 1)[1], b""
    while body:
        size, body = body.split(b"\r\n", 1)
        n = int(size, 16)
        out, body = out + body[:n], body[n + 2:]
        if n == 0:
            break
    return out


class Connections(Case):
    args = ["--connections", "5"]

    def test_more_wait(self):
        held = [self.server.socket() for _ in range(5)]
        later = self.server.socket()  # in the system's queue
        later.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        later.settimeout(1)
        with self.assertRaises(TimeoutError):
            later.recv(10)
        held[0].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")  # who is in is answered
        self.assertIn(b"200 OK", held[0].recv(4096))
        held.pop().close()
        later.settimeout(TIMEOUT)
        self.assertIn(b"200 OK", read_all(later))
        later.close()
        for s in held:
            s.close()


class FewDescriptors(unittest.TestCase):
    def test_flood(self):
        """More clients than descriptors: nobody is served badly, and nothing spins or dies."""
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, limits[1]))
        try:
            server = Server()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        try:
            flood = [server.socket() for _ in range(350)]
            time.sleep(0.5)
            for s in flood:
                s.close()
            self.assertEqual(server.get("/health").status, 200)
            self.assertEqual(server.post(COMPLETIONS, {"model": "birch", "prompt": "a", "max_tokens": 2, "fallback": "error"}).status, 200)
            self.assertEqual(server.stop(), 0)
            self.assertNotIn("accepting a connection", server.log())
        finally:
            server.close()


class Admission(Case):
    args = ["--ctx", "65536", "--slots", "2", "--queue", "2", "--deadline-s", "2"]

    def test_full_queue(self):
        busy = [self.server.socket() for _ in range(4)]
        for s in busy:
            s.sendall(request_bytes(LONG))
        wait_until(lambda: self.server.metric("answers_running") == 4, "four to run or wait")
        reply = self.bad(429, "queue_full", "POST", COMPLETIONS, {"model": "alder", "prompt": "a"})
        self.assertGreater(int(reply.headers["Retry-After"]), 0)
        self.assertEqual(reply.json["error"]["type"], "rate_limit_error")
        # A place is kept for who asks for little; it is one.
        answer = in_threads([lambda: self.server.post(COMPLETIONS, {"model": "birch", "prompt": "a", "max_tokens": 1})] * 3)
        self.assertEqual([r.status for r in answer].count(429), 2)  # the third waits for a slot, perhaps until its deadline
        for s in busy:
            s.close()
        self.settled()
        self.complete()

    def test_deadline(self):
        """Before the first token a status, after it an event."""
        body = {**LONG, "stream": False}
        self.bad(504, "deadline", "POST", COMPLETIONS, body)
        events = self.good("POST", COMPLETIONS, LONG).events
        self.assertEqual(json.loads(events[-1])["error"]["code"], "deadline")
        self.settled()


class Fairness(Case):
    args = ["--ctx", "4096", "--slots", "2"]

    def test_a_flood_does_not_keep_others_waiting(self):
        body = {**LONG, "max_tokens": 2000}
        flood = [self.server.socket() for _ in range(24)]
        for s in flood:
            s.sendall(request_bytes(body))
        wait_until(lambda: self.server.metric("answers_running") == 24, "the flood")
        before = self.server.metric("answers_total")
        self.complete(model="birch", max_tokens=1)
        # One of the flood's had to end for it; by its own place in the queue 24 would have had to.
        self.assertLess(self.server.metric("answers_total") - before, 12)
        for s in flood:
            s.close()
        self.settled()


class Key(Case):
    env = {"GRAFT_API_KEY": "correct-horse"}

    def test_key(self):
        self.assertEqual(self.server.get("/health").status, 200)
        for path, method in [("/v1/models", "GET"), (COMPLETIONS, "POST"), ("/metrics", "GET"), ("/v1/load_lora_adapter", "POST")]:
            for headers in [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer correct-hors"}, {"Authorization": "Bearer correct-horse2"},
                            {"X-Api-Key": ""}, {"Authorization": "Basic correct-horse"}, {"Authorization": "Bearer"}]:
                reply = self.bad(401, "invalid_api_key", method, path, headers=headers)
                self.assertEqual(reply.headers["WWW-Authenticate"], "Bearer")
        for headers in [{"Authorization": "Bearer correct-horse"}, {"authorization": "bearer correct-horse"}, {"X-Api-Key": "correct-horse"}]:
            self.good("GET", "/v1/models", headers=headers)
        self.good("GET", "/v1/models", headers={"X-Api-Key": "correct-horse", "Host": "any.example"})


class Starting(unittest.TestCase):
    def fails(self, *args, status=1, env=None):
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([GRAFT, "serve", "-m", str(BASE), "-t", "1", "--registry", f"{folder}/r.db", *map(str, args)], capture_output=True,
                                  timeout=TIMEOUT, env={**os.environ, **(env or {})}, text=True)
            self.assertEqual(done.returncode, status, done.stderr)
            self.assertRegex(done.stderr, r"\Agraft: error: [a-z_]+: .+\n\Z")
            return done.stderr, os.path.exists(f"{folder}/r.db")

    def test_refusals(self):
        text, _ = self.fails("--host", "0.0.0.0", "--port", "0")
        self.assertIn("key", text)
        self.fails("--host", "localhost", "--port", "0")
        self.fails("--port", "0", env={"GRAFT_API_KEY": "short"})
        self.fails("--port", "0", "--adapters", "/nonexistent/folder")
        self.fails("--port", "70000", status=2)
        self.fails("--port", "0", "-m", "/nonexistent/model.gguf")

    def test_port_in_use(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            s.listen()
            text, registry = self.fails("--port", s.getsockname()[1])
            self.assertIn("in use", text)
            self.assertFalse(registry)

    def test_key_file_and_other_addresses(self):
        with tempfile.TemporaryDirectory() as folder:
            key = Path(folder) / "key"
            key.write_text("battery-staple\n")
            server = Server("--host", "0.0.0.0", "--api-key-file", key)
            try:
                self.assertEqual(server.get("/v1/models").status, 401)
                self.assertEqual(server.get("/v1/models", headers={"X-Api-Key": "battery-staple"}).status, 200)
            finally:
                server.close()
        server = Server("--host", "0.0.0.0", "--insecure-listen")
        try:
            self.assertEqual(server.get("/v1/models", headers={"Host": "any.example"}).status, 200)
        finally:
            server.close()

    def test_notify(self):
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/notify"
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
                s.bind(path)
                s.settimeout(TIMEOUT)
                server = Server(env={"NOTIFY_SOCKET": path})
                self.assertEqual(s.recv(100), b"READY=1")
                server.stop()
                self.assertEqual(s.recv(100), b"STOPPING=1")
                server.close()

    def test_restart_keeps_pins(self):
        with tempfile.TemporaryDirectory() as folder:
            server = Server(folder=folder)
            self.assertEqual(server.post("/v1/lora_adapters/birch/pin", {}).status, 200)
            self.assertEqual(server.stop(), 0)
            server = Server(folder=folder)
            rows = {a["id"]: a["pinned"] for a in server.get("/v1/lora_adapters").json["data"]}
            server.close()
            self.assertEqual(rows, {"alder": False, "birch": True, "cedar": False})


class Stopping(unittest.TestCase):
    def test_replies_are_read_to_their_end(self):
        """What was sent before the signal, and the client has not read yet."""
        server = self.start()
        with server.socket(receive=4096) as s:
            s.sendall(request_bytes({"content": "a " * 200000, "with_pieces": True}, "/tokenize"))
            seen = s.recv(1000)  # it has begun
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            seen += read_all(s)
        head, body = seen.split(b"\r\n\r\n", 1)
        length = int(re.search(rb"Content-Length: (\d+)", head)[1])
        self.assertGreater(length, 4 << 20)
        self.assertEqual(len(body), length)
        self.assertEqual(server.process.wait(TIMEOUT), 0, server.log())

    def start(self, *args):
        server = Server(*LONG_ARGS, *args)
        self.addCleanup(server.close)
        return server

    def begin(self, server, **body):
        s = server.socket()
        s.sendall(request_bytes({**LONG, **body}))
        seen = b""
        while b"data: " not in seen:
            seen += s.recv(65536)
        return s, seen

    def test_streams_finish(self):
        server = self.start()
        s, seen = self.begin(server, max_tokens=3000)
        idle = server.socket()
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(idle.recv(10), b"")  # what carries no request is closed at once
        with self.assertRaises((ConnectionRefusedError, ConnectionResetError)):
            server.socket()
        seen += read_all(s)
        self.assertIn(b"data: [DONE]", seen)
        self.assertEqual(server.process.wait(TIMEOUT), 0)

    def test_streams_end_typed(self):
        server = self.start("--drain-s", "1")
        s, seen = self.begin(server)
        server.process.send_signal(signal.SIGTERM)
        seen += read_all(s)
        last = dechunk(seen).strip().split(b"\n\n")[-1]
        self.assertEqual(json.loads(last[6:])["error"]["code"], "shutting_down")
        self.assertEqual(server.process.wait(TIMEOUT), 0)

    def test_second_signal(self):
        server = self.start("--drain-s", "3600")
        s, seen = self.begin(server)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: refused(server), "the first signal to be taken")
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(server.process.wait(TIMEOUT), 0)
        self.assertIn(b"shutting_down", seen + read_all(s))

    def test_signals_that_are_none(self):
        server = self.start()
        server.process.send_signal(signal.SIGPIPE)
        self.assertEqual(server.get("/health").status, 200)
        server.process.send_signal(signal.SIGINT)
        self.assertEqual(server.process.wait(TIMEOUT), 0)


def refused(server):
    try:
        server.socket().close()
        return False
    except (ConnectionRefusedError, ConnectionResetError):  # reset: it waited in the system's queue when the listener went
        return True


if __name__ == "__main__":
    if not GRAFT:
        sys.exit("GRAFT_BIN must name the graft binary")
    unittest.main(verbosity=2)
