#!/usr/bin/env python3
"""Real clients, unmodified, against `graft serve`: run.sh installs them. GRAFT_BIN names the binary."""
import sys
import unittest

import openai

from serving import ADAPTERS, GRAFT, PROMPT, Server, run_answer

MESSAGES = [{"role": "user", "content": PROMPT}]


class OpenAiPython(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(env={"GRAFT_API_KEY": "correct-horse"})
        cls.client = cls.make("correct-horse")

    @classmethod
    def make(cls, key, **more):
        return openai.OpenAI(base_url=f"http://127.0.0.1:{cls.server.port}/v1", api_key=key, **more)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.server.close()

    def chat(self, client=None, **more):
        return (client or self.client).chat.completions.create(**{"model": "alder", "messages": MESSAGES, "max_tokens": 8, "temperature": 0, **more})

    def test_models(self):
        models = list(self.client.models.list())
        self.assertEqual([m.id for m in models], ["llama", *sorted(ADAPTERS)])
        self.assertEqual(models[1].model_extra["parent"], "llama")
        self.assertEqual(self.client.models.retrieve("alder/default").id, "alder")
        with self.assertRaises(openai.NotFoundError) as raised:
            self.client.models.retrieve("elm")
        self.assertEqual(raised.exception.code, "model_not_found")

    def test_adapters_by_name(self):
        for name in ADAPTERS:
            answer = self.chat(model=name)
            self.assertEqual(answer.choices[0].message.content, run_answer(PROMPT, name, chat=True)["text"])
            self.assertEqual(answer.model_extra["adapter"], name)
        self.assertEqual(answer.usage.completion_tokens, 8)

    def test_stream(self):
        whole = self.chat()
        text, usage, finish = "", None, None
        for chunk in self.chat(stream=True, stream_options={"include_usage": True}):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
        self.assertEqual((text, finish), (whole.choices[0].message.content, whole.choices[0].finish_reason))
        self.assertEqual(usage.total_tokens, whole.usage.total_tokens)
        with self.client.chat.completions.stream(model="alder", messages=MESSAGES, extra_body={"grammar": 'root ::= "yes"'}) as stream:
            self.assertEqual(stream.get_final_completion().choices[0].message.content, "yes")

    def test_logprobs(self):
        content = self.chat(logprobs=True, top_logprobs=2).choices[0].logprobs.content
        self.assertEqual(len(content[0].top_logprobs), 2)
        shape = self.client.completions.create(model="alder", prompt=PROMPT, max_tokens=4, temperature=0, logprobs=2).choices[0].logprobs
        self.assertEqual(len(shape.tokens), len(shape.top_logprobs))

    def test_completions(self):
        answer = self.client.completions.create(model="birch", prompt=[PROMPT, "x"], max_tokens=8, temperature=0, n=2)
        self.assertEqual([c.index for c in answer.choices], [0, 1, 2, 3])
        self.assertEqual(answer.choices[0].text, run_answer(PROMPT, "birch")["text"])
        text = "".join(c.choices[0].text for c in self.client.completions.create(model="birch", prompt=PROMPT, max_tokens=8, temperature=0, stream=True))
        self.assertEqual(text, answer.choices[0].text)

    def test_errors(self):
        with self.assertRaises(openai.AuthenticationError):
            self.chat(self.make("wrong"))
        with self.assertRaises(openai.BadRequestError) as raised:
            self.chat(temperature=-1)
        self.assertEqual(raised.exception.param, "temperature")
        with self.assertRaises(openai.BadRequestError) as raised:
            self.chat(messages=[{"role": "user", "content": "a" * 9000}])
        self.assertEqual(raised.exception.code, "context_length_exceeded")
        with self.assertRaises(openai.NotFoundError):
            self.chat(model="elm", stream=True)
        with self.assertRaises(openai.BadRequestError):
            self.chat(tools=[{"type": "function", "function": {"name": "f"}}])
        self.assertTrue(raised.exception.request_id)

    def test_error_in_a_stream(self):
        server = Server("--deadline-s", "1", "--ctx", "65536")
        try:
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="any")
            with self.assertRaises(openai.APIError) as raised:
                for _ in client.completions.create(model="alder", prompt="x", max_tokens=60000, stream=True, extra_body={"ignore_eos": True}):
                    pass
            self.assertIn("not complete", raised.exception.message)
            client.close()
        finally:
            server.close()

    def test_leaving_a_stream(self):
        stream = self.chat(stream=True, max_tokens=400)
        next(iter(stream))
        stream.close()
        self.assertEqual(self.chat().usage.completion_tokens, 8)


if __name__ == "__main__":
    if not GRAFT:
        sys.exit("GRAFT_BIN must name the graft binary")
    unittest.main(verbosity=2)
