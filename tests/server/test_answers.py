#!/usr/bin/env python3
"""Tests of what answers have beside their text: embeddings, headers of streams, comments in silent ones, reused prefixes.

GRAFT_BIN names the binary (required). The base is the tiny one of tests/oracle/golden. Python's standard library only.
"""
import base64
import json
import math
import struct
import sys
import unittest

from serving import ADAPTERS, GRAFT, PROMPT, Case, in_threads, read_all, request_bytes, wait_until

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
WIDTH = 64


class Embeddings(Case):
    def embed(self, input, model="alder", **body):
        return self.good("POST", EMBEDDINGS, {"model": model, "input": input, **body}).json

    def vectors(self, input, **body):
        answer = self.embed(input, **body)
        self.assertEqual([d["index"] for d in answer["data"]], list(range(len(answer["data"]))))
        return [d["embedding"] for d in answer["data"]]

    def assert_near(self, a, b):
        self.assertEqual(len(a), len(b))
        self.assertTrue(all(math.isclose(x, y, abs_tol=2e-3) for x, y in zip(a, b)), (a, b))

    def test_shape(self):
        answer = self.embed("What?")
        self.assertEqual((answer["object"], answer["model"], answer["adapter"]), ("list", "alder", "alder"))
        self.assertRegex(answer["adapter_generation"], r"\A[0-9a-f]{64}\Z")
        self.assertIsNone(answer["fallback"])
        self.assertEqual(sorted(answer["usage"]), ["prompt_tokens", "total_tokens"])
        self.assertEqual(answer["usage"]["prompt_tokens"], answer["usage"]["total_tokens"])
        one, = answer["data"]
        self.assertEqual((one["object"], one["index"], len(one["embedding"])), ("embedding", 0, WIDTH))
        self.assertAlmostEqual(sum(x * x for x in one["embedding"]), 1, places=4)

    def test_each_text_has_its_own(self):
        texts = ["one", "two and a half", "What?"]
        alone = [self.vectors(t)[0] for t in texts]
        for a, b in zip(self.vectors(texts), alone):
            self.assert_near(a, b)
        self.assertGreater(max(abs(x - y) for x, y in zip(*alone[:2])), 0.05)
        usage = [self.embed(t)["usage"]["prompt_tokens"] for t in texts]
        self.assertEqual(self.embed(texts)["usage"]["prompt_tokens"], sum(usage))

    def test_each_model_has_its_own(self):
        found = [self.vectors("What?", model=m)[0] for m in ["llama", *ADAPTERS]]
        for i, a in enumerate(found):
            for b in found[i + 1:]:
                self.assertGreater(max(abs(x - y) for x, y in zip(a, b)), 1e-3)
        self.assert_near(self.vectors("What?", model="llama", lora=[{"name": "alder"}])[0], found[1])
        self.assertIsNone(self.embed("What?", model="llama")["adapter"])

    def test_base64(self):
        numbers = self.vectors(["a", "bc"], encoding_format="float")
        for text, wanted in zip(self.vectors(["a", "bc"], encoding_format="base64"), numbers):
            self.assert_near(struct.unpack(f"<{WIDTH}f", base64.b64decode(text, validate=True)), wanted)

    def test_tokens(self):
        self.assert_near(self.vectors([66, 67, 68])[0], self.vectors([[66, 67, 68], [70]])[0])
        self.assertEqual(self.embed([[66, 67, 68], [70]])["usage"]["prompt_tokens"], 4)

    def test_many(self):
        """More than are submitted at once, and more than the queue would take."""
        texts = [f"text {i % 40}" for i in range(400)]
        found = self.vectors(texts)
        self.assertEqual(len(found), 400)
        for i in range(40):
            for other in range(i + 40, 400, 40):
                self.assert_near(found[i], found[other])

    def test_refused(self):
        for key, values in {"input": [None, "", [], {}, 5, True, [5.5], ["a", 5], [[1], "a", [1.5]], [[]], [264], [[-1]], ["a"] * 2049],
                            "encoding_format": ["int8", 5, []], "dimensions": [0, "64", 1.5, []]}.items():
            for value in values:
                with self.subTest(key=key, value=str(value)[:40]):
                    self.bad(400, "invalid_value", "POST", EMBEDDINGS, {"model": "alder", "input": "a", key: value}, param=key)
        self.bad(400, "unsupported_parameter", "POST", EMBEDDINGS, {"input": "a", "dimensions": 32}, param="dimensions")
        self.assertEqual(len(self.vectors("a", dimensions=WIDTH)[0]), WIDTH)
        self.bad(404, "model_not_found", "POST", EMBEDDINGS, {"model": "elm", "input": "a"}, param="model")
        self.bad(400, "context_length_exceeded", "POST", EMBEDDINGS, {"model": "alder", "input": ["a", "a" * 5000]})
        self.assertEqual(len(self.vectors([65] * 512)[0]), WIDTH)  # all of the context

    def test_client_leaves(self):
        before = self.server.metric("answers_cancelled_total")
        s = self.server.socket()
        s.sendall(request_bytes({"model": "alder", "input": [[65] * 500] * 450}, path=EMBEDDINGS))
        wait_until(lambda: self.server.metric("answers_running") > 0, "the first of them to run")
        s.close()
        self.settled()
        self.assertGreater(self.server.metric("answers_cancelled_total"), before)


