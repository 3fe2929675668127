/* What the page knows, in one object, and who is told when it changes. */
import { useEffect, useState } from "./html.js";

export const state = {
    status: null /* of /v1/status */,
    adapters: null /* rows of /v1/lora_adapters; null: not asked yet */,
    projects: null,
    samples: [] /* { at, prompt, completion }: rates, for the lines */,
    link: "starting" /* "starting", "good", "lost" */,
    lostText: "",
    lostStatus: 0 /* why: the error, and its HTTP status; 0 = no answer */,
    retryAt: 0 /* ms; when lost */,
    key: null /* null, "needed", "wrong", "change": which form is shown */,
    view: "overview",
    busy: new Map() /* adapter id: what is being done with it */,
    failed: new Map() /* adapter id: why the last action on it failed */,
    notes: [] /* { id, text, bad } */,
    said: "" /* for screen readers only */,
    scan: null /* { lines, done, error, running } */,
};

const listeners = new Set();
let due = false;

/* Tells all of them, at most once for each frame. */
export function changed() {
    if (!due) {
        due = true;
        /* Frames do not come while the page is hidden; titles and tests should still see changes. */
        (document.hidden ? setTimeout : requestAnimationFrame)(() => {
            due = false;
            listeners.forEach((f) => f());
        });
    }
}

export function set(values) {
    Object.assign(state, values);
    changed();
}

/* Draws the component again whenever the state changes. */
export function useStore() {
    const [, draw] = useState(0);
    useEffect(() => {
        const f = () => draw((n) => n + 1);
        listeners.add(f);
        return () => listeners.delete(f);
    }, []);
    return state;
}

let nextNote = 1;

/* A line at the edge of the page, read out by screen readers. Errors stay longer. */
export function note(text, bad = false) {
    const id = nextNote++;
    set({ notes: [...state.notes.slice(-3), { id, text, bad }] });
    setTimeout(() => dropNote(id), bad ? 15000 : 5000);
}

export function dropNote(id) {
    set({ notes: state.notes.filter((n) => n.id !== id) });
}

/* What everybody else sees anyway. */
export function say(text) {
    set({ said: text });
}

export function isAdmin() {
    return Boolean(state.status && state.status.admin);
}
