/* The table of adapters and projects: what is known of each, what can be done with it, and the scan of the folder. */
import { html, Component, useState } from "./html.js";
import { closeScan, load, pin, reload, scan, switchTo, unload } from "./actions.js";
import { talkTo } from "./chat.js";
import { colourOf } from "./colours.js";
import { AddDialog } from "./dialogs.js";
import { ago, bytes, count, counted } from "./format.js";
import { Icon } from "./icons.js";
import { isAdmin } from "./store.js";

const PAGE = 100; /* rows drawn at first; a thousand would cost a slow machine too much each time they change */

/* What is said of an adapter in one word, and its colour. */
function condition(row, busy) {
    if (busy) {
        return ["busy", `${busy}…`];
    }
    if (row.memory === "loading" || row.memory === "draining") {
        return ["busy", row.memory];
    }
    if (row.memory === "resident") {
        return row.leases > 0 ? ["good", "answering"] : ["good", "in memory"];
    }
    if (row.error || row.state === "failed") {
        return ["bad", row.state === "ready" || row.state === "registered" ? "failed" : row.state];
    }
    return row.state === "missing" || row.state === "changed" ? ["warm", row.state] : ["calm", "on disk"];
}

/* ---- one row ------------------------------------------------------------------------------------------ */

function Details({ row }) {
    const facts = [
        ["Source", row.source],
        ["Generation", row.generation],
        ["Format", row.format],
        ["Rank", row.rank || null],
        ["Files", bytes(row.file_bytes)],
        ["Answers running", row.leases || null],
        [
            "In memory is",
            row.loaded_generation && row.loaded_generation !== row.generation
                ? `another generation, ${row.loaded_generation}`
                : null,
        ],
    ];
    const known = facts.filter(([, v]) => v !== null && v !== undefined && v !== "");
    return html`<dl class="facts">${known.map(([k, v]) => html`<div key=${k}><dt>${k}</dt><dd>${v}</dd></div>`)}</dl>`;
}

function IconButton({ icon, label, pressed, ...more }) {
    return html`<button type="button" class="quiet" aria-label=${label} title=${label} aria-pressed=${pressed} ...${more}>
        <${Icon} name=${icon} /></button>`;
}

/* Drawn again only when something of it changed: `age` is the text, not the time. */
class Row extends Component {
    shouldComponentUpdate(next, nextState) {
        return nextState !== this.state || Object.keys(next).some((k) => next[k] !== this.props[k]);
    }

    actions() {
        const { row, busy, current, admin } = this.props,
            id = row.id,
            off = Boolean(busy);
        const talk = html`<${IconButton} icon="chat" label="Chat with ${id}" onClick=${() => talkTo(id)} />`;
        if (!admin) {
            return talk;
        }
        const inMemory = row.memory === "resident" || row.memory === "loading";
        return html`${talk}
            <${IconButton} icon="current"
                label=${current ? `${id} answers requests that name no model` : `Answer requests that name no model with ${id}`}
                pressed=${current ? "true" : "false"} disabled=${off || current} onClick=${() => switchTo(row)} />
            <${IconButton} icon="pin" label=${row.pinned ? `Unpin ${id}` : `Pin ${id}: never evicted`}
                pressed=${row.pinned ? "true" : "false"} disabled=${off} onClick=${() => pin(id, !row.pinned)} />
            <${IconButton} icon="reload" label="Read the files of ${id} again" disabled=${off} onClick=${() => reload(id)} />
            <button type="button" class="small" disabled=${off} onClick=${() => (inMemory ? unload(id) : load(id))}
                aria-label="${inMemory ? "Unload" : "Load"} ${id}">${inMemory ? "Unload" : "Load"}</button>`;
    }

