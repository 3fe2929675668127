/* A real `graft serve` on a free port, with adapters of the tiny base (as tests/server/serving.py has it). */
import { spawn } from "node:child_process";
import {
    closeSync,
    cpSync,
    existsSync,
    mkdirSync,
    mkdtempSync,
    openSync,
    readFileSync,
    rmSync,
    truncateSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

export const ROOT = join(dirname(fileURLToPath(import.meta.url)), "../..");
const GOLDEN = join(ROOT, "tests/oracle/golden");
/* A folder's name may be anything; the registry makes a name of it. */
export const HOSTILE = "<img src=x onerror=hurt()>";

/* Without what is meant for the tests. */
const surroundings = Object.fromEntries(
    Object.entries(process.env).filter(([k]) => !/^GRAFT_(?!CONFIG$|REGISTRY$)/.test(k)),
);

export async function until(condition, what, seconds = 60) {
    const end = Date.now() + seconds * 1000;
    while (!(await condition())) {
        if (Date.now() > end) {
            throw new Error(`not within ${seconds} s: ${what}`);
        }
        await sleep(20);
    }
}

/* A test that fails leaves its server behind. */
const running = new Set();

export function killAll() {
    running.forEach((p) => p.kill("SIGKILL"));
}

export class Server {
    constructor({ base = join(GOLDEN, "bases/llama.gguf"), adapters = null, args = [], env = {}, folder = null } = {}) {
        Object.assign(this, { base, args, env, folder: folder ?? mkdtempSync(join(tmpdir(), "graft-browser-")) });
        this.adapters = adapters ?? join(this.folder, "adapters");
    }

    /* alder, birch and cedar work, elm is cut off, and one comes from a folder with HTML in its name. */
    fill() {
        mkdirSync(this.adapters);
        for (const [name, golden] of Object.entries({
            alder: "plain",
            birch: "rslora",
            cedar: "rank16",
            elm: "plain",
            [HOSTILE]: "plain",
        })) {
            cpSync(join(GOLDEN, "adapters/llama", golden), join(this.adapters, name), { recursive: true });
        }
        truncateSync(join(this.adapters, "elm/adapter_model.safetensors"), 300);
        return this;
    }

    addFolder(name) {
        cpSync(join(GOLDEN, "adapters/llama/plain"), join(this.adapters, name), { recursive: true });
    }

    empty() {
        mkdirSync(this.adapters);
        return this;
    }

    async start(port = 0) {
        const portFile = join(this.folder, "port");
        rmSync(portFile, { force: true });
        const log = openSync(join(this.folder, "log"), "a");
        const args = [
            "serve",
            "-m",
            this.base,
            "-t",
            1,
            "--port",
            port,
            "--port-file",
            portFile,
            "--registry",
            join(this.folder, "registry.db"),
            "--adapters",
            this.adapters,
            ...this.args,
        ];
        this.process = spawn(process.env.GRAFT_BIN, args.map(String), {
            stdio: ["ignore", log, log],
            env: { ...surroundings, ...this.env },
        });
        closeSync(log);
        const own = this.process; /* another one after a restart */
        running.add(own);
        own.on("exit", () => running.delete(own));
        this.ended = new Promise((resolve) => this.process.on("exit", resolve));
        await until(
            () =>
                (existsSync(portFile) && readFileSync(portFile, "utf8").endsWith("\n")) ||
                this.process.exitCode !== null,
            "the server's start",
        );
        if (this.process.exitCode !== null) {
            throw new Error(this.log());
        }
        this.port = Number(readFileSync(portFile, "utf8"));
        this.url = `http://127.0.0.1:${this.port}/`;
        return this;
    }

    log() {
        return readFileSync(join(this.folder, "log"), "utf8");
    }

    async ask(method, path, body, key) {
        const headers = {
            ...(body && { "Content-Type": "application/json" }),
            ...(key && { Authorization: `Bearer ${key}` }),
        };
        const reply = await fetch(this.url + path, { method, headers, body: body && JSON.stringify(body) });
        const text = await reply.text();
        return { status: reply.status, text, json: () => JSON.parse(text) };
    }

    async adapter(id) {
        return (await this.ask("GET", "v1/lora_adapters")).json().data.find((a) => a.id === id);
    }

    async stop() {
        this.process.kill("SIGTERM");
        return this.ended;
    }

    async close() {
        const status = this.process.exitCode ?? (await this.stop());
        const log = this.log();
        rmSync(this.folder, { recursive: true, force: true });
        if (status !== 0 || log.includes("Sanitizer")) {
            throw new Error(`the server ended with ${status}\n${log}`);
        }
    }
}
