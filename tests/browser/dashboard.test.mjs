/* What people do with the dashboard, done by a browser. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { faults, launch, open, overflow, row } from "./browser.mjs";
import { HOSTILE, killAll, Server, until } from "./server.mjs";

const HOSTILE_ID = "-img-src-x-onerror-hurt---";
let browser, server;

before(async () => {
    browser = await launch();
    server = await new Server({ args: ["--ctx", "8192", "--slots", "4"] }).fill().start();
});

after(async () => {
    await browser?.close();
    try {
        await server?.close();
    } finally {
        killAll();
    }
});

/* The text of the row's state once it is `word`. */
async function stateIs(page, id, word) {
    await row(page, id).locator(".pill", { hasText: word }).waitFor();
}

/* There are n of it, now or soon. */
async function there(page, n, selector) {
    await until(async () => (await page.locator(selector).count()) === n, `${n} of ${selector}`);
}

async function choose(page, pane, id) {
    await page.locator(".pane").nth(pane).locator("select").selectOption(id);
}

async function answered(page, n) {
    await until(
        async () => (await page.locator(".turn.assistant[aria-busy=false] .facts-line .chip").count()) >= n,
        `${n} answers`,
    );
}

test("lists adapters, projects and figures", async () => {
    const page = await open(browser, server.url);
    for (const id of ["alder", "birch", "cedar", "elm", HOSTILE_ID]) {
        await row(page, id).waitFor();
    }
    await stateIs(page, "elm", "failed");
    assert.match(await row(page, "elm").locator(".why").innerText(), /^header_length: /);
    assert.equal(await page.locator(".slot").count(), 4);
    await page.getByText("free under the limit").waitFor();
    await page.getByRole("button", { name: /^Projects/ }).click();
    await there(page, 5, "table.projects tbody tr");
    await page.done();
});

test("loads, pins, reads again, switches and unloads, and says so", async () => {
    const page = await open(browser, server.url);
    const press = (label) => page.getByRole("button", { name: label, exact: true }).click();
    await press("Load alder");
    await page.getByText("alder is in memory", { exact: true }).waitFor();
    await stateIs(page, "alder", "in memory");
    assert.equal((await server.adapter("alder")).memory, "resident");

    await press("Pin alder: never evicted");
    await page.getByRole("button", { name: "Unpin alder" }).waitFor();
    assert.equal((await server.adapter("alder")).pinned, true);
    await press("Unpin alder");
    await page.getByRole("button", { name: "Pin alder: never evicted" }).waitFor();

    await press("Read the files of alder again");
    await page.getByText("alder was read again").waitFor();

    await press("Answer requests that name no model with birch");
    await row(page, "birch").locator(".tag", { hasText: "current" }).waitFor();
    assert.equal((await server.ask("GET", "v1/projects/current")).json().id, "birch");

    await press("Unload alder");
    await page.getByText(/alder is out of memory: .* freed/).waitFor();
    await stateIs(page, "alder", "on disk");
    await until(async () => (await server.adapter("alder")).memory === "absent", "alder's end");
    await page.done();
});

test("shows why an action failed", async () => {
    const page = await open(browser, server.url, { allow: /status of 4\d\d/ });
    await page.getByRole("button", { name: "Load elm" }).click();
    await page
        .locator(".notes .bad")
        .getByText(/^elm: /)
        .waitFor();
    await stateIs(page, "elm", "failed");
    await page.getByRole("button", { name: "Add", exact: true }).click();
    await page.getByRole("textbox", { name: "Name" }).fill("oak");
    await page.getByLabel("Path on the server").fill("/nonexistent");
    await page.getByRole("button", { name: "Add and load" }).click();
    await page.locator("dialog [role=alert]", { hasText: "No adapter found for oak" }).waitFor();
    await page.keyboard.press("Escape");
    await there(page, 0, "dialog");
    await page.done();
});

test("adds by path", async () => {
    const page = await open(browser, server.url);
    server.addFolder("by-path");
    await page.getByRole("button", { name: "Add", exact: true }).click();
    await page.getByRole("textbox", { name: "Name" }).fill("fir/second");
    await page.getByLabel("Path on the server").fill(`${server.adapters}/by-path`);
    await page.getByRole("button", { name: "Add and load" }).click();
    await stateIs(page, "fir/second", "in memory");
    await page.done();
});

