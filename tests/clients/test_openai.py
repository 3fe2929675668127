"""openai (Python), plain and asynchronous."""
import asyncio
import enum
import threading
import unittest

import openai
import pydantic

from common import KEY, MESSAGES, NAMES, PROMPT, TOKENS, ClientCase, FullServer, known
from serving import Server


class Colour(str, enum.Enum):
    red = "red"
    green = "green"


class Answer(pydantic.BaseModel):
    colour: Colour
    sure: bool


def make(url, key=KEY, **more):
    return openai.OpenAI(base_url=url, api_key=key, **more)


class Calls(ClientCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.client = make(cls.url)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        super().tearDownClass()

    def chat(self, client=None, **more):
        return (client or self.client).chat.completions.create(
            **{"model": "alder", "messages": MESSAGES, "max_tokens": TOKENS, "temperature": 0, **more})

    def test_models(self):
        models = list(self.client.models.list())
        self.assertEqual([m.id for m in models], NAMES)
        self.assertEqual(models[1].model_extra["parent"], "llama")
        self.assertEqual(self.client.models.retrieve("alder/default").id, "alder")
        with self.assertRaises(openai.NotFoundError) as raised:
            self.client.models.retrieve("elm")
        self.assertEqual(raised.exception.code, "model_not_found")

    def test_adapters_by_name(self):
        for name in NAMES:
            answer = self.chat(model=name)
            self.assertEqual(answer.choices[0].message.content, known(name))
            self.assertEqual(answer.model_extra["adapter"], None if name == "llama" else name)
        self.assertEqual(answer.usage.completion_tokens, TOKENS)
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + TOKENS)
        self.assertGreater(self.chat(model=name).usage.prompt_tokens_details.cached_tokens, 0)

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

    def test_several_answers(self):
        answer = self.chat(n=3, temperature=2, seed=5)
        self.assertEqual([c.index for c in answer.choices], [0, 1, 2])
        self.assertGreater(len({c.message.content for c in answer.choices}), 1)
        said = {}
        for chunk in self.chat(n=3, temperature=2, seed=5, stream=True):
            for choice in chunk.choices:
                said[choice.index] = said.get(choice.index, "") + (choice.delta.content or "")
        self.assertEqual([said[i] for i in range(3)], [c.message.content for c in answer.choices])

    def test_stop(self):
        text = known("alder")
        answer = self.chat(stop=[text[2:4], "never"])
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertEqual(answer.choices[0].message.content, text[:text.index(text[2:4])])

    def test_structured(self):
        answer = self.client.chat.completions.parse(model="alder", messages=MESSAGES, response_format=Answer)
        self.assertIsInstance(answer.choices[0].message.parsed, Answer)
        with self.client.chat.completions.stream(model="alder", messages=MESSAGES, response_format=Answer) as stream:
            self.assertIsInstance(stream.get_final_completion().choices[0].message.parsed, Answer)

    def test_logprobs(self):
        content = self.chat(logprobs=True, top_logprobs=2).choices[0].logprobs.content
        self.assertEqual(len(content[0].top_logprobs), 2)
        self.assertEqual("".join(t.token for t in content), known("alder"))
        shape = self.client.completions.create(model="alder", prompt=PROMPT, max_tokens=4, temperature=0, logprobs=2).choices[0].logprobs
        self.assertEqual(len(shape.tokens), len(shape.top_logprobs))

    def test_completions(self):
        answer = self.client.completions.create(model="birch", prompt=[PROMPT, "x"], max_tokens=TOKENS, temperature=0, n=2)
        self.assertEqual([c.index for c in answer.choices], [0, 1, 2, 3])
        self.assertEqual(answer.choices[0].text, known("birch", chat=False))
        pieces = self.client.completions.create(model="birch", prompt=PROMPT, max_tokens=TOKENS, temperature=0, stream=True)
        self.assertEqual("".join(c.choices[0].text for c in pieces), answer.choices[0].text)

    def test_embeddings(self):
        texts = [PROMPT, "a longer one, of other words"]
        decoded = self.client.embeddings.create(model="llama", input=texts)  # asks for base64 by itself
        plain = self.client.embeddings.create(model="llama", input=texts, encoding_format="float")
        self.assertEqual([e.index for e in decoded.data], [0, 1])
        for a, b in zip(decoded.data, plain.data):
            self.assertEqual(len(a.embedding), len(b.embedding))
            for x, y in zip(a.embedding, b.embedding):
                self.assertAlmostEqual(x, y, places=6)
        self.assertNotEqual(plain.data[0].embedding, plain.data[1].embedding)
        self.assertGreater(plain.usage.prompt_tokens, 0)
        other = self.client.embeddings.create(model="alder", input=PROMPT).data[0].embedding
        self.assertTrue(any(abs(x - y) > 1e-4 for x, y in zip(other, plain.data[0].embedding)))
        with self.assertRaises(openai.NotFoundError):
            self.client.embeddings.create(model="elm", input=PROMPT)

    def test_errors(self):
        with self.assertRaises(openai.AuthenticationError):
            self.chat(make(self.url, "wrong"))
        with self.assertRaises(openai.BadRequestError) as raised:
            self.chat(temperature=-1)
        self.assertEqual(raised.exception.param, "temperature")
        with self.assertRaises(openai.BadRequestError) as raised:
            self.chat(messages=[{"role": "user", "content": "a" * 9000}])
        self.assertEqual(raised.exception.code, "context_length_exceeded")
        with self.assertRaises(openai.NotFoundError):
            self.chat(model="elm", stream=True)
        with self.assertRaises(openai.BadRequestError) as raised:
            self.chat(tools=[{"type": "function", "function": {"name": "f"}}])
        self.assertEqual(raised.exception.param, "tools")
        self.assertTrue(raised.exception.request_id)
        with self.assertRaises(openai.NotFoundError):  # a call that graft does not have
            self.client.responses.create(model="alder", input=PROMPT)

    def test_leaving_a_stream(self):
        stream = self.chat(stream=True, max_tokens=400)
        next(iter(stream))
        stream.close()
        self.assertEqual(self.chat().usage.completion_tokens, TOKENS)
        self.settled()

    def test_asynchronous(self):
        async def all_at_once():
            async with openai.AsyncOpenAI(base_url=self.url, api_key=KEY) as client:
                async def one(name):
                    stream = await client.chat.completions.create(model=name, messages=MESSAGES, max_tokens=TOKENS, temperature=0, stream=True)
                    return "".join([c.choices[0].delta.content or "" async for c in stream])
                return await asyncio.gather(*[one(name) for name in NAMES * 3])
        self.assertEqual(asyncio.run(all_at_once()), [known(name) for name in NAMES * 3])


