"""langchain-openai."""
import asyncio
import unittest

import openai
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

from common import KEY, NAMES, PROMPT, SCHEMA, TOKENS, ClientCase, FullServer, known


class LangChain(ClientCase):
    def chat(self, name="alder", **more):
        return ChatOpenAI(**{"base_url": self.url, "api_key": KEY, "model": name, "max_tokens": TOKENS, "temperature": 0, "max_retries": 0, **more})

    def test_adapters_by_name(self):
        for name in NAMES:
            answer = self.chat(name).invoke(PROMPT)
            self.assertEqual(answer.content, known(name))
            self.assertEqual(answer.usage_metadata["output_tokens"], TOKENS)

    def test_stream(self):
        pieces = list(self.chat("birch", stream_usage=True).stream(PROMPT))
        self.assertEqual("".join(p.content for p in pieces), known("birch"))
        self.assertEqual(sum(p.usage_metadata["output_tokens"] for p in pieces if p.usage_metadata), TOKENS)

    def test_chain_and_batch(self):
        chain = ChatPromptTemplate.from_messages([("user", "{question}")]) | self.chat("cedar") | StrOutputParser()
        self.assertEqual(chain.batch([{"question": PROMPT}] * 4), [known("cedar")] * 4)
        self.assertEqual(asyncio.run(chain.ainvoke({"question": PROMPT})), known("cedar"))

    def test_completions(self):
        llm = OpenAI(base_url=self.url, api_key=KEY, model="birch", max_tokens=TOKENS, temperature=0)
        self.assertEqual(llm.invoke(PROMPT), known("birch", chat=False))

    def test_structured(self):
        schema = {"title": "Answer", "description": "what was asked for", **SCHEMA}
        answer = self.chat(max_tokens=100).with_structured_output(schema, method="json_schema").invoke(PROMPT)
        self.assertEqual(set(answer), set(SCHEMA["properties"]))

    def test_logprobs(self):
        answer = self.chat(logprobs=True, top_logprobs=2).invoke(PROMPT)
        self.assertEqual(len(answer.response_metadata["logprobs"]["content"]), TOKENS)

    def test_embeddings(self):
        # Otherwise it sends tokens of OpenAI's own vocabulary.
        embeddings = OpenAIEmbeddings(base_url=self.url, api_key=KEY, model="llama", check_embedding_ctx_length=False)
        vectors = embeddings.embed_documents(["a", "b"])
        self.assertEqual(len(vectors), 2)
        self.assertEqual(len(embeddings.embed_query("a")), len(vectors[0]))

    def test_errors(self):
        with self.assertRaises(openai.NotFoundError):
            self.chat("elm").invoke(PROMPT)
        with self.assertRaises(openai.AuthenticationError):
            self.chat(api_key="wrong").invoke(PROMPT)
        with self.assertRaises(openai.BadRequestError):
            self.chat(temperature=-1).invoke(PROMPT)
        with self.assertRaises(openai.BadRequestError):
            self.chat().bind_tools([{"type": "function", "function": {"name": "f", "parameters": {}}}]).invoke(PROMPT)
        with FullServer() as full, self.assertRaises(openai.RateLimitError):
            self.chat(base_url=full.url).invoke(PROMPT)


if __name__ == "__main__":
    unittest.main(verbosity=2)
