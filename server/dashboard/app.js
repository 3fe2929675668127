/* The page: its head, the views, the keys. */
import { html, render, useEffect, useState } from "./html.js";
import { Adapters } from "./adapters.js";
import { Chat, stop } from "./chat.js";
import { Help, KeyForm } from "./dialogs.js";
import { duration } from "./format.js";
import { Icon, Leaf } from "./icons.js";
import { Overview } from "./overview.js";
import { pollNow, startPolling } from "./poll.js";
import { dropNote, set, state, useStore } from "./store.js";

/* ---- light and dark ----------------------------------------------------------------------------------- */

const themes = ["auto", "light", "dark"];

function theme() {
    return document.documentElement.dataset.theme || "auto";
}

function nextTheme() {
    const next = themes[(themes.indexOf(theme()) + 1) % themes.length];
    if (next === "auto") {
        delete document.documentElement.dataset.theme;
    } else {
        document.documentElement.dataset.theme = next;
    }
    try {
        localStorage.setItem("graft.theme", next);
    } catch {
        /* storage is switched off: for this page only */
    }
    set({});
}

/* ---- the head ----------------------------------------------------------------------------------------- */

function Health({ status, link }) {
    if (link === "lost") {
        return html`<span class="pill bad">${state.lostStatus ? "no figures" : "not reachable"}</span>`;
    }
    if (!status) {
        return null;
    }
    const word = status.draining ? "shutting down" : status.health.state;
    return html`<span class="pill ${{ healthy: "good", degraded: "warm", unhealthy: "bad" }[word] || "warm"}"
        title="up for ${duration(status.uptime_s)}">${word}</span>`;
}

const views = [
    ["overview", "Overview", "1"],
    ["chat", "Chat", "2"],
];

function Head({ s, help }) {
    const icon = { auto: "auto", light: "sun", dark: "moon" }[theme()];
    const label = `Appearance: ${{ auto: "as the system", light: "light", dark: "dark" }[theme()]}. Change`;
    return html`<header><div class="brand"><${Leaf} /><h1>graft</h1>
            ${s.status && html`<span class="model-name"
                title=${s.status.model.path || s.status.model.id}>${s.status.model.id}</span>`}</div>
        <nav aria-label="Views">${views.map(([name, text]) => html`<a key=${name} href="#${name}"
            aria-current=${s.view === name ? "page" : undefined}>${text}</a>`)}</nav>
        <div class="corner"><${Health} status=${s.status} link=${s.link} />
            ${s.status && !s.status.admin && html`<span class="tag"
                title="This key is for some projects; it cannot load, unload or pin">project key</span>`}
            <button type="button" class="quiet" aria-label="Key" title="Key" onClick=${() => set({ key: "change" })}>
                <${Icon} name="key" /></button>
            <button type="button" class="quiet" aria-label=${label} title=${label} onClick=${nextTheme}>
                <${Icon} name=${icon} /></button>
            <button type="button" class="quiet wide-only" aria-label="Keyboard shortcuts" title="Keyboard shortcuts"
                onClick=${help}><${Icon} name="help" /></button>
        </div></header>`;
}

/* ---- what is said over the content --------------------------------------------------------------------- */

function Lost({ s }) {
    const [, draw] = useState(0);
    useEffect(() => {
        const timer = setInterval(() => draw((n) => n + 1), 500);
        return () => clearInterval(timer);
    }, []);
    const left = Math.max(0, Math.ceil((s.retryAt - performance.now()) / 1000));
    return html`<div class="banner bad" role="alert"><p>
        <b>${s.lostStatus ? "The server answers with an error." : "Not reachable."}</b>
        ${" "}<span aria-live="off">${s.lostText}; ${left > 0 ? `trying again in ${left} s` : "trying again"}.</span>
        ${s.status && " What is below is the last that was known."}</p>
            <button type="button" class="small" onClick=${pollNow}>Try now</button></div>`;
}

function Notes({ notes }) {
    const one = (n) => html`<div key=${n.id} class="note ${n.bad ? "bad" : ""}"><span>${n.text}</span>
        <button type="button" class="quiet" aria-label="Close this message" onClick=${() => dropNote(n.id)}>
            <${Icon} name="close" /></button></div>`;
    return html`<div class="notes" role="status">${notes.map(one)}</div>`;
}

/* ---- keys --------------------------------------------------------------------------------------------- */

function focusSoon(id) {
    setTimeout(() => document.getElementById(id)?.focus(), 50); /* after the view was drawn */
}

function onKey(e, help) {
    if (e.key === "Escape" && !document.querySelector("dialog[open]")) {
        stop();
    }
    if (e.ctrlKey || e.metaKey || e.altKey || e.target.closest("input, textarea, select, dialog")) {
        return;
    }
    const does = {
        1: () => go("overview"),
        2: () => go("chat"),
        "/": () => {
            go("overview");
            focusSoon("filter");
        },
        m: () => {
            go("chat");
            focusSoon("message");
        },
        r: pollNow,
        t: nextTheme,
        k: () => set({ key: "change" }),
        "?": help,
    }[e.key];
    if (does) {
        e.preventDefault();
        does();
    }
}

function go(view) {
    location.hash = view;
}

function takeHash() {
    const name = location.hash.slice(1);
    set({ view: views.some(([v]) => v === name) ? name : "overview" });
}

/* ---- all of it ---------------------------------------------------------------------------------------- */

function Content({ s }) {
    if (s.key) {
        return html`<${KeyForm} key=${s.key} kind=${s.key} />`;
    }
    if (!s.status) {
        return s.link === "lost" ? null : html`<p class="empty muted">Asking the server…</p>`;
    }
    return s.view === "chat" ? html`<${Chat} />` : html`<${Overview} state=${s} /><${Adapters} state=${s} />`;
}

function App() {
    const s = useStore(),
        [helping, setHelping] = useState(false);
    useEffect(() => {
        const keys = (e) => onKey(e, () => setHelping(true));
        document.addEventListener("keydown", keys);
        return () => document.removeEventListener("keydown", keys);
    }, []);
    useEffect(() => {
        if (s.view !== location.hash.slice(1) && (location.hash || s.view !== "overview")) {
            location.hash = s.view;
        }
    }, [s.view]);
    return html`<a class="skip" href="#main" onClick=${(e) => {
        e.preventDefault();
        document.getElementById("main").focus();
    }}>To the content</a>
        <${Head} s=${s} help=${() => setHelping(true)} />
        <main id="main" tabindex="-1" class="${s.view} ${s.link === "lost" ? "stale" : ""}">
            ${s.link === "lost" && !s.key && html`<${Lost} s=${s} />`}
            ${s.status?.draining && html`<div class="banner warm" role="status"><p>
                <b>The server is shutting down.</b> Running answers end, new ones are refused.</p></div>`}
            <${Content} s=${s} />
        </main>
        <${Notes} notes=${s.notes} />
        <p class="unseen" role="status">${s.said}</p>
        ${helping && html`<${Help} close=${() => setHelping(false)} />`}`;
}

addEventListener("hashchange", takeHash);
takeHash();
render(html`<${App} />`, document.getElementById("app"));
startPolling();
