"""ollama (Python), plain and asynchronous."""
import asyncio
import json
import unittest

import ollama

from common import KEY, MESSAGES, NAMES, PROMPT, SCHEMA, TOKENS, ClientCase, FullServer, known

# Ollama's penalty for repetition, 1.1 by itself, would give other answers than `graft run`.
OPTIONS = {"temperature": 0, "num_predict": TOKENS, "repeat_penalty": 1}


def make(root, key=KEY, kind=ollama.Client):
    return kind(host=root, headers={"Authorization": f"Bearer {key}"})


class Ollama(ClientCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.client = make(cls.root)

    def names_in_memory(self):
        return {m.model.removesuffix(":latest") for m in self.client.ps().models}

    def test_list(self):
        models = self.client.list().models
        self.assertEqual(sorted(m.model.removesuffix(":latest") for m in models), sorted(NAMES))
        self.assertTrue(all(m.digest and m.size and m.modified_at for m in models))

    def test_show(self):
        shown = self.client.show("alder")
        self.assertEqual(shown.details.parent_model, "llama")
        self.assertIn("completion", shown.capabilities)
        self.assertEqual(shown.modelinfo["general.architecture"], "llama")

    def test_chat(self):
        for name in [*NAMES, "alder:latest"]:
            expected = known(name.removesuffix(":latest"))
            answer = self.client.chat(model=name, messages=MESSAGES, options=OPTIONS)
            self.assertEqual((answer.message.content, answer.done, answer.done_reason), (expected, True, "length"))
            self.assertEqual(answer.eval_count, TOKENS)
            self.assertGreater(answer.total_duration, 0)
            pieces = list(self.client.chat(model=name, messages=MESSAGES, options=OPTIONS, stream=True))
            self.assertEqual("".join(p.message.content for p in pieces), expected)
            self.assertEqual([p.done for p in pieces], [False] * (len(pieces) - 1) + [True])

    def test_generate(self):
        for name in NAMES:
            answer = self.client.generate(model=name, prompt=PROMPT, options=OPTIONS, raw=True)
            self.assertEqual(answer.response, known(name, chat=False))
            pieces = self.client.generate(model=name, prompt=PROMPT, options=OPTIONS, stream=True)
            self.assertEqual("".join(p.response for p in pieces), known(name))

    def test_stop(self):
        text = known("alder")
        answer = self.client.chat(model="alder", messages=MESSAGES, options={**OPTIONS, "stop": [text[2:4]]})
        self.assertEqual((answer.message.content, answer.done_reason), (text[:text.index(text[2:4])], "stop"))

    def test_structured(self):
        answer = self.client.chat(model="alder", messages=MESSAGES, format=SCHEMA, options={"temperature": 0})
        self.assertEqual(set(json.loads(answer.message.content)), set(SCHEMA["properties"]))
        answer = self.client.generate(model="alder", prompt=PROMPT, format=SCHEMA, options={"temperature": 0})
        self.assertEqual(set(json.loads(answer.response)), set(SCHEMA["properties"]))

    def test_embed(self):
        both = self.client.embed(model="llama", input=["a", "some words"]).embeddings
        self.assertEqual(len(both), 2)
        self.assertAlmostEqual(sum(x * x for x in both[1]), 1, places=4)
        self.assertEqual(len(self.client.embeddings(model="llama", prompt="a").embedding), len(both[0]))

    def test_keep_alive(self):
        self.client.generate(model="cedar", prompt="", keep_alive="10m")  # loads only
        self.assertIn("cedar", self.names_in_memory())
        self.assertEqual(self.client.generate(model="cedar", prompt="", keep_alive=0).done_reason, "unload")
        self.assertNotIn("cedar", self.names_in_memory())
        self.client.chat(model="cedar", messages=MESSAGES, options=OPTIONS, keep_alive=-1)
        self.assertIn("cedar", self.names_in_memory())

    def test_errors(self):
        def status(call, *args, **more):
            with self.assertRaises(ollama.ResponseError) as raised:
                list(call(*args, **more))
            self.assertTrue(raised.exception.error)
            return raised.exception.status_code
        for stream in (False, True):
            self.assertEqual(status(self.client.chat, model="elm", messages=MESSAGES, stream=stream), 404)
            self.assertEqual(status(self.client.generate, model="alder", prompt="x", options={"temperature": -1}, stream=stream), 400)
        self.assertEqual(status(self.client.show, "elm"), 404)
        self.assertEqual(status(make(self.root, "wrong").list), 401)
        with FullServer() as full:
            self.assertEqual(status(make(full.root).generate, model="alder", prompt="x"), 503)

    def test_leaving_a_stream(self):
        stream = self.client.chat(model="alder", messages=MESSAGES, options={"num_predict": 400}, stream=True)
        next(stream)
        stream.close()
        self.settled()

    def test_asynchronous(self):
        async def one(client, name):
            return "".join([p.message.content async for p in await client.chat(model=name, messages=MESSAGES, options=OPTIONS, stream=True)])

        async def all_at_once():
            client = make(self.root, kind=ollama.AsyncClient)
            return await asyncio.gather(*[one(client, name) for name in NAMES * 3])
        self.assertEqual(asyncio.run(all_at_once()), [known(name) for name in NAMES * 3])


if __name__ == "__main__":
    unittest.main(verbosity=2)
