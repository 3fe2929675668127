#!/usr/bin/env python3
"""Tests of activated adapters (aLoRA) on `graft serve`: whoever is asked about one context, through whichever API, evaluates only
what is new, and answers as if alone.

GRAFT_BIN names the binary (required). The base is the tiny one of tests/oracle/golden. Python's standard library only.
"""
import json
import shutil
import sys
import tempfile
import threading
import unittest
from pathlib import Path

from serving import GOLDEN, GRAFT, Server

INVOCATIONS = {"ask": "<?>", "check": "<!>", "rate": "<#>"}
CONTEXT = "The maintainers met on Monday and wrote down what was to be done, by whom, and until when. " * 2
QUESTIONS = {name: f" Well, {name} it. {text}" for name, text in INVOCATIONS.items()}


class Activated(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.server = self.start({})
        tokens = {name: self.tokens(text) for name, text in INVOCATIONS.items()}
        self.server.close()
        self.server = self.start(tokens)
        self.addCleanup(self.server.close)

    def start(self, tokens):
        """With an activated adapter for each, and a plain one, of the same matrices."""
        adapters = Path(self.folder.name) / "adapters"
        shutil.rmtree(adapters, ignore_errors=True)
        for name, invocation in {**tokens, "plain": None}.items():
            shutil.copytree(GOLDEN / "adapters/llama/alora", adapters / name)
            config = json.loads((adapters / name / "adapter_config.json").read_text())
            config["alora_invocation_tokens"] = invocation
            (adapters / name / "adapter_config.json").write_text(json.dumps(config))
        return Server("--slots", "2", "--ctx", "512", "--kv", "f32", folder=self.folder.name)

    def tokens(self, text):
        return self.server.post("/tokenize", {"content": text}).json["tokens"]

    def complete(self, model, prompt, **more):
        """(text, tokens from the cache, tokens of the prompt)"""
        body = {"prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True, "fallback": "error", **more}
        reply = self.server.post("/v1/completions", {**body, **({"model": model} if model else {})})
        self.assertEqual(reply.status, 200, reply.text)
        usage = reply.json["usage"]
        return reply.json["choices"][0]["text"], usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]

    def cold(self, model, prompt):
        return self.complete(model, prompt, cache_prompt=False)[0]

    def test_switching(self):
        """Three adapters and the base over one context, in two slots."""
        context = self.tokens(CONTEXT)
        answers = {name: self.cold(name, CONTEXT + QUESTIONS[name]) for name in QUESTIONS}
        self.complete("ask", CONTEXT + QUESTIONS["ask"])
        for name in ["check", "rate", "ask", "rate", "check"]:
            text, cached, n = self.complete(name, CONTEXT + QUESTIONS[name])
            self.assertEqual(text, answers[name])
            self.assertGreaterEqual(cached, len(context))
            self.assertLessEqual(n - cached, len(self.tokens(QUESTIONS[name])) + 1)
        self.assertGreaterEqual(self.complete(None, CONTEXT + " And you?")[1], len(context))
        self.assertEqual(self.complete("plain", CONTEXT + QUESTIONS["ask"])[1], 0)

    def probability(self, model, prompt):
        """Of the first token of the answer, as a logarithm."""
        body = {"prompt": prompt, "max_tokens": 1, "logprobs": 1, "cache_prompt": False, **({"model": model} if model else {})}
        reply = self.server.post("/v1/completions", {**body, "temperature": 0})
        self.assertEqual(reply.status, 200, reply.text)
        return reply.json["choices"][0]["logprobs"]["token_logprobs"][0]

    def test_without_invocation(self):
        prompt = CONTEXT + QUESTIONS["ask"]
        of_base = self.probability(None, prompt)
        self.assertAlmostEqual(self.probability("check", prompt), of_base, delta=1e-4)
        self.assertGreater(abs(self.probability("ask", prompt) - of_base), 1e-3)
        self.assertGreater(abs(self.probability("plain", prompt) - self.probability("ask", prompt)), 1e-3)

    def test_both_apis(self):
        """Ollama's call goes on where OpenAI's was, and the other way round."""
        context = len(self.tokens(CONTEXT))
        self.complete("ask", CONTEXT + QUESTIONS["ask"])
        body = {"model": "check", "prompt": CONTEXT + QUESTIONS["check"], "raw": True, "stream": False,
                "options": {"temperature": 0, "repeat_penalty": 1, "num_predict": 8}}
        reply = self.server.post("/api/generate", body)
        self.assertEqual(reply.status, 200, reply.text)
        self.assertGreaterEqual(reply.json["cached_tokens"], context)
        self.assertEqual(reply.json["response"], self.complete("check", CONTEXT + QUESTIONS["check"], ignore_eos=False, cache_prompt=False)[0])
        self.assertGreaterEqual(self.complete("rate", CONTEXT + QUESTIONS["rate"])[1], context)

    def test_at_once(self):
        """Everybody at the same time, more than there are slots: the answers are those of cold requests alone."""
        prompts = [(name, CONTEXT * (1 + k % 2) + QUESTIONS[q]) for k, name in enumerate([*QUESTIONS, "plain", None] * 3) for q in QUESTIONS]
        want = [self.cold(*p) for p in prompts]
        got = [None] * len(prompts)

        def run(i):
            got[i] = self.complete(*prompts[i])[0]
        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(prompts))]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(got, want)


if __name__ == "__main__":
    if not GRAFT:
        sys.exit("GRAFT_BIN is not set")
    unittest.main()