test("scans the folder and tells each find", async () => {
    const page = await open(browser, server.url);
    await row(page, "alder").waitFor();
    server.addFolder("hazel");
    await page.getByRole("button", { name: "Scan folder" }).click();
    await page.getByText(/^Scanned: /).waitFor();
    await page.locator(".scan li", { hasText: "hazel" }).locator("b", { hasText: "added" }).waitFor();
    assert.match(await page.locator(".scan li", { hasText: "elm" }).innerText(), /broken/);
    await row(page, "hazel").waitFor();
    await page.getByRole("button", { name: "Close the scan's result" }).click();
    await there(page, 0, ".scan");
    await page.done();
});

test("chats with one adapter, in several turns", async () => {
    const page = await open(browser, `${server.url}#chat`);
    await choose(page, 0, "birch");
    await page.getByText("Options").click();
    await page.getByLabel("Most tokens").fill("24");
    for (const n of [1, 2]) {
        await page.getByRole("textbox", { name: "Message", exact: true }).fill("What?");
        await page.keyboard.press("Enter");
        await answered(page, n);
    }
    const facts = await page.locator(".facts-line").last().innerText();
    const { loaded_generation: generation } = await server.adapter("birch");
    assert.match(facts, /birch/);
    assert.match(facts, new RegExp(`generation ${generation.slice(0, 8)}`));
    assert.match(facts, /first token after/);
    assert.match(facts, /tokens\/s/);
    assert.match(facts, /prompt tokens cached/); /* of the second turn */
    await page.getByRole("button", { name: "Clear the conversation" }).click();
    await there(page, 0, ".turn");
    await page.done();
});

test("asks two adapters the same, side by side, and shows a fallback", async () => {
    const page = await open(browser, `${server.url}#chat`);
    await page.getByRole("switch", { name: "Side by side" }).check();
    await choose(page, 0, "cedar");
    await choose(page, 1, "elm");
    await page.getByRole("textbox", { name: "Message", exact: true }).fill("abc <b>def</b>");
    await page.getByRole("button", { name: "Send" }).click();
    await answered(page, 2);
    const [left, right] = [page.locator(".pane").nth(0), page.locator(".pane").nth(1)];
    assert.equal(await left.locator(".facts-line .chip").innerText(), "cedar");
    assert.equal(await left.locator(".fallback").count(), 0);
    assert.match(await right.locator(".fallback").innerText(), /The base answers in place of elm: header_length/);
    assert.equal(await right.locator(".facts-line .chip").innerText(), "base");
    assert.deepEqual(await page.locator(".turn.user .text").allInnerTexts(), ["abc <b>def</b>", "abc <b>def</b>"]);
    await page.done();
});

test("stops an answer, and shows meanwhile who shares the batch", async () => {
    const page = await open(browser, `${server.url}#chat`);
    /* The tiny base would end at once: this answer goes on until it is stopped. */
    await page.route("**/v1/chat/completions", (route) =>
        route.continue({
            postData: JSON.stringify({ ...route.request().postDataJSON(), ignore_eos: true, max_tokens: 8000 }),
        }),
    );
    await page.getByRole("switch", { name: "Side by side" }).check();
    await choose(page, 0, "alder");
    await choose(page, 1, "birch");
    await page.getByRole("textbox", { name: "Message", exact: true }).fill("abc");
    await page.keyboard.press("Enter");
    const chips = page.getByRole("list", { name: "Adapters that answer now" });
    await chips.getByText("alder").waitFor();
    await chips.getByText("birch").waitFor();
    await page.keyboard.press("Escape");
    await until(async () => (await page.locator(".facts-line", { hasText: "stopped" }).count()) === 2, "both to stop");
    await page.getByRole("button", { name: "Send" }).waitFor();
    await until(async () => (await server.ask("GET", "v1/status")).json().answers.running === 0, "the slots' release");
    await page.done();
});

test("keyboard only", async () => {
    await server.ask("POST", "v1/lora_adapters/cedar/unload");
    const page = await open(browser, server.url);
    const press = async (...keys) => {
        for (const k of keys) {
            await page.keyboard.press(k);
        }
    };
    await row(page, "cedar").waitFor();
    await press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.className), "skip");
    await press("Enter", "/");
    await until(() => page.evaluate(() => document.activeElement.id === "filter"), "the filter's focus");
    await page.keyboard.type("cedar");
    await there(page, 1, "tbody tr");
    const focused = () =>
        page.evaluate(() => document.activeElement.getAttribute("aria-label") || document.activeElement.innerText);
    const outlined = () => page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    for (let i = 0; (await focused()) !== "Load cedar"; i++) {
        await press("Tab");
        assert.equal(await outlined(), "solid", await focused());
        assert.ok(i < 20, "Load cedar cannot be reached with Tab");
    }
    await press("Enter");
    await stateIs(page, "cedar", "in memory");
    await page.evaluate(() => document.activeElement.blur());
    await press("?");
    await page.getByRole("dialog", { name: "Keys" }).waitFor();
    await press("Escape");
    await there(page, 0, "dialog");
    await press("2");
    await until(() => page.evaluate(() => document.activeElement.id === "message"), "the message's focus");
    await page.keyboard.type("abc");
    await press("Enter");
    await answered(page, 1);
    await page.evaluate(() => document.activeElement.blur());
    await press("1");
    await page.getByRole("heading", { name: "Memory" }).waitFor();
    await page.done();
});

