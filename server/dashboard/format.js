/* Numbers and times as people read them. */

const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

export function count(n) {
    return plain.format(n ?? 0);
}

/* "1 adapter", "2 adapters" */
export function counted(n, noun) {
    return `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
}

/* Few digits: "0", "3.4", "142". */
export function rate(n) {
    return n >= 10 || !n ? plain.format(n || 0) : tenths.format(n);
}

export function bytes(n) {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let i = 0;
    while (n >= 1024 && i < units.length - 1) {
        n /= 1024;
        i++;
    }
    return `${i === 0 || n >= 100 ? plain.format(n) : tenths.format(n)} ${units[i]}`;
}

export function percent(share) {
    return `${tenths.format(share * 100)} %`;
}

export function milliseconds(ms) {
    return ms >= 10000
        ? `${plain.format(ms / 1000)} s`
        : ms >= 1000
          ? `${tenths.format(ms / 1000)} s`
          : `${plain.format(ms)} ms`;
}

/* The two greatest units: "3 min", "2 h 5 min", "4 d 1 h". */
export function duration(s) {
    s = Math.max(0, Math.floor(s));
    if (s < 60) {
        return `${s} s`;
    }
    if (s < 3600) {
        return `${Math.floor(s / 60)} min`;
    }
    if (s < 86400) {
        return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
    }
    return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/* Coarse, so that a table does not change each second. `at`: seconds since 1970, 0 = never. */
export function ago(at, now = Date.now() / 1000) {
    if (!at) {
        return "never";
    }
    const s = Math.max(0, now - at);
    if (s < 10) {
        return "just now";
    }
    return s < 60
        ? `${Math.floor(s / 10) * 10} s ago`
        : s < 86400
          ? `${s < 3600 ? duration(s) : `${Math.floor(s / 3600)} h`} ago`
          : `${Math.floor(s / 86400)} d ago`;
}
