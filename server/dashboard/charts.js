/* A line over time and a bar of parts, as SVG and boxes. */
import { html } from "./html.js";

const WIDTH = 240,
    HEIGHT = 44;

/* Samples { at, [field] } over the last `most` seconds, or since the page was opened. The scale begins at 0;
 * its top is the greatest value seen. */
export function Line({ samples, field, most: longest, label }) {
    const now = samples.length ? samples[samples.length - 1].at : 0;
    const seconds = samples.length ? Math.min(longest, Math.max(30, now - samples[0].at)) : longest;
    const seen = samples.filter((s) => now - s.at <= seconds);
    const most = Math.max(1, ...seen.map((s) => s[field]));
    const points = seen.map((s) => [
        WIDTH - ((now - s.at) / seconds) * WIDTH,
        HEIGHT - 2 - (s[field] / most) * (HEIGHT - 6),
    ]);
    const line = points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
    const area = points.length > 1 ? `${points[0][0].toFixed(1)},${HEIGHT} ${line} ${WIDTH},${HEIGHT}` : "";
    return html`<svg class="line" viewBox="0 0 ${WIDTH} ${HEIGHT}" preserveAspectRatio="none" role="img" aria-label=${label}>
        <polygon points=${area} /><polyline points=${line} />
    </svg>`;
}

/* parts: { name, label, value }, shown in order against `whole`. Widths are set from here, which the page's policy allows. */
export function Bar({ parts, whole, label }) {
    return html`<div class="bar" role="img" aria-label=${label}>
        ${parts.filter((p) => p.value > 0).map((p) => html`<span key=${p.name} class="part ${p.name}"
            style=${{ flexBasis: `${(100 * p.value) / whole}%` }} title=${p.label} />`)}
    </div>`;
}
