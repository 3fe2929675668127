/* The figures of the server: rates, hit rate, requests, memory, batch, health. */
import { html, Fragment } from "./html.js";
import { Bar, Line } from "./charts.js";
import { colourOf } from "./colours.js";
import { bytes, count, counted, milliseconds, percent, rate } from "./format.js";

const SECONDS = 180;

function Tile({ title, value, unit, children, foot }) {
    return html`<section class="card tile" aria-label=${title}>
        <h2>${title}</h2>
        <p class="figure">${value}${unit && html` <small>${unit}</small>`}</p>
        ${children}
        <p class="foot">${foot}</p>
    </section>`;
}

function RateTile({ title, samples, field, value, foot }) {
    return html`<${Tile} title=${title} value=${rate(value)} unit="per second" foot=${foot}>
        <${Line} samples=${samples} field=${field} most=${SECONDS}
            label="${title}: ${rate(value)} per second now; the last ${SECONDS / 60} minutes" />
    <//>`;
}

function CacheTile({ cache }) {
    const asked = cache.hits + cache.misses;
    return html`<${Tile} title="Hit rate" value=${cache.hit_rate === null ? "–" : percent(cache.hit_rate)}
        foot="${counted(cache.loads, "load")}, ${counted(cache.evictions, "eviction")}, ${counted(cache.fallbacks, "fallback")}">
        <div class="meter" role="img" aria-label="${count(cache.hits)} of ${count(asked)} requests found their adapter in memory">
            <span style=${{ width: `${100 * (cache.hit_rate || 0)}%` }} />
        </div>
        <p class="sub">${
            asked ? `${count(cache.hits)} found in memory, ${count(cache.misses)} not` : "no request for an adapter yet"
        }</p>
        ${cache.loads > 0 && html`<p class="sub">
            loads take ${milliseconds(cache.load_ms_p50)}, 99 % up to ${milliseconds(cache.load_ms_p99)}</p>`}
    <//>`;
}

function RequestsTile({ answers, http, slots }) {
    const ended = [
        ["answered", answers.total],
        ["failed", answers.failed],
        ["cancelled", answers.cancelled],
        ["refused", answers.refused],
    ];
    return html`<${Tile} title="Requests" value=${count(answers.running)} unit="running"
        foot=${ended
            .filter(([, n], i) => n || i === 0)
            .map(([name, n]) => `${count(n)} ${name}`)
            .join(", ")}>
        <div class="meter" role="img" aria-label="${count(answers.running)} running, ${count(slots)} slots">
            <span style=${{ width: `${Math.min(100, (100 * answers.running) / (slots || 1))}%` }} />
        </div>
        <p class="sub ${answers.waiting ? "warm" : ""}">${count(answers.waiting)} waiting in the queue</p>
        <p class="sub">${counted(http.connections, "connection")} open</p>
    <//>`;
}

/* ---- memory ------------------------------------------------------------------------------------------- */

/* Held: pinned or answering right now; the rest of the resident ones could be evicted. */
function held(adapters) {
    return (adapters || []).reduce(
        (n, a) => n + (a.memory === "resident" && (a.pinned || a.leases > 0) ? a.bytes : 0),
        0,
    );
}

export function memoryParts(m, adapters) {
    const kept = Math.min(m.resident, held(adapters));
    return [
        { name: "weights", label: "base weights", value: m.weights },
        { name: "context", label: "context and compute", value: m.context },
        { name: "own", label: "graft's own", value: m.own },
        { name: "held", label: "adapters, pinned or in use", value: kept },
        { name: "resident", label: "adapters, ready", value: m.resident - kept },
        { name: "loading", label: "adapters, loading", value: m.loading },
        { name: "draining", label: "adapters, draining", value: m.draining },
        { name: "by-path", label: "adapters opened by path", value: m.by_path },
    ];
}

