/* Calls to the server, with the key that the user gave. Paths are relative to the page, so that a proxy may put it
 * below a prefix. */

const KEY = "graft.key";

function storages() {
    try {
        return [sessionStorage, localStorage];
    } catch {
        return []; /* switched off: the key lives as long as the page */
    }
}

let key =
    storages()
        .map((s) => s.getItem(KEY))
        .find(Boolean) || "";

export function hasKey() {
    return key !== "";
}

/* "" forgets it. `remember`: beyond this tab. */
export function setKey(text, remember) {
    key = text;
    storages().forEach((s, i) => {
        s.removeItem(KEY);
        if (text && i === (remember ? 1 : 0)) {
            s.setItem(KEY, text);
        }
    });
}

export class ApiError extends Error {
    constructor(status, message) {
        super(message);
        this.status = status; /* 0: no answer came */
    }
}

/* OpenAI's error object, vLLM's, Ollama's string, or whatever a proxy says. */
function messageOf(status, text) {
    try {
        const { error } = JSON.parse(text);
        return String(error.message || error);
    } catch {
        return text.slice(0, 300) || `status ${status}`;
    }
}

async function call(method, path, body, signal) {
    const headers = {};
    if (key) {
        headers.Authorization = `Bearer ${key}`;
    }
    if (body !== undefined) {
        headers["Content-Type"] = "application/json";
    }
    let reply;
    try {
        reply = await fetch(path, {
            method,
            headers,
            body: body === undefined ? undefined : JSON.stringify(body),
            signal,
            cache: "no-store",
            credentials: "omit",
        });
    } catch (e) {
        if (e.name === "AbortError") {
            throw e;
        }
        throw new ApiError(
            0,
            e.name === "TimeoutError" ? "the server does not answer" : "the server cannot be reached",
        );
    }
    if (!reply.ok) {
        throw new ApiError(reply.status, messageOf(reply.status, await reply.text()));
    }
    return reply;
}

export async function get(path) {
    return (await call("GET", path, undefined, AbortSignal.timeout(10000))).json();
}

/* The reply itself: its body may be text, and headers count. */
export function post(path, body, signal) {
    return call("POST", path, body, signal);
}

export function adapterPath(id, action) {
    return `v1/lora_adapters/${encodeURIComponent(id)}/${action}`;
}

/* The lines of a body as they arrive. */
async function* lines(reply) {
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
        const { done, value } = await reader.read();
        if (done) {
            break;
        }
        const found = (rest + value).split("\n");
        rest = found.pop();
        yield* found;
    }
    if (rest) {
        yield rest;
    }
}

export async function* ndjson(reply) {
    for await (const line of lines(reply)) {
        if (line.trim()) {
            yield JSON.parse(line);
        }
    }
}

/* The data of server-sent events; several lines of one event are joined. */
export async function* events(reply) {
    let data = [];
    for await (const raw of lines(reply)) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line === "" && data.length) {
            yield data.join("\n");
            data = [];
        } else if (line.startsWith("data:")) {
            data.push(line.slice(line[5] === " " ? 6 : 5));
        }
    }
}
