// ollama for Node.js. test_node.py starts it and says what must be answered.
import assert from "node:assert/strict";
import test from "node:test";

import { Ollama } from "ollama";

const facts = JSON.parse(process.env.CLIENT_FACTS);
const make = (key) => new Ollama({ host: facts.root, headers: { Authorization: `Bearer ${key}` } });
const client = make(facts.key);
// Ollama's penalty for repetition, 1.1 by itself, would give other answers than `graft run`.
const options = { temperature: 0, num_predict: facts.tokens, repeat_penalty: 1 };
const messages = [{ role: "user", content: facts.prompt }];

test("models", async () => {
    assert.deepEqual((await client.list()).models.map((m) => m.name.replace(/:latest$/, "")).sort(), [...facts.names].sort());
    assert.equal((await client.show({ model: "alder" })).details.parent_model, "llama");
    assert.ok((await client.version()).version);
});

test("chat", async () => {
    for (const model of facts.names) {
        const answer = await client.chat({ model, messages, options });
        assert.equal(answer.message.content, facts.known[model]);
        assert.equal(answer.eval_count, facts.tokens);
        let text = "", last;
        for await (const piece of await client.chat({ model, messages, options, stream: true })) {
            text += piece.message.content;
            last = piece;
        }
        assert.equal(text, facts.known[model]);
        assert.ok(last.done);
    }
});

test("generate", async () => {
    const whole = await client.generate({ model: "birch", prompt: facts.prompt, options });
    let text = "";
    for await (const piece of await client.generate({ model: "birch", prompt: facts.prompt, options, stream: true })) text += piece.response;
    assert.equal(text, whole.response);
});

test("a stream that is aborted", async () => {
    const stream = await client.chat({ model: "alder", messages, options: { num_predict: 400 }, stream: true });
    await assert.rejects(async () => {
        for await (const piece of stream) stream.abort();
    }, { name: "AbortError" });
});

test("structured output", async () => {
    const answer = await client.chat({ model: "alder", messages, format: facts.schema, options: { temperature: 0 } });
    assert.deepEqual(Object.keys(JSON.parse(answer.message.content)), Object.keys(facts.schema.properties));
});

test("embed", async () => {
    const answer = await client.embed({ model: "llama", input: ["a", "b"] });
    assert.equal(answer.embeddings.length, 2);
});

test("in memory", async () => {
    await client.chat({ model: "cedar", messages, options, keep_alive: "10m" });
    assert.ok((await client.ps()).models.some((m) => m.name.startsWith("cedar")));
});

test("errors", async () => {
    await assert.rejects(client.chat({ model: "elm", messages }), { name: "ResponseError", status_code: 404 });
    await assert.rejects(client.chat({ model: "elm", messages, stream: true }), { name: "ResponseError", status_code: 404 });
    await assert.rejects(client.generate({ model: "alder", prompt: "x", options: { temperature: -1 } }), { name: "ResponseError", status_code: 400 });
    await assert.rejects(make("wrong").list(), { name: "ResponseError", status_code: 401 });
});
