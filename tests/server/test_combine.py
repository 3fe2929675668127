#!/usr/bin/env python3
"""Adapters that only rows can apply, through the server: alone, beside others, two that cannot be combined, and where rows cannot be."""
import unittest

import serving
from serving import PROMPT

ADAPTERS = {"plain": "plain", "dora": "dora", "dora2": "dora-rslora", "head": "modules-to-save"}


def ask(server, *lora):
    return server.post("/v1/completions", {"model": "llama", "prompt": PROMPT, "max_tokens": 8, "temperature": 0,
                                           "fallback": "error", "lora": [{"name": n, "scale": s} for n, s in lora]})


class Combine(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = serving.Server(adapters=ADAPTERS)

    @classmethod
    def tearDownClass(cls):
        cls.server.close()

    def text(self, *lora):
        reply = ask(self.server, *lora)
        self.assertEqual(reply.status, 200, reply.text)
        return reply.json["choices"][0]["text"]

    def test_each_does_something(self):
        texts = {name: self.text((name, 1)) for name in ADAPTERS}
        texts["base"] = self.text()
        self.assertEqual(len(set(texts.values())), len(texts), texts)
        self.assertEqual(self.text(("dora", 0)), texts["base"])

    def test_the_order_of_names_does_not_matter(self):
        one = self.text(("dora", 1), ("plain", 0.5), ("head", 0.5))
        self.assertEqual(one, self.text(("head", 0.5), ("plain", 0.5), ("dora", 1)))

    def test_two_that_scale_one_weight(self):
        for _ in range(2):  # in memory or not
            reply = ask(self.server, ("dora", 1), ("plain", 1), ("dora2", 0.5))
            self.assertEqual(reply.status, 400, reply.text)
            self.assertEqual(reply.json["error"]["code"], "bad_request")
            for name in ("dora/default", "dora2/default", "blk.0.attn_k.weight"):
                self.assertIn(name, reply.json["error"]["message"])
            self.assertNotIn("adapter_model", reply.text)
        self.text(("dora", 1), ("dora2", 0))
        self.text(("dora", 1))
        running = lambda: [v for k, v in self.server.metrics().items() if k.startswith("vllm:num_requests_running")]
        serving.wait_until(lambda: running() == [0], "nothing runs")


class Grouped(unittest.TestCase):
    def test_refused_at_load(self):
        server = serving.Server("--apply", "grouped", adapters=ADAPTERS)
        try:
            self.assertEqual(ask(server, ("plain", 1)).status, 200)
            for name in ("dora", "head"):
                reply = ask(server, (name, 1))
                self.assertEqual((reply.status, reply.json["error"]["code"]), (422, "unsupported_adapter"), reply.text)
                self.assertIn("by rows", reply.json["error"]["message"])
            self.assertEqual(ask(server, ("plain", 1)).status, 200)
        finally:
            server.close()


if __name__ == "__main__":
    unittest.main()