class Headers(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        broken = cls.server.adapters / "cedar/adapter_model.safetensors"
        broken.write_bytes(broken.read_bytes()[:-100])

    def ask(self, path, **body):
        body = {"max_tokens": 4, "temperature": 0, "prompt": PROMPT, "messages": [{"role": "user", "content": "abc"}], **body}
        return self.good("POST", path, body)

    def test_generation(self):
        generation = self.ask(CHAT, model="alder").json["adapter_generation"]
        for path in [CHAT, COMPLETIONS]:
            for stream in [False, True]:
                reply = self.ask(path, model="alder", stream=stream)
                self.assertEqual(reply.headers["X-Graft-Adapter-Generation"], generation)
                self.assertIsNone(reply.headers["X-Graft-Fallback"])
                self.assertIsNone(self.ask(path, model="llama", stream=stream).headers["X-Graft-Adapter-Generation"])
        first = json.loads(self.ask(CHAT, model="alder", stream=True).events[0])
        self.assertEqual((first["adapter"], first["adapter_generation"], first["fallback"]), ("alder", generation, None))

    def test_fallback(self):
        for path in [CHAT, COMPLETIONS]:
            for stream in [False, True]:
                reply = self.ask(path, model="cedar", stream=stream)
                self.assertIn(reply.headers["X-Graft-Fallback"], ["changed_on_disk", "truncated"])
                self.assertIsNone(reply.headers["X-Graft-Adapter-Generation"])
        first = json.loads(self.ask(CHAT, model="cedar", stream=True).events[0])
        self.assertEqual(first["choices"][0]["delta"]["role"], "assistant")
        self.assertIn(first["fallback"]["code"], ["changed_on_disk", "truncated"])
        reply = self.good("POST", EMBEDDINGS, {"model": "cedar", "input": "a"})
        self.assertEqual(reply.headers["X-Graft-Fallback"], reply.json["fallback"]["code"])


class Silence(Case):
    args = ["--ctx", "65536", "--slots", "2", "--ping-ms", "50"]
    def quiet(self):
        """Says "a", and from then on a token that shows as nothing: penalties fall on what was there already."""
        said = {}
        for token in [*range(60, 110), *range(256, 264)]:
            answer = self.complete(logit_bias={str(token): 100}, max_tokens=2, model="llama", ignore_eos=True)
            said.setdefault(answer["choices"][0]["text"], token)
        a, nothing = said["aa"], said[""]
        return {"model": "llama", "prompt": [nothing], "max_tokens": 60000, "temperature": 0, "ignore_eos": True, "stream": True,
                "repeat_penalty": 3, "repeat_last_n": 65536, "logit_bias": {str(nothing): 90, str(a): 50}}

    def test_comments(self):
        s = self.server.socket()
        s.sendall(request_bytes(self.quiet()))
        seen = b""
        while seen.count(b"\r\n:\n\n\r\n") < 3:
            piece = s.recv(65536)
            self.assertTrue(piece, seen[-300:])
            seen += piece
        s.close()
        self.assertEqual(seen.count(b"data: "), 1, seen)
        self.assertLess(seen.index(b"data: "), seen.index(b":\n\n"))  # never instead of an error's status
        self.settled()

    def test_comments_do_not_disturb(self):
        body = {**self.quiet(), "max_tokens": 1500}
        reply = self.good("POST", COMPLETIONS, body)
        blocks = [b for b in reply.text.split("\n\n") if b and b != ":"]
        self.assertTrue(all(b.startswith("data: ") for b in blocks), blocks)
        self.assertEqual(blocks[-1], "data: [DONE]")


class Prefixes(Case):
    def turn(self, messages, model="alder"):
        body = {"model": model, "messages": messages, "max_tokens": 6, "temperature": 0, "ignore_eos": True}
        answer = self.good("POST", CHAT, body).json
        usage, timings = answer["usage"], answer["timings"]
        self.assertEqual(timings["prompt_n"] + timings["cache_n"], usage["prompt_tokens"])
        self.assertEqual(timings["cache_n"], usage["prompt_tokens_details"]["cached_tokens"])
        return answer["choices"][0]["message"]["content"], timings, usage["prompt_tokens"]

    def test_a_talk_evaluates_what_is_new(self):
        messages, before = [], 0
        for i in range(5):
            messages.append({"role": "user", "content": f"question {i}: " + "abc " * 4})
            text, timings, total = self.turn(messages)
            if i:
                # New are the last answer as text (its tokens may be others than were drawn), the new question, the markers around.
                self.assertGreaterEqual(timings["cache_n"], before - 1)
                self.assertLessEqual(timings["prompt_n"], total - before + 1)
            before = total
            messages.append({"role": "assistant", "content": text})
        # Another adapter shares nothing of it, nor does the base; and the first still has it.
        for other in ["birch", "llama"]:
            self.assertEqual(self.turn(messages[:-1], other)[1]["cache_n"], 0)
        self.assertGreaterEqual(self.turn(messages[:-1])[1]["cache_n"], before - 1)

    def test_ollama_tells_as_well(self):
        body = {"model": "cedar", "messages": [{"role": "user", "content": "once more " * 5}], "stream": False, "options": {"num_predict": 2}}
        first, second = (self.good("POST", "/api/chat", body).json for _ in range(2))
        self.assertEqual(first["prompt_eval_count"], second["prompt_eval_count"])
        self.assertLess(first["cached_tokens"], 30)
        self.assertEqual(second["cached_tokens"], second["prompt_eval_count"] - 1)


if __name__ == "__main__":
    if not GRAFT:
        sys.exit("GRAFT_BIN must name the graft binary")
    unittest.main(verbosity=2)
