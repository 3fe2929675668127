/* One colour for each adapter, the same wherever it appears. The base has none. */

const N = 10; /* .c0 to .c9 in style.css */
const given = new Map();

function hash(text) {
    let h = 2166136261;
    for (const c of text) {
        h = Math.imul(h ^ c.codePointAt(0), 16777619);
    }
    return h >>> 0;
}

/* By its name, so that it stays after a reload; moved on while another holds the colour and some are free. */
export function colourOf(adapter) {
    if (!adapter) {
        return "base";
    }
    if (!given.has(adapter)) {
        const used = new Set(given.values());
        let c = hash(adapter) % N;
        for (let i = 0; i < N && used.has(c); i++) {
            c = (c + 1) % N;
        }
        given.set(adapter, c);
    }
    return `c${given.get(adapter)}`;
}
