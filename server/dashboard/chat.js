/* Conversations with one adapter, or with two side by side that are asked the same. */
import { html, useEffect, useLayoutEffect, useRef } from "./html.js";
import { events, post } from "./api.js";
import { colourOf } from "./colours.js";
import { count, milliseconds, rate } from "./format.js";
import { Icon } from "./icons.js";
import { Sharers } from "./overview.js";
import { pollNow } from "./poll.js";
import { changed, say, set, state } from "./store.js";

/* Outside of the components: it stays while another view is shown. A turn: { role, text }, of an answer also what is known of it:
 * asked, first, last (ms), pieces, adapter, generation, fallback, finish, usage, timings, error, running. */
const chat = {
    draft: "",
    two: false,
    stopper: null,
    system: "",
    temperature: "0.7",
    most: "256",
    panes: [
        { model: "", turns: [] },
        { model: "", turns: [] },
    ],
};

const panes = () => (chat.two ? chat.panes : chat.panes.slice(0, 1));

export function talkTo(id) {
    chat.panes[0].model = id;
    set({ view: "chat" });
}

/* ---- asking ------------------------------------------------------------------------------------------- */

function messages(pane) {
    const before = pane.turns
        .filter((t) => !t.error && t.text !== "" && !t.running)
        .map(({ role, text }) => ({ role, content: text }));
    return chat.system.trim() ? [{ role: "system", content: chat.system.trim() }, ...before] : before;
}

function request(pane) {
    const body = { model: pane.model, messages: messages(pane), stream: true, stream_options: { include_usage: true } };
    const temperature = Number.parseFloat(chat.temperature),
        most = Number.parseInt(chat.most, 10);
    return { ...body, ...(Number.isFinite(temperature) && { temperature }), ...(most > 0 && { max_tokens: most }) };
}

/* One event of the stream. */
function take(turn, chunk) {
    if (chunk.error) {
        throw new Error(chunk.error.message || String(chunk.error));
    }
    const choice = chunk.choices?.[0],
        text = choice?.delta?.content;
    if (text) {
        turn.last = performance.now();
        turn.first ||= turn.last;
        turn.pieces++;
        turn.text += text;
    }
    turn.finish = choice?.finish_reason || turn.finish;
    if ("adapter" in chunk) {
        turn.adapter = chunk.adapter;
        turn.answered = true;
    }
    turn.generation = chunk.adapter_generation || turn.generation;
    turn.fallback = chunk.fallback || turn.fallback;
    turn.timings = chunk.timings || turn.timings;
    turn.usage = chunk.usage || turn.usage;
    changed();
}

async function ask(pane, text, signal) {
    pane.turns = [...pane.turns, { role: "user", text }];
    const body = request(pane);
    const turn = {
        role: "assistant",
        text: "",
        model: pane.model,
        asked: performance.now(),
        first: 0,
        last: 0,
        pieces: 0,
        running: true,
    };
    pane.turns.push(turn);
    changed();
    try {
        const reply = await post("v1/chat/completions", body, signal);
        const header = reply.headers.get("X-Graft-Fallback");
        turn.fallback = header ? { code: header, message: "" } : undefined;
        for await (const data of events(reply)) {
            if (data === "[DONE]") {
                break;
            }
            take(turn, JSON.parse(data));
        }
        say(`${pane.model} has answered`);
    } catch (e) {
        if (e.name === "AbortError") {
            turn.finish = "stopped";
        } else {
            turn.error = e.message;
        }
    }
    turn.running = false;
    changed();
}

async function send() {
    const text = chat.draft.trim();
    if (!text || chat.stopper) {
        return;
    }
    chat.draft = "";
    chat.stopper = new AbortController();
    await Promise.all(panes().map((p) => ask(p, text, chat.stopper.signal)));
    chat.stopper = null;
    pollNow();
    changed();
}

export function stop() {
    chat.stopper?.abort();
}

function clear() {
    stop();
    chat.panes.forEach((p) => {
        p.turns = [];
    });
    changed();
    document.getElementById("message")?.focus();
}

/* ---- showing ------------------------------------------------------------------------------------------ */

/* Of the server where it says, else as it was seen here. */
function speed(turn) {
    if (turn.timings && turn.timings.predicted_per_second > 0) {
        return turn.timings.predicted_per_second;
    }
    return turn.pieces > 1 && turn.last > turn.first ? ((turn.pieces - 1) * 1000) / (turn.last - turn.first) : 0;
}

function Facts({ turn }) {
    const cached = turn.usage?.prompt_tokens_details?.cached_tokens,
        by = turn.fallback ? null : turn.adapter;
    const facts = [
        turn.answered && html`<span class="chip ${colourOf(by)}">${by || "base"}</span>`,
        turn.generation &&
            html`<span title="generation ${turn.generation}">generation <code>${turn.generation.slice(0, 8)}</code></span>`,
        turn.first > 0 && html`<span>first token after ${milliseconds(turn.first - turn.asked)}</span>`,
        speed(turn) > 0 && html`<span>${rate(speed(turn))} tokens/s</span>`,
        turn.usage && html`<span>${count(turn.usage.completion_tokens)} tokens</span>`,
        cached > 0 && html`<span>${count(cached)} of ${count(turn.usage.prompt_tokens)} prompt tokens cached</span>`,
        turn.finish === "length" && html`<span>cut off by the limit of tokens</span>`,
        turn.finish === "stopped" && html`<span>stopped</span>`,
    ];
    return html`<p class="facts-line">${facts.filter(Boolean)}</p>`;
}