test("light and dark", async () => {
    const page = await open(browser, server.url, { colorScheme: "dark" });
    const brightness = () =>
        page.evaluate(
            () =>
                getComputedStyle(document.body)
                    .backgroundColor.match(/\d+/g)
                    .slice(0, 3)
                    .reduce((a, b) => a + Number(b), 0) / 3,
        );
    await row(page, "alder").waitFor();
    assert.ok((await brightness()) < 60);
    await page.keyboard.press("t"); /* light */
    await until(async () => (await brightness()) > 200, "light");
    await page.reload();
    await row(page, "alder").waitFor();
    assert.ok((await brightness()) > 200, "kept");
    await page.getByRole("button", { name: /^Appearance: light/ }).click();
    await until(async () => (await brightness()) < 60, "dark");
    await page.emulateMedia({ colorScheme: "light" });
    assert.ok((await brightness()) < 60, "the choice holds against the system");
    await page.done();
});

for (const colorScheme of ["light", "dark"]) {
    test(`axe finds no fault, ${colorScheme}`, async () => {
        const page = await open(browser, server.url, { colorScheme });
        await row(page, "elm").locator(".name").click();
        await page.getByRole("button", { name: "Scan folder" }).click();
        await page.getByText(/^Scanned: /).waitFor();
        assert.deepEqual(await faults(page), []);
        await page.getByRole("button", { name: /^Projects/ }).click();
        await page.getByRole("button", { name: "Add", exact: true }).click();
        await page.getByRole("dialog").waitFor();
        assert.deepEqual(await faults(page), []);
        await page.keyboard.press("Escape");
        await page.getByRole("link", { name: "Chat" }).click();
        await page.getByRole("switch", { name: "Side by side" }).check();
        await choose(page, 1, "elm");
        await page.getByRole("textbox", { name: "Message", exact: true }).fill("abc");
        await page.keyboard.press("Enter");
        await answered(page, 2);
        assert.deepEqual(await faults(page), []);
        await page.getByRole("button", { name: "Key", exact: true }).click();
        await page.getByRole("button", { name: "Use this key" }).waitFor();
        assert.deepEqual(await faults(page), []);
        await page.setViewportSize({ width: 360, height: 740 });
        await page.getByRole("button", { name: "Cancel" }).click();
        await page.getByRole("link", { name: "Overview" }).click();
        await row(page, "elm").waitFor();
        assert.deepEqual(await faults(page), []);
        await page.done();
    });
}

for (const width of [360, 390, 768, 1024]) {
    test(`nothing sticks out at ${width} pixels`, async () => {
        const page = await open(browser, server.url, { width, height: 740 });
        await row(page, "elm").waitFor();
        await row(page, "elm").locator(".name").click();
        await row(page, HOSTILE_ID).locator(".name").click();
        await page.getByRole("button", { name: "Scan folder" }).click();
        await page.getByText(/^Scanned: /).waitFor();
        assert.deepEqual(await overflow(page), []);
        await page.getByRole("button", { name: /^Projects/ }).click();
        assert.deepEqual(await overflow(page), []);
        await page.getByRole("button", { name: "Add", exact: true }).click();
        await page.getByRole("dialog").waitFor();
        assert.deepEqual(await overflow(page), []);
        await page.keyboard.press("Escape");
        await page.getByRole("link", { name: "Chat" }).click();
        await page.getByRole("switch", { name: "Side by side" }).check();
        await page.getByRole("textbox", { name: "Message", exact: true }).fill(`${"long".repeat(60)} and more`);
        await page.keyboard.press("Enter");
        await answered(page, 2);
        await page.getByText("Options").click();
        assert.deepEqual(await overflow(page), []);
        assert.ok(await page.getByRole("button", { name: "Send" }).isVisible());
        await page.getByRole("button", { name: "Key", exact: true }).click();
        await page.getByLabel("Key", { exact: true }).and(page.locator("input")).waitFor();
        assert.deepEqual(await overflow(page), []);
        await page.done();
    });
}