class ProjectKey(ClientCase):
    """A key that is for one project only."""

    def test_it(self):
        with make(self.url) as admin:
            made = admin.post("/keys", body={"name": "alders", "projects": ["alder"]}, cast_to=object)
        with make(self.url, made["key"]) as client:
            self.assertEqual([m.id for m in client.models.list()], ["llama", "alder"])
            answer = client.chat.completions.create(model="alder", messages=MESSAGES, max_tokens=TOKENS, temperature=0)
            self.assertEqual(answer.choices[0].message.content, known("alder"))
            with self.assertRaises(openai.NotFoundError):
                client.chat.completions.create(model="birch", messages=MESSAGES)
            with self.assertRaises(openai.PermissionDeniedError):
                client.post("/unload_lora_adapter", body={"lora_name": "alder"}, cast_to=str)


class Limits(unittest.TestCase):
    def test_full(self):
        with FullServer() as full, make(full.url, max_retries=0) as impatient, make(full.url) as patient:
            with self.assertRaises(openai.RateLimitError) as raised:
                impatient.completions.create(model="alder", prompt="x", max_tokens=1)
            self.assertEqual(raised.exception.code, "queue_full")
        with FullServer() as full, make(full.url) as patient:
            thread = threading.Thread(target=full.free_after_a_refusal)
            thread.start()
            answer = patient.completions.create(model="alder", prompt="x", max_tokens=1)
            thread.join()
            self.assertEqual(answer.usage.completion_tokens, 1)

    def test_too_late(self):
        with FullServer() as full, make(full.url, max_retries=0, timeout=1) as client:
            full.free_one()
            with self.assertRaises(openai.APITimeoutError):
                client.completions.create(model="alder", prompt="x", max_tokens=60000, extra_body={"ignore_eos": True})

    def test_error_in_a_stream(self):
        server = Server("--deadline-s", "1", "--ctx", "65536", env={"GRAFT_API_KEY": KEY})
        try:
            with make(f"http://127.0.0.1:{server.port}/v1") as client, self.assertRaises(openai.APIError) as raised:
                for _ in client.completions.create(model="alder", prompt="x", max_tokens=60000, stream=True, extra_body={"ignore_eos": True}):
                    pass
            self.assertIn("not complete", raised.exception.message)
        finally:
            server.close()


if __name__ == "__main__":
    unittest.main(verbosity=2)
