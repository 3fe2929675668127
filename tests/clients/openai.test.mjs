// openai for Node.js. test_node.py starts it and says what must be answered.
import assert from "node:assert/strict";
import test from "node:test";

import OpenAI from "openai";

const facts = JSON.parse(process.env.CLIENT_FACTS);
const make = (more) => new OpenAI({ baseURL: facts.root + "/v1", apiKey: facts.key, maxRetries: 0, ...more });
const client = make();
const asked = (more) => ({
    model: "alder", messages: [{ role: "user", content: facts.prompt }], max_tokens: facts.tokens, temperature: 0, ...more,
});
const chat = (more, by = client) => by.chat.completions.create(asked(more));

test("models", async () => {
    const found = [];
    for await (const model of await client.models.list()) found.push(model.id);
    assert.deepEqual(found, facts.names);
    assert.equal((await client.models.retrieve("alder/default")).id, "alder");
});

test("adapters by name", async () => {
    for (const name of facts.names) {
        const answer = await chat({ model: name });
        assert.equal(answer.choices[0].message.content, facts.known[name]);
        assert.equal(answer.usage.completion_tokens, facts.tokens);
    }
});

test("streams", async () => {
    for (const name of facts.names) {
        let text = "", usage;
        for await (const piece of await chat({ model: name, stream: true, stream_options: { include_usage: true } })) {
            text += piece.choices[0]?.delta.content ?? "";
            usage = piece.usage ?? usage;
        }
        assert.equal(text, facts.known[name]);
        assert.equal(usage.completion_tokens, facts.tokens);
    }
    const helper = client.chat.completions.stream(asked());
    assert.equal(await helper.finalContent(), facts.known.alder);
});

test("a stream that is left", async () => {
    for await (const piece of await chat({ stream: true, max_tokens: 400 })) {
        assert.ok(piece.id);
        break; // aborts the request
    }
    assert.equal((await chat()).usage.completion_tokens, facts.tokens);
});

test("several answers, stop, log-probabilities", async () => {
    const answer = await chat({ n: 2, logprobs: true, top_logprobs: 2 });
    assert.equal(answer.choices.length, 2);
    assert.equal(answer.choices[0].logprobs.content[0].top_logprobs.length, 2);
    const stop = facts.known.alder.slice(2, 4);
    const stopped = (await chat({ stop })).choices[0];
    assert.equal(stopped.finish_reason, "stop");
    assert.equal(stopped.message.content, facts.known.alder.slice(0, facts.known.alder.indexOf(stop)));
});

test("structured output", async () => {
    const response_format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema: facts.schema } };
    const answer = await client.chat.completions.parse(asked({ max_tokens: 100, response_format }));
    assert.deepEqual(Object.keys(answer.choices[0].message.parsed), Object.keys(facts.schema.properties));
});

test("completions", async () => {
    const answer = await client.completions.create({ model: "birch", prompt: facts.prompt, max_tokens: facts.tokens, logprobs: 1 });
    assert.equal(answer.choices[0].logprobs.tokens.length, facts.tokens);
});

test("embeddings", async () => {
    const input = [facts.prompt, "other words"];
    const decoded = await client.embeddings.create({ model: "llama", input }); // asks for base64 by itself
    const plain = await client.embeddings.create({ model: "llama", input, encoding_format: "float" });
    assert.equal(decoded.data.length, 2);
    decoded.data[1].embedding.forEach((x, i) => assert.ok(Math.abs(x - plain.data[1].embedding[i]) < 1e-6));
    assert.equal(decoded.data[1].embedding.length, plain.data[1].embedding.length);
});

test("errors", async () => {
    await assert.rejects(chat({ model: "elm" }), (e) => e instanceof OpenAI.NotFoundError && e.code === "model_not_found" && !!e.requestID);
    await assert.rejects(chat({ model: "elm", stream: true }), OpenAI.NotFoundError);
    await assert.rejects(chat({ temperature: -1 }), (e) => e instanceof OpenAI.BadRequestError && e.param === "temperature");
    await assert.rejects(chat({}, make({ apiKey: "wrong" })), OpenAI.AuthenticationError);
    await assert.rejects(chat({ messages: [{ role: "user", content: "a".repeat(9000) }] }), (e) => e.code === "context_length_exceeded");
    await assert.rejects(chat({}, make({ baseURL: facts.full + "/v1" })), (e) => e instanceof OpenAI.RateLimitError && e.code === "queue_full");
});