test("text of the server is text", async () => {
    const page = await open(browser, server.url, { allow: /status of 409/ });
    /* What the registry would not take as a name, in case anything else ever does. */
    const evil = "<img src=x onerror=hurt()><script>hurt()</script>";
    await page.route("**/v1/lora_adapters", async (route) => {
        const reply = await route.fetch(),
            list = await reply.json();
        list.data.push({
            ...list.data[0],
            id: evil,
            project: evil,
            source: evil,
            generation: evil,
            error: { code: evil, message: evil },
        });
        await route.fulfill({ response: reply, json: list });
    });
    await page.route("**/v1/status", async (route) => {
        const reply = await route.fetch(),
            status = await reply.json();
        status.health = { state: "degraded", reasons: [{ state: "degraded", name: evil, text: evil }] };
        status.slots[0] = { ...status.slots[0], state: "decode", adapter: evil };
        await route.fulfill({ response: reply, json: status });
    });
    await page.route("**/unload", (route) => route.fulfill({ status: 409, json: { error: { message: evil } } }));
    await row(page, HOSTILE_ID).locator(".name").click();
    await row(page, HOSTILE_ID).getByText(`/${HOSTILE}`).waitFor(); /* its path, from the real server */
    await page.locator("tr", { hasText: "onerror=hurt()><script>" }).locator(".name").click();
    await page.locator(".facts", { hasText: "<script>" }).waitFor();
    await page.locator(".slot .who", { hasText: "<script>" }).waitFor();
    await page.locator(".health", { hasText: "<script>" }).waitFor();
    await page.getByRole("button", { name: "Scan folder" }).click();
    await page.locator(".scan li", { hasText: HOSTILE_ID }).waitFor();
    await page
        .getByRole("button", { name: "Load birch" })
        .or(page.getByRole("button", { name: "Unload birch" }))
        .click();
    await page.getByRole("link", { name: "Chat" }).click();
    await page.locator(".now .chip", { hasText: "<script>" }).waitFor();
    assert.equal(await page.locator("#app img, #app script").count(), 0);
    await page.done();
});

test("a thousand adapters stay usable", async () => {
    const page = await open(browser, "about:blank");
    await page.route("**/v1/lora_adapters", async (route) => {
        const reply = await route.fetch(),
            list = await reply.json();
        const data = Array.from({ length: 1000 }, (_, i) => ({
            ...list.data[0],
            id: `tenant-${1000 + i}`,
            project: `tenant-${1000 + i}`,
            requests: i,
        }));
        await route.fulfill({ response: reply, json: { ...list, data } });
    });
    await page.goto(server.url);
    await row(page, "tenant-1000").waitFor();
    await there(page, 100, "tbody tr");
    await page.getByRole("button", { name: "Show 100 more" }).click();
    await there(page, 200, "tbody tr");
    await page.getByRole("searchbox").fill("tenant-1777");
    await there(page, 1, "tbody tr");
    await page.getByRole("searchbox").fill("");
    await page.getByRole("button", { name: "Requests", exact: true }).click();
    await until(
        async () => (await page.locator("tbody tr").first().getAttribute("data-id")) === "tenant-1999",
        "the order",
    );
    await page.getByRole("searchbox").fill("nothing like it");
    await page.getByText("None of the 1,000 adapters fits.").waitFor();
    await page.done();
});

test("no adapters yet", async () => {
    const own = await new Server().empty().start();
    const page = await open(browser, own.url);
    await page.getByText("No adapters yet.").waitFor();
    await page.getByText("graft adapter add").waitFor();
    own.addFolder("first");
    await page.getByRole("button", { name: "Scan folder" }).click();
    await row(page, "first").waitFor();
    await page.done();
    await own.close();
});

test("the server goes and comes back", async () => {
    const own = await new Server().fill().start(),
        port = own.port;
    const page = await open(browser, own.url, {
        allow: /ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE|ERR_INCOMPLETE/,
    });
    await row(page, "alder").waitFor();
    assert.equal(await own.stop(), 0);
    await page.getByRole("alert").getByText("Not reachable.").waitFor();
    assert.equal(await row(page, "alder").count(), 1, "the last that was known stays");
    await page.getByRole("button", { name: "Try now" }).click();
    await own.start(port);
    await until(async () => (await page.getByRole("alert").count()) === 0, "the server's return");
    await page.getByRole("button", { name: "Load alder" }).click();
    await stateIs(page, "alder", "in memory");
    await page.done();
    await own.close();
});