function Memory({ memory: m, adapters }) {
    const parts = memoryParts(m, adapters);
    const whole = Math.max(m.limit, m.counted, 1),
        over = m.limit > 0 && m.counted > m.limit;
    const free = m.limit - m.counted;
    const shown = parts.filter((p) => p.value > 0 || ["held", "resident"].includes(p.name));
    return html`<section class="card" aria-labelledby="memory-title">
        <div class="head"><h2 id="memory-title">Memory</h2>
            <p class="aside">${bytes(m.counted)}${
                m.limit > 0 && html` of ${bytes(m.limit)} <span class="muted">(${percent(m.counted / m.limit)})</span>`
            }</p></div>
        <${Bar} parts=${parts} whole=${whole}
            label="${bytes(m.counted)} of ${bytes(m.limit)}: ${shown.map((p) => `${p.label} ${bytes(p.value)}`).join(", ")}" />
        <dl class="legend">
            ${shown.map((p) => html`<div key=${p.name}><dt><span class="swatch ${p.name}" />${p.label}</dt>
                <dd>${bytes(p.value)}</dd></div>`)}
            ${m.limit > 0 && html`<div key="free" class=${over ? "bad-text" : ""}><dt>
                <span class="swatch free" />${over ? "over the limit by" : "free under the limit"}</dt>
                <dd>${bytes(Math.abs(free))}</dd></div>`}
        </dl>
        <p class="foot">${counted(m.n_resident, "adapter")} in memory${
                m.max_adapters > 0 ? `, at most ${count(m.max_adapters)}` : ""
            }.
            ${m.process > 0 ? ` Process ${bytes(m.process)}` : ""}${
                m.machine > 0 ? ` of the machine's ${bytes(m.machine)}.` : ""
            }</p>
    </section>`;
}

/* ---- batch -------------------------------------------------------------------------------------------- */

function slotName(slot) {
    return slot.state === "idle" ? "idle" : slot.hidden ? "another key's" : slot.adapter || "base";
}

function Slot({ slot }) {
    const idle = slot.state === "idle",
        name = slotName(slot);
    const done =
        idle || slot.hidden
            ? ""
            : slot.state === "prompt"
              ? `reads ${count(slot.prompt_tokens)}`
              : `${count(slot.completion_tokens)} tokens`;
    return html`<li class="slot ${idle ? "idle" : `${slot.hidden ? "hidden-slot" : colourOf(slot.adapter)} ${slot.state}`}">
        <span class="number">${slot.id}</span>
        <span class="who" title=${name}>${name}</span>
        <span class="what">${done}</span>
    </li>`;
}

/* Who shares the batch: names with the number of their slots. */
function sharers(slots) {
    const found = new Map();
    slots
        .filter((s) => s.state !== "idle")
        .forEach((s) => {
            const name = slotName(s);
            found.set(name, {
                name,
                colour: s.hidden ? "hidden-slot" : colourOf(s.adapter),
                n: (found.get(name)?.n || 0) + 1,
            });
        });
    return [...found.values()].sort((a, b) => b.n - a.n);
}

export function Sharers({ slots }) {
    const found = sharers(slots);
    return html`<ul class="chips" aria-label="Adapters that answer now">
        ${found.map(
            (f) => html`<li key=${f.name} class="chip ${f.colour}">${f.name}${f.n > 1 && html` <b>× ${f.n}</b>`}</li>`,
        )}
        ${!found.length && html`<li class="muted">nothing is being answered</li>`}
    </ul>`;
}

function Batch({ status }) {
    const { slots, batch } = status,
        busy = slots.filter((s) => s.state !== "idle").length;
    return html`<section class="card" aria-labelledby="batch-title">
        <div class="head"><h2 id="batch-title">Batch</h2>
            <p class="aside">${
                busy
                    ? html`${counted(batch.rows, "row")}, ${counted(batch.adapters, "adapter")}${" "}
                          <span class="muted">in the last step</span>`
                    : html`<span class="muted">${count(slots.length)} slots, idle</span>`}</p></div>
        <ol class="slots ${slots.length > 16 ? "many" : ""}">${slots.map((s) => html`<${Slot} key=${s.id} slot=${s} />`)}</ol>
        <${Sharers} slots=${slots} />
    </section>`;
}

/* ---- health ------------------------------------------------------------------------------------------- */

function Health({ health }) {
    if (health.state === "healthy" && !health.reasons.length) {
        return null;
    }
    return html`<section class="card health ${health.state}" aria-label="Health">
        <ul>${health.reasons.map((r) => html`<li key=${r.name} class=${r.state}>
            <b>${r.name.replaceAll("_", " ")}</b>${r.text && html` <span>${r.text}</span>`}</li>`)}
            ${!health.reasons.length && html`<li><b>${health.state}</b></li>`}</ul>
    </section>`;
}

export function Overview({ state }) {
    const s = state.status;
    return html`<${Fragment}>
        <${Health} health=${s.health} />
        <div class="tiles">
            <${RateTile} title="Answer tokens" samples=${state.samples} field="completion" value=${s.tokens.completion_per_s}
                foot="${count(s.tokens.completion)} since the start" />
            <${RateTile} title="Prompt tokens" samples=${state.samples} field="prompt" value=${s.tokens.prompt_per_s}
                foot="${count(s.tokens.prompt)} since the start, ${count(s.tokens.cached)} from the cache" />
            <${CacheTile} cache=${s.cache} />
            <${RequestsTile} answers=${s.answers} http=${s.http} slots=${s.slots.length} />
        </div>
        <div class="halves">
            <${Batch} status=${s} />
            <${Memory} memory=${s.memory} adapters=${state.adapters} />
        </div>
    <//>`;
}
