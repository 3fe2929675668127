/* Small line drawings. They say nothing that the label of their button does not say. */
import { html } from "./html.js";

const paths = {
    pin: "M6 2.5h4l-.5 4 2.5 2.5H4l2.5-2.5zM8 9v4.5",
    reload: "M13 8a5 5 0 1 1-1.5-3.6M13 2.5v3h-3",
    current: "M2.5 5.5h10.5M10 3l3 2.5L10 8M13.5 10.5H3M6 8l-3 2.5L6 13",
    chat: "M2.5 3.5h11v7.5H7l-3 2.5V11H2.5z",
    sun: "M8 5.2a2.8 2.8 0 1 0 0 5.6 2.8 2.8 0 0 0 0-5.6M8 1.5v1M8 13.5v1M1.5 8h1M13.5 8h1M3.4 3.4l.7.7M11.9 11.9l.7.7M3.4 12.6l.7-.7M11.9 4.1l.7-.7",
    moon: "M13 9.5A5.5 5.5 0 0 1 6.5 3a5.5 5.5 0 1 0 6.5 6.5z",
    auto: "M8 2.5a5.5 5.5 0 1 0 0 11zM8 2.5a5.5 5.5 0 1 1 0 11",
    key: "M7.2 8.8a3 3 0 1 1 0-1.6h6.3v2.3M11 7.2v1.8",
    help: "M6 6a2 2 0 1 1 2.8 1.9c-.5.3-.8.6-.8 1.3M8 11.5v.3",
    close: "M4 4l8 8M12 4l-8 8",
    chevron: "M6 4l4 4-4 4",
    plus: "M8 3v10M3 8h10",
    search: "M7 2.5a4.5 4.5 0 1 0 0 9 4.5 4.5 0 0 0 0-9M10.3 10.3l3.2 3.2",
    scan: "M2.5 4.5v-1h4l1.5 1.5h5.5v8h-11zM5.5 9h5",
    send: "M8 13V3.5M4 7l4-4 4 4",
    stop: "M4.5 4.5h7v7h-7z",
    clear: "M3 4.5h10M6 4.5V3h4v1.5M4.5 4.5l.7 8.5h5.6l.7-8.5",
};

export function Icon({ name }) {
    return html`<svg class="icon" viewBox="0 0 16 16" width="16" height="16" aria-hidden="true" focusable="false"><path d=${paths[name]} /></svg>`;
}

export function Leaf() {
    return html`<svg class="leaf" viewBox="0 0 32 32" width="26" height="26" aria-hidden="true" focusable="false">
        <rect width="32" height="32" rx="8" /><path d="M16 27V14M16 21c0-5 3-8 8-8 0 5-3 8-8 8zM16 15c0-4-2.5-7-7-7 0 4 2.5 7 7 7z" />
    </svg>`;
}
