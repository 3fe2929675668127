/* Asks the server for news: one request each second while the page is seen, fewer while it is hidden, ever fewer while the server
 * does not answer. The figures come most often; lists when they are due or when something happened to them. */
import { get, hasKey } from "./api.js";
import { set, state } from "./store.js";

const SEEN_MS = 1000,
    HIDDEN_MS = 15000,
    SLOWEST_MS = 15000;
const SAMPLES = 240;

/* When each was last asked for, and after how many milliseconds it is due again. */
const asked = { status: 0, adapters: 0, projects: 0 };
let timer = 0,
    failures = 0,
    running = false,
    again = false,
    seen = "";

function period(what) {
    const rows = state.adapters ? state.adapters.length : 0;
    /* Long lists less often: they cost the server more. */
    return what === "status" ? 1000 : what === "adapters" ? 4000 + 10 * rows : 15000 + 10 * rows;
}

/* The one that is overdue by most of its own periods. */
function choose() {
    const now = performance.now();
    if (!state.status) {
        return "status";
    }
    const late = (what) => (asked[what] ? (now - asked[what]) / period(what) : Infinity);
    return ["status", "adapters", "projects"].reduce((a, b) => (late(b) > late(a) ? b : a));
}

function takeStatus(status) {
    const at = Date.now() / 1000;
    const sample = { at, prompt: status.tokens.prompt_per_s, completion: status.tokens.completion_per_s };
    set({ status, samples: [...state.samples.slice(1 - SAMPLES), sample] });
    const c = status.cache;
    const mark = [
        c.loads,
        c.evictions,
        c.unloads,
        c.replacements,
        c.failures,
        status.memory.n_resident,
        status.memory.loading,
    ].join();
    if (mark !== seen) {
        /* something came or went */
        seen = mark;
        asked.adapters = 0;
    }
}

/* Rows that did not change stay the same objects, so that they are not drawn again. */
function keepSame(old, rows) {
    const known = new Map((old || []).map((r) => [r.id, r]));
    return rows.map((r) => {
        const before = known.get(r.id);
        return before && JSON.stringify(before) === JSON.stringify(r) ? before : r;
    });
}

async function ask(what) {
    asked[what] = performance.now();
    if (what === "status") {
        takeStatus(await get("v1/status"));
    } else if (what === "adapters") {
        set({ adapters: keepSame(state.adapters, (await get("v1/lora_adapters")).data) });
    } else {
        set({ projects: keepSame(state.projects, (await get("v1/projects")).data) });
    }
}

function failed(e) {
    if (e.status === 401) {
        set({
            link: "good",
            key: hasKey() ? "wrong" : "needed",
            status: null,
            adapters: null,
            projects: null,
            samples: [],
        });
        return;
    }
    failures++;
    set({ link: "lost", lostText: e.message, lostStatus: e.status, retryAt: performance.now() + wait() });
}

function wait() {
    if (failures) {
        return Math.min(SLOWEST_MS, SEEN_MS * 2 ** (failures - 1));
    }
    return document.hidden ? HIDDEN_MS : SEEN_MS;
}

async function turn() {
    clearTimeout(timer);
    if (running) {
        again = true;
        return;
    }
    running = true;
    try {
        await ask(choose());
        failures = 0;
        if (state.link !== "good") {
            set({ link: "good" });
        }
    } catch (e) {
        failed(e);
    }
    running = false;
    if (state.key) {
        return; /* nothing to ask for until there is a key: pollNow */
    }
    /* The lists come at once after the first figures. */
    const soon = again || (!failures && state.status && (!state.adapters || !state.projects));
    again = false;
    timer = setTimeout(turn, soon ? 0 : wait());
}

export function pollNow() {
    failures = 0;
    return turn();
}

/* After an action: what it changed is asked for next. */
export function refresh() {
    asked.adapters = 0;
    asked.projects = 0;
    pollNow();
}

export function startPolling() {
    document.addEventListener("visibilitychange", () => {
        if (!document.hidden && !state.key) {
            pollNow();
        }
    });
    pollNow();
}