function Turn({ turn }) {
    if (turn.role === "user") {
        return html`<div class="turn user"><p class="unseen">You:</p><p class="text">${turn.text}</p></div>`;
    }
    return html`<div class="turn assistant" aria-busy=${turn.running ? "true" : "false"}><p class="unseen">${turn.model}:</p>
        ${turn.fallback && html`<p class="fallback">
            <b>The base answers in place of ${turn.model}</b>: ${
                [turn.fallback.code, turn.fallback.message].filter(Boolean).join(", ")
            }</p>`}
        <p class="text">${turn.text}${turn.running && html`<span class="caret" aria-hidden="true" />`}</p>
        ${turn.error && html`<p class="why" role="alert">${turn.error}</p>`}
        <${Facts} turn=${turn} />
    </div>`;
}

/* Stays at the end while new text comes, unless the reader scrolled up. */
function useBottom(marks) {
    const box = useRef(null),
        atEnd = useRef(true);
    useLayoutEffect(() => {
        if (atEnd.current) {
            box.current.scrollTop = box.current.scrollHeight;
        }
    }, marks);
    return [
        box,
        () => {
            atEnd.current = box.current.scrollHeight - box.current.scrollTop - box.current.clientHeight < 40;
        },
    ];
}

function Pane({ pane, index, models }) {
    const last = pane.turns[pane.turns.length - 1];
    const [box, onScroll] = useBottom([pane.turns.length, last?.text, last?.running]);
    const pick = (e) => {
        pane.model = e.target.value;
        changed();
    };
    return html`<section class="card pane" aria-label=${chat.two ? `Conversation ${index + 1}` : "Conversation"}>
        <label class="model"><span class="dot ${colourOf(pane.model === models[0] ? "" : pane.model)}" />
            <span class="unseen">Answered by</span>
            <select value=${pane.model} onChange=${pick} disabled=${Boolean(chat.stopper)}>
                ${models.map((m, i) => html`<option key=${m}
                    value=${m}>${m}${i === 0 ? " (base)" : ""}</option>`)}</select></label>
        <div class="turns" ref=${box} onScroll=${onScroll} tabindex="0" role="log" aria-live="off" aria-label="Messages">
            ${pane.turns.length ? pane.turns.map((t, i) => html`<${Turn} key=${i}
                turn=${t} />`) : html`<p class="empty muted">Ask something. ${chat.two ? "Both get the same question." : ""}</p>`}
        </div>
    </section>`;
}

/* The base comes first. A pane that shows what no longer exists gets another. */
function pickModels(models) {
    const kept = chat.panes.map((p) => (models.includes(p.model) ? p.model : ""));
    chat.panes[0].model =
        kept[0] || (models.includes(state.status.current) ? state.status.current : models[1]) || models[0];
    chat.panes[1].model = kept[1] || (chat.panes[0].model === models[0] && models[1]) || models[0];
}

function Options() {
    const field = (name) => ({
        value: chat[name],
        onInput: (e) => {
            chat[name] = e.target.value;
        },
    });
    return html`<details class="options"><summary>Options</summary><div>
        <label class="wide">System message<input type="text" ...${field("system")} placeholder="none" /></label>
        <label>Temperature<input type="number" min="0" max="5" step="0.1" ...${field("temperature")} /></label>
        <label>Most tokens<input type="number" min="1" step="1" ...${field("most")} /></label></div></details>`;
}

function Composer() {
    const running = Boolean(chat.stopper),
        box = useRef(null);
    useLayoutEffect(() => {
        /* as high as its text, up to what the style allows */
        box.current.style.height = "auto";
        box.current.style.height = `${box.current.scrollHeight + 2}px`;
    }, [chat.draft]);
    const type = (e) => {
        chat.draft = e.target.value;
        changed();
    };
    const keys = (e) => {
        if (e.key === "Enter" && !e.shiftKey && !e.isComposing) {
            e.preventDefault();
            send();
        }
    };
    const submit = (e) => {
        e.preventDefault();
        send();
    };
    const setTwo = (e) => {
        chat.two = e.target.checked;
        changed();
    };
    return html`<form class="card composer" onSubmit=${submit} aria-label="Message">
        <label><span class="unseen">Message</span><textarea id="message" ref=${box} rows="1" value=${chat.draft}
            onInput=${type} onKeyDown=${keys} placeholder=${chat.two ? "Ask both" : "Message"} /></label>
        <div class="row">
            <label class="check"><input type="checkbox" role="switch" checked=${chat.two} onChange=${setTwo}
                disabled=${running} />Side by side</label>
            <${Options} />
            <span class="space" />
            <button type="button" class="quiet" aria-label="Clear the conversation" title="Clear the conversation"
                onClick=${clear}><${Icon} name="clear" /></button>
            ${
                running
                    ? html`<button type="button" key="stop" class="primary" onClick=${stop}><${Icon} name="stop" />Stop</button>`
                    : html`<button type="submit" key="send" class="primary" disabled=${!chat.draft.trim()}>
                        <${Icon} name="send" />Send</button>`
            }
        </div>
    </form>`;
}

export function Chat() {
    const models = [state.status.model.id, ...(state.adapters || []).map((a) => a.id)];
    pickModels(models);
    useEffect(() => {
        document.getElementById("message")?.focus({ preventScroll: true });
    }, []);
    return html`<div class="chat ${chat.two ? "two" : ""}">
        <div class="now"><span class="muted">Answering now</span><${Sharers} slots=${state.status.slots} /></div>
        <div class="panes">${panes().map((p, i) => html`<${Pane} key=${i} pane=${p} index=${i} models=${models} />`)}</div>
        <${Composer} />
    </div>`;
}