test("asks seldom while it is hidden or the server is gone, once a second else", async () => {
    const page = await open(browser, server.url, { allow: /ERR_FAILED/ });
    await row(page, "alder").waitFor();
    await page.clock.install();
    const asked = [];
    page.on("request", (r) => asked.push(r.url()));
    await page.clock.runFor(1000);
    await until(() => asked.length > 0, "a request");
    const before = asked.length;
    for (let i = 0; i < 10; i++) {
        await page.clock.runFor(1000);
        await until(() => asked.length > before + i, "the next request");
    }
    assert.ok(asked.length - before <= 11, asked.join(" "));

    const during = async (seconds) => {
        const from = asked.length;
        for (let i = 0; i < seconds; i++) {
            await page.clock.runFor(1000);
            await page.evaluate(() => fetch("dashboard/icon.svg")); /* let answers come in */
        }
        return asked.slice(from).filter((url) => url.includes("/v1/")).length;
    };
    await page.evaluate(() => {
        Object.defineProperty(document, "hidden", { get: () => true, configurable: true });
    });
    await during(2);
    assert.ok((await during(30)) <= 3, "hidden");
    await page.evaluate(() => {
        Object.defineProperty(document, "hidden", { get: () => false });
        document.dispatchEvent(new Event("visibilitychange"));
    });
    await page.route("**/v1/**", (route) => route.abort());
    await during(3);
    assert.ok((await during(60)) <= 9, "gone");
    await page.done();
});

const ADMIN = "the-key-of-who-runs-the-server";

async function giveKey(page, key) {
    await page.getByLabel("Key", { exact: true }).and(page.locator("input")).fill(key);
    await page.getByRole("button", { name: "Use this key" }).click();
}

test("a key is needed: none, a wrong one, the right one", async () => {
    const own = await new Server({ env: { GRAFT_API_KEY: ADMIN } }).fill().start();
    const page = await open(browser, own.url, { allow: /status of 401/ });
    await page.getByRole("heading", { name: "This server asks for a key" }).waitFor();
    assert.equal(await page.locator("tbody tr").count(), 0);
    await giveKey(page, "a-key-that-is-wrong");
    await page.getByText("The key is not valid").waitFor();
    await giveKey(page, ADMIN);
    await row(page, "alder").waitFor();
    await page.getByRole("button", { name: "Load alder" }).click();
    await stateIs(page, "alder", "in memory");
    await page.reload(); /* the tab keeps it */
    await row(page, "alder").waitFor();
    assert.deepEqual(await page.evaluate(() => [Object.keys(localStorage), Object.keys(sessionStorage)]), [
        [],
        ["graft.key"],
    ]);
    await page.getByRole("button", { name: "Key", exact: true }).click();
    await page.getByRole("button", { name: "Forget the key" }).click();
    await page.getByRole("heading", { name: "This server asks for a key" }).waitFor();
    await page.getByLabel(/Remember on this device/).check();
    await giveKey(page, ADMIN);
    await row(page, "alder").waitFor();
    assert.deepEqual(await page.evaluate(() => [Object.keys(localStorage), Object.keys(sessionStorage)]), [
        ["graft.key"],
        [],
    ]);
    await page.done();
    await own.close();
});

test("a project's key sees its own and changes nothing", async () => {
    const own = await new Server({ env: { GRAFT_API_KEY: ADMIN } }).fill().start();
    const made = await own.ask("POST", "v1/keys", { name: "for-birch", projects: ["birch"] }, ADMIN);
    assert.equal(made.status, 200, made.text);
    const page = await open(browser, own.url, { allow: /status of 401/ });
    await giveKey(page, made.json().key);
    await row(page, "birch").waitFor();
    await there(page, 1, "tbody tr");
    await page.getByText("project key").waitFor();
    for (const name of [/^Load /, /^Unload /, /^Pin /, "Scan folder", "Add"]) {
        assert.equal(await page.getByRole("button", { name, exact: true }).count(), 0, String(name));
    }
    await page.getByRole("button", { name: "Chat with birch" }).click();
    assert.deepEqual(await page.locator(".pane select option").allInnerTexts(), ["llama (base)", "birch"]);
    await page.getByRole("textbox", { name: "Message", exact: true }).fill("abc");
    await page.keyboard.press("Enter");
    await answered(page, 1);
    assert.equal(await page.locator(".facts-line .chip").innerText(), "birch");
    await page.done();
    await own.close();
});
