/* Forms and the help, over the page or in its place. */
import { html, useEffect, useRef, useState } from "./html.js";
import { add } from "./actions.js";
import { hasKey, setKey } from "./api.js";
import { Icon } from "./icons.js";
import { pollNow } from "./poll.js";
import { set } from "./store.js";

/* The browser's own: keeps the focus inside, closes with Escape, gives the focus back. */
function Dialog({ title, close, children }) {
    const box = useRef(null);
    useEffect(() => {
        const before = document.activeElement;
        box.current.showModal();
        return () => before?.focus?.();
    }, []);
    const outside = (e) => e.target === box.current && close();
    return html`<dialog ref=${box} aria-labelledby="dialog-title" onClose=${close} onClick=${outside}>
        <div class="inside"><div class="head"><h2 id="dialog-title">${title}</h2>
            <button type="button" class="quiet" aria-label="Close" onClick=${close}><${Icon} name="close" /></button>
                </div>${children}</div>
    </dialog>`;
}

export function AddDialog({ close }) {
    const [name, setName] = useState(""),
        [path, setPath] = useState(""),
        [busy, setBusy] = useState(false),
        [error, setError] = useState("");
    const submit = async (e) => {
        e.preventDefault();
        setBusy(true);
        setError("");
        try {
            await add(name.trim(), path.trim());
            close();
        } catch (problem) {
            setError(problem.message);
            setBusy(false);
        }
    };
    return html`<${Dialog} title="Add an adapter" close=${close}>
        <form onSubmit=${submit}>
            <label>Name<input required maxlength="257" value=${name} onInput=${(e) => setName(e.target.value)}
                placeholder="project or project/adapter" autocomplete="off" spellcheck=${false} autofocus /></label>
            <label>Path on the server<input required value=${path} onInput=${(e) => setPath(e.target.value)}
                placeholder="below the server's adapters folder" autocomplete="off" spellcheck=${false} /></label>
            <p class="why" role="alert">${error}</p>
            <div class="buttons end"><button type="button" onClick=${close}>Cancel</button>
                <button type="submit" class="primary" disabled=${busy}>${busy ? "Loading…" : "Add and load"}</button></div>
        </form>
    <//>`;
}

const shortcuts = [
    ["1", "Overview"],
    ["2", "Chat"],
    ["/", "Filter adapters"],
    ["m", "Write a message"],
    ["r", "Ask the server now"],
    ["t", "Light, dark or as the system"],
    ["k", "Key"],
    ["?", "This list"],
    ["Esc", "Close; in the chat: stop the answers"],
];

export function Help({ close }) {
    return html`<${Dialog} title="Keys" close=${close}>
        <dl class="keys">${shortcuts.map(([k, what]) => html`<div key=${k}><dt><kbd>${k}</kbd></dt><dd>${what}</dd></div>`)}</dl>
        <p class="muted">In the chat, Enter sends and Shift+Enter begins a line.</p>
        <p class="muted licences">This page uses <a href="dashboard/vendor/preact.license.txt">Preact</a> and${" "}
            <a href="dashboard/vendor/htm.license.txt">htm</a>.</p>
    <//>`;
}

const asks = {
    needed: ["This server asks for a key", "It was given to you by who runs the server; graft key add makes one."],
    wrong: ["The key is not valid", "The server does not know it, or no longer. Please try another."],
    change: ["Key", "The key that this page sends with its requests."],
};

/* In the place of the page's content. */
export function KeyForm({ kind }) {
    const [text, setText] = useState(""),
        [remember, setRemember] = useState(false);
    const [title, say] = asks[kind];
    useEffect(() => document.getElementById("key").focus(), []);
    const begin = (key) => {
        setKey(key, remember);
        set({ key: null, status: null, adapters: null, projects: null, samples: [], link: "starting" });
        pollNow();
    };
    const submit = (e) => {
        e.preventDefault();
        begin(text.trim());
    };
    const cancel = () => {
        set({ key: null });
        pollNow();
    };
    return html`<section class="card key-form" aria-labelledby="key-title">
        <h2 id="key-title" role=${kind === "wrong" ? "alert" : undefined}>${title}</h2><p class="muted">${say}</p>
        <form onSubmit=${submit}>
            <label>Key<input id="key" type="password" required value=${text} onInput=${(e) => setText(e.target.value)}
                autocomplete="off" spellcheck=${false} placeholder="gk_…" /></label>
            <label class="check"><input type="checkbox" checked=${remember}
                onChange=${(e) => setRemember(e.target.checked)} />
                <span>Remember on this device <span class="muted">(else until the tab is closed)</span></span></label>
            <div class="buttons end">
                ${kind === "change" && html`<button type="button" onClick=${cancel}>Cancel</button>`}
                ${kind === "change" && hasKey() && html`<button type="button" onClick=${() => begin("")}>Forget the key</button>`}
                <button type="submit" class="primary">Use this key</button></div>
        </form>
    </section>`;
}