    render({ row, busy, failed, current, age }, { open }) {
        const [kind, word] = condition(row, busy);
        const why = failed || (row.error && `${row.error.code}: ${row.error.message}`);
        return html`<tr class=${open ? "open" : ""} aria-busy=${busy ? "true" : undefined} data-id=${row.id}>
            <th scope="row">
                <button type="button" class="name" aria-expanded=${open ? "true" : "false"}
                    onClick=${() => this.setState({ open: !open })}>
                    <${Icon} name="chevron" /><span class="dot ${colourOf(row.id)}" />
                        <span class="label">${row.project}${
                            row.adapter !== "default" && html`<span class="muted">/${row.adapter}</span>`
                        }</span>
                </button>
                ${current && html`<span class="tag">current</span>`}${row.pinned && html`<span class="tag">pinned</span>`}
                ${why && html`<p class="why">${why}</p>`}
                ${open && html`<${Details} row=${row} />`}
            </th>
            <td class="cell-state"><span class="pill ${kind}">${word}</span></td>
            <td class="number cell-size ${row.bytes ? "" : "nothing"}">${row.bytes ? bytes(row.bytes) : "–"}</td>
            <td class="number cell-requests" data-label="requests">${count(row.requests)}</td>
            <td class="number cell-age" data-label="used">${age}</td>
            <td class="cell-actions"><div class="actions">${this.actions()}</div></td>
        </tr>`;
    }
}

/* ---- all of them -------------------------------------------------------------------------------------- */

const kinds = {
    all: ["All", () => true],
    memory: ["In memory", (r) => r.memory !== "absent"],
    failed: ["Failed", (r) => Boolean(r.error) || r.state === "failed" || r.state === "missing"],
    pinned: ["Pinned", (r) => r.pinned],
};

const orders = {
    name: (a, b) => (a.id < b.id ? -1 : 1),
    bytes: (a, b) => b.bytes - a.bytes,
    requests: (a, b) => b.requests - a.requests,
    used: (a, b) => b.last_used - a.last_used,
};

function Heading({ order, by, set, children, number }) {
    const on = order === by;
    return html`<th scope="col" class=${number ? "number" : ""}
        aria-sort=${on ? (by === "name" ? "ascending" : "descending") : "none"}>
        <button type="button" class="sort"
            onClick=${() => set(by)}>${children}<span aria-hidden="true">${on ? (by === "name" ? " ↑" : " ↓") : ""}</span>
            </button></th>`;
}

function AdapterTable({ state, rows, all }) {
    const [order, setOrder] = useState("name"),
        [shown, setShown] = useState(PAGE);
    const sorted = [...rows].sort(orders[order]),
        admin = isAdmin(),
        now = Date.now() / 1000;
    if (!rows.length) {
        return html`<p class="empty">None of the ${counted(all, "adapter")} fits.</p>`;
    }
    return html`<table>
        <thead><tr>
            <${Heading} by="name" order=${order} set=${setOrder}>Adapter<//><th scope="col">State</th>
            <${Heading} by="bytes" order=${order} set=${setOrder} number>In memory<//>
                <${Heading} by="requests" order=${order} set=${setOrder} number>Requests<//>
            <${Heading} by="used" order=${order} set=${setOrder} number>Last used<//><th scope="col">
                <span class="unseen">Actions</span></th>
        </tr></thead>
        <tbody>${sorted.slice(0, shown).map(
            (r) => html`<${Row} key=${r.id} row=${r} busy=${state.busy.get(r.id)} failed=${state.failed.get(r.id)}
            current=${state.status.current === r.id} admin=${admin} age=${ago(r.last_used, now)} />`,
        )}</tbody>
    </table>
    ${
        sorted.length > shown &&
        html`<p class="more">${count(shown)} of ${count(sorted.length)} shown
        <button type="button" class="small"
            onClick=${() => setShown(shown + PAGE)}>Show ${count(Math.min(PAGE, sorted.length - shown))} more</button></p>`
    }`;
}

function ProjectTable({ projects }) {
    const now = Date.now() / 1000;
    return html`<table class="projects">
        <thead><tr><th scope="col">Project</th><th scope="col" class="number">Adapters</th>
            <th scope="col" class="number">Files</th><th scope="col" class="number">Requests</th>
            <th scope="col" class="number">Tokens</th><th scope="col" class="number">Last used</th></tr></thead>
        <tbody>${projects.map(
            (
                p,
            ) => html`<tr key=${p.id}><th scope="row">${p.id}</th><td class="number"
                data-label="adapters">${count(p.adapters)}</td>
            <td class="number" data-label="files">${bytes(p.file_bytes)}</td>
                <td class="number" data-label="requests">${count(p.requests)}</td>
            <td class="number" data-label="tokens">${count(p.tokens)}</td>
                <td class="number" data-label="used">${ago(p.last_used, now)}</td></tr>`,
        )}</tbody>
    </table>`;
}

