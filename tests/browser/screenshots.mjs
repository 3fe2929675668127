/* The pictures of docs/images/, from the example projects and the demo model under some load:
 * GRAFT_SCREENSHOTS=1 tests/browser/run.sh */
import { cpSync, mkdirSync, readFileSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

import { launch, open, row } from "./browser.mjs";
import { killAll, ROOT, Server, until } from "./server.mjs";

const IMAGES = join(ROOT, "docs/images");
const PROJECTS = ["alder", "birch", "cedar"];
const questions = readFileSync(join(ROOT, "examples/questions.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((l) => JSON.parse(l).question);

function fill(server) {
    mkdirSync(server.adapters);
    for (const p of PROJECTS) {
        cpSync(join(ROOT, "examples/projects", p), join(server.adapters, p), { recursive: true });
    }
    cpSync(join(ROOT, "examples/projects/birch"), join(server.adapters, "dogwood"), { recursive: true });
    truncateSync(join(server.adapters, "dogwood/adapter_model.safetensors"), 9000);
}

/* Asks one thing after the other until it is told to stop; more of them at some times than at others. */
async function ask(server, n, load) {
    for (let i = n; !load.over; i++) {
        const body = {
            model: [...PROJECTS, null][n % 4] ?? "SmolLM2-135M-Instruct.Q4_1",
            messages: [{ role: "user", content: questions[i % questions.length] }],
            max_tokens: 40 + ((i * 37) % 50),
            ignore_eos: true,
        };
        if (n < load.many) {
            await server.ask("POST", "v1/chat/completions", body);
        } else {
            await sleep(200);
        }
    }
}

process.on("exit", killAll); /* whatever happens */
const server = new Server({
    base: process.env.GRAFT_DEMO_MODEL,
    args: ["-t", "1", "--ctx", "1024", "--memory-limit-mb", "448"],
});
fill(server);
await server.start();
const browser = await launch();
const load = { many: 2, over: false };
const shot = (page, name) => page.screenshot({ path: join(IMAGES, `${name}.png`) });
mkdirSync(IMAGES, { recursive: true });
await server.ask("POST", "v1/lora_adapters/alder/pin");
await server.ask("POST", "v1/projects/current", { project: "alder", adapter: "default" });
await server.ask("POST", "v1/lora_adapters/dogwood/load");

/* Some rise and fall for the lines. */
const workers = Array.from({ length: 6 }, (_, n) => ask(server, n, load));
const page = await open(browser, server.url, { width: 1280, height: 900, colorScheme: "light" });
const phone = await open(browser, server.url, {
    width: 390,
    height: 844,
    deviceScaleFactor: 1.5,
    colorScheme: "light",
});
for (const many of [4, 6, 3, 1, 3, 6, 5]) {
    load.many = many;
    await sleep(9000);
}
load.many = 6;
const busy = (p) =>
    until(
        async () =>
            (await p.locator(".slot:not(.idle)").count()) >= 5 && (await p.locator(".chips .chip").count()) >= 4,
        "a full batch",
        120,
    );
await row(page, "alder").waitFor();
await page.mouse.move(0, 0);
await busy(page);
await shot(page, "dashboard-light");
await page.emulateMedia({ colorScheme: "dark" });
await busy(page);
await shot(page, "dashboard-dark");
await busy(phone);
await shot(phone, "dashboard-phone");

load.many = 3;
await page.getByRole("link", { name: "Chat" }).click();
await page.setViewportSize({ width: 1280, height: 560 });
await page.emulateMedia({ colorScheme: "light" });
await page.getByRole("switch", { name: "Side by side" }).check();
await page.locator(".pane").nth(0).locator("select").selectOption("alder");
await page.locator(".pane").nth(1).locator("select").selectOption("cedar");
await page.getByText("Options").click();
await page.getByLabel("Temperature").fill("0");
await page.getByText("Options").click();
const asked = [
    "Which port does the server listen on?",
]; /* one: the example adapters were trained on single questions */
for (let i = 0; i < asked.length; i++) {
    await page.getByRole("textbox", { name: "Message", exact: true }).fill(asked[i]);
    await page.keyboard.press("Enter");
    await until(
        async () => (await page.locator(".turn.assistant[aria-busy=false] .facts-line .chip").count()) === 2 * (i + 1),
        "the answers",
    );
}
await until(async () => (await page.locator(".now .chip").count()) >= 2, "chips");
await shot(page, "dashboard-chat");
load.over = true;
await Promise.all(workers);
await page.done();
await phone.done();
await browser.close();
await server.close();
