/* What is done to adapters: each shows that it runs, what came of it, and why it failed. */
import { adapterPath, ApiError, ndjson, post } from "./api.js";
import { bytes, count } from "./format.js";
import { refresh } from "./poll.js";
import { changed, note, set, state } from "./store.js";

function setBusy(id, what) {
    if (what) {
        state.busy.set(id, what);
        state.failed.delete(id);
    } else {
        state.busy.delete(id);
    }
    changed();
}

/* One at a time for each adapter. `doing` is shown while it runs, `done(reply)` tells what is said after it. */
async function act(id, doing, path, body, done) {
    if (state.busy.has(id)) {
        return;
    }
    setBusy(id, doing);
    try {
        const reply = await post(path, body);
        note(await done(reply));
    } catch (e) {
        state.failed.set(id, e.message);
        note(`${id}: ${e.message}`, true);
    }
    setBusy(id, null);
    refresh();
}

export function load(id) {
    return act(id, "loading", adapterPath(id, "load"), {}, () => `${id} is in memory`);
}

export function reload(id) {
    return act(id, "reloading", adapterPath(id, "load"), { reload: true }, () => `${id} was read again`);
}

export function unload(id) {
    return act(id, "unloading", adapterPath(id, "unload"), undefined, (reply) => {
        const freed = Number(reply.headers.get("X-Graft-Freed-Bytes") || 0),
            pending = Number(reply.headers.get("X-Graft-Pending-Bytes") || 0);
        return `${id} is out of memory: ${bytes(freed)} freed${pending ? `, ${bytes(pending)} when its answers end` : ""}`;
    });
}

export function pin(id, pinned) {
    return act(
        id,
        pinned ? "pinning" : "unpinning",
        adapterPath(id, pinned ? "pin" : "unpin"),
        undefined,
        () => `${id} is ${pinned ? "pinned: it stays in memory" : "no longer pinned"}`,
    );
}

export function switchTo(row) {
    return act(
        row.id,
        "switching",
        "v1/projects/current",
        { project: row.project, adapter: row.adapter },
        () => `${row.id} answers requests that name no model`,
    );
}

/* Registers and loads. Throws: the form shows why. */
export async function add(name, path) {
    await post("v1/load_lora_adapter", { lora_name: name, lora_path: path });
    note(`${name} was added and is in memory`);
    refresh();
}

/* ---- scan --------------------------------------------------------------------------------------------- */

const LINES = 500; /* kept for show; the counts at the end are of all */
let stopper = null;

export async function scan() {
    if (state.scan && state.scan.running) {
        return;
    }
    stopper = new AbortController();
    const s = { lines: [], n: 0, done: null, error: "", running: true };
    set({ scan: s });
    try {
        for await (const line of ndjson(await post("v1/lora_adapters/scan", undefined, stopper.signal))) {
            if (line.error) {
                throw new ApiError(200, String(line.error.message || line.error));
            }
            if (line.done) {
                s.done = line;
            } else {
                s.n++;
                s.lines = [...s.lines.slice(1 - LINES), { ...line, n: s.n }];
            }
            changed();
        }
        s.error = s.done ? "" : "the answer ended early";
    } catch (e) {
        s.error = e.name === "AbortError" ? "stopped; what it had registered stays" : e.message;
    }
    s.running = false;
    note(
        s.error
            ? `scan: ${s.error}`
            : `scan: ${count(s.done.added)} added, ${count(s.done.known)} known, ` +
              `${count(s.done.broken + s.done.refused)} not usable`,
        Boolean(s.error),
    );
    refresh();
}

export function closeScan() {
    stopper?.abort();
    set({ scan: null });
}