function Empty({ admin }) {
    return html`<div class="empty">
        <p><b>No adapters yet.</b></p>
        ${
            admin
                ? html`<p>Register a PEFT folder on the server, then it appears here:</p>
            <pre>graft adapter add my-project path/to/adapter --create-project</pre>
            <p>Or start the server with <code>--adapters FOLDER</code> and scan that folder with the button above.</p>`
                : html`<p>Your key is for projects that have no adapters. The base can be used.</p>`
        }
    </div>`;
}

function Scan({ scan: s }) {
    const line = (l) =>
        html`<li key=${l.n} class=${l.code ? "bad" : ""}>
            <b>${l.outcome}</b> <span>${l.id || l.path}</span>${
                l.message && html` <span class="muted">${l.message}</span>`
            }</li>`;
    const told = s.done
        ? `${count(s.done.entries)} entries: ` +
          ["added", "known", "broken", "refused", "skipped"].map((what) => `${count(s.done[what])} ${what}`).join(", ")
        : `${count(s.n)} looked at`;
    return html`<section class="scan" aria-label="Scan of the adapters' folder" aria-busy=${s.running ? "true" : "false"}>
        <div class="head"><p>${
            s.running
                ? html`<span class="spinner" aria-hidden="true" /> Scanning: ${told}`
                : s.error
                  ? html`<span class="why">Scan: ${s.error}</span>`
                  : `Scanned: ${told}`
        }${s.done && !s.done.complete ? ". Not all of it could be read." : ""}</p>
            <${IconButton} icon="close" label=${s.running ? "Stop the scan" : "Close the scan's result"}
                onClick=${closeScan} /></div>
        ${s.lines.length > 0 && html`<ol tabindex="0" aria-label="What was found">${[...s.lines].reverse().map(line)}</ol>`}
    </section>`;
}

export function Adapters({ state }) {
    const [filter, setFilter] = useState(""),
        [kind, setKind] = useState("all"),
        [adding, setAdding] = useState(false),
        [tab, setTab] = useState("adapters");
    const all = state.adapters,
        admin = isAdmin(),
        wanted = filter.trim().toLowerCase();
    const fits = (r) =>
        kinds[kind][1](r) &&
        (r.id.toLowerCase().includes(wanted) ||
            String(r.source ?? "")
                .toLowerCase()
                .includes(wanted));
    const choice = (name, now, set, label, n) =>
        html`<button type="button" key=${name} aria-pressed=${now === name ? "true" : "false"}
            onClick=${() => set(name)}>${label}${n !== undefined && html` <span class="muted">${count(n)}</span>`}</button>`;
    return html`<section class="card adapters" aria-labelledby="adapters-title">
        <div class="head"><h2 id="adapters-title" class="unseen">Adapters</h2>
            <div class="segments" role="group" aria-label="What is listed">
                ${choice("adapters", tab, setTab, "Adapters", all?.length)}
                ${choice("projects", tab, setTab, "Projects", state.projects?.length)}</div>
            ${
                admin &&
                html`<div class="buttons"><button type="button" onClick=${scan} disabled=${state.scan?.running}>
                    <${Icon} name="scan" />Scan folder</button>
                <button type="button" onClick=${() => setAdding(true)}><${Icon} name="plus" />Add</button></div>`
            }
        </div>
        ${state.scan && html`<${Scan} scan=${state.scan} />`}
        ${
            tab === "adapters" &&
            all?.length > 0 &&
            html`<div class="tools">
            <label class="search"><${Icon} name="search" /><span class="unseen">Filter adapters</span>
                <input id="filter" type="search" placeholder="Filter by name or path" value=${filter}
                    onInput=${(e) => setFilter(e.target.value)} autocomplete="off" spellcheck=${false} /></label>
            <div class="segments" role="group"
                aria-label="Which adapters">${Object.entries(kinds).map(([name, [label, f]]) =>
                    choice(name, kind, setKind, label, name === "all" ? undefined : all.filter(f).length),
                )}</div>
        </div>`
        }
        ${
            !all
                ? html`<p class="empty muted">…</p>`
                : !all.length
                  ? html`<${Empty} admin=${admin} />`
                  : tab === "adapters"
                    ? html`<${AdapterTable} state=${state} rows=${all.filter(fits)} all=${all.length} />`
                    : html`<${ProjectTable} projects=${state.projects || []} />`
        }
        ${adding && html`<${AddDialog} close=${() => setAdding(false)} />`}
    </section>`;
}
