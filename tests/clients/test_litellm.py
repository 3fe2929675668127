"""litellm, by its providers openai, hosted_vllm and ollama_chat."""
import json
import os
import unittest

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # nothing is fetched
import litellm  # noqa: E402

from common import KEY, MESSAGES, NAMES, SCHEMA, TOKENS, ClientCase, FullServer, known  # noqa: E402

litellm.suppress_debug_info = True


class OpenAi(ClientCase):
    provider = "openai"

    def base(self):
        return self.url

    def ask(self, name, **more):
        return litellm.completion(**{"model": f"{self.provider}/{name}", "messages": MESSAGES, "api_base": self.base(), "api_key": KEY,
                                     "max_tokens": TOKENS, "temperature": 0, "num_retries": 0, "max_retries": 0, **more})

    def test_adapters_by_name(self):
        for name in NAMES:
            answer = self.ask(name)
            self.assertEqual(answer.choices[0].message.content, known(name))
            self.assertEqual(answer.usage.completion_tokens, TOKENS)

    def test_stream(self):
        pieces = list(self.ask("birch", stream=True, stream_options={"include_usage": True}))
        self.assertEqual("".join(p.choices[0].delta.content or "" for p in pieces if p.choices), known("birch"))
        self.assertEqual(litellm.stream_chunk_builder(pieces).usage.completion_tokens, TOKENS)

    def test_structured(self):
        answer = self.ask("alder", max_tokens=100, response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}})
        self.assertEqual(set(json.loads(answer.choices[0].message.content)), set(SCHEMA["properties"]))

    def test_errors(self):
        with self.assertRaises(litellm.NotFoundError):
            self.ask("elm")
        with self.assertRaises(litellm.NotFoundError):
            for _ in self.ask("elm", stream=True):
                pass
        with self.assertRaises(litellm.AuthenticationError):
            self.ask("alder", api_key="wrong")


class OpenAiMore(OpenAi):
    """What only OpenAI's protocol has."""

    def test_more_answers(self):
        self.assertEqual(len(self.ask("alder", n=2).choices), 2)

    def test_logprobs(self):
        content = self.ask("alder", logprobs=True, top_logprobs=2).choices[0].logprobs.content
        self.assertEqual(len(content[0].top_logprobs), 2)

    def test_embeddings(self):
        answer = litellm.embedding(model=f"{self.provider}/llama", input=["a", "b"], api_base=self.base(), api_key=KEY)
        self.assertEqual(len(answer.data), 2)

    def test_more_errors(self):
        with self.assertRaises(litellm.BadRequestError):
            self.ask("alder", temperature=-1)
        with self.assertRaises(litellm.ContextWindowExceededError):
            self.ask("alder", messages=[{"role": "user", "content": "a" * 9000}])
        with FullServer() as full, self.assertRaises(litellm.RateLimitError):
            self.ask("alder", api_base=full.url)


class HostedVllm(OpenAiMore):
    provider = "hosted_vllm"


class Ollama(OpenAi):
    provider = "ollama_chat"

    def ask(self, name, **more):
        return super().ask(name, repeat_penalty=1, **more)  # Ollama's, 1.1 by itself, would give other answers than `graft run`

    def base(self):
        return self.root


if __name__ == "__main__":
    del OpenAi  # OpenAiMore has its tests
    unittest.main(verbosity=2)
