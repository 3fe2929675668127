/* One Chromium for all tests; pages that remember what the console said. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(process.env.GRAFT_BROWSER_MODULES);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const flags = [
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
];

export async function launch() {
    const root = process.getuid?.() === 0 ? ["--no-sandbox"] : [];
    return chromium.launch({ executablePath: process.env.GRAFT_CHROMIUM, headless: true, args: [...flags, ...root] });
}

/* Complaints that belong to a test are named by it, as a pattern; all others fail it. */
export async function open(browser, url, { allow = null, width = 1280, height = 900, ...more } = {}) {
    const context = await browser.newContext({ viewport: { width, height }, ...more });
    const page = await context.newPage();
    page.setDefaultTimeout(30000);
    const heard = [];
    page.on("console", (m) => ["error", "warning"].includes(m.type()) && heard.push(`${m.type()}: ${m.text()}`));
    page.on("pageerror", (e) => heard.push(`exception: ${e.message}`));
    await page.addInitScript(() => {
        window.hurt = () => {
            document.title = "hurt";
        };
        document.addEventListener("securitypolicyviolation", (e) =>
            console.error(`policy: ${e.violatedDirective} ${e.blockedURI}`),
        );
    });
    await page.goto(url);
    page.done = async () => {
        assert.notEqual(await page.title(), "hurt");
        assert.deepEqual(
            heard.filter((h) => !allow || !allow.test(h)),
            [],
        );
        await context.close();
    };
    return page;
}

export function row(page, id) {
    return page.locator(`tr[data-id="${id}"]`);
}

/* What axe finds wrong for people who use a screen reader, a keyboard, or need contrast. */
export async function faults(page) {
    await page.evaluate(axe);
    return page.evaluate(async () =>
        (await window.axe.run()).violations.flatMap((v) =>
            v.nodes.map((n) => `${v.id}: ${n.html.slice(0, 160)} ${n.failureSummary}`),
        ),
    );
}

/* What sticks out of the page to the right; [] if nothing does. */
export function overflow(page) {
    return page.evaluate(() => {
        const width = document.documentElement.clientWidth;
        const out = [...document.querySelectorAll("body *")].filter(
            (e) => e.getBoundingClientRect().right > width + 0.5 && !e.closest(".unseen, .skip, pre, .turns"),
        );
        return document.documentElement.scrollWidth > width
            ? ["the page scrolls", ...out.map((e) => e.outerHTML.slice(0, 120))]
            : [];
    });
}
