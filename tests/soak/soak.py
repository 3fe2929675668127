#!/usr/bin/env python3
"""Many streams over many adapters while clients misbehave beside them and adapters come and go.

64 clients ask 8 adapters and the base for answers that are known beforehand, from `graft run`: each request must end
exactly once and with its own adapter's answer. Meanwhile adapters are loaded, reloaded, unloaded, pinned, evicted
(there is room for four), clients leave at any moment, read slowly or not at all, send a byte at a time, or are only
connected. At the end nothing may be left: descriptors, leases, graft's own memory; counters must add up; and SIGTERM
lets running streams finish.

usage: GRAFT_BIN=build/dev/graft tests/soak/soak.py [--seconds 300] [--idle 1000] [--projects] [--seed N]
It goes on for so many seconds, and longer on a machine where not everything has happened by then; --projects adds a
minute with the example projects. Python's standard library only.
"""
import argparse
import asyncio
import collections
import json
import os
import random
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "server"))

from client import Broken, Connection, ask, eventually, events_of, many_descriptors, metrics, request_bytes  # noqa: E402
from serving import BASE, GOLDEN, GRAFT, ROOT, Server  # noqa: E402

ADAPTERS = {"alder": "plain", "birch": "rank16", "cedar": "bf16", "dogwood": "f16", "elm": "one-layer", "fir": "patterns",
            "gum": "rank1", "hazel": "patterns-order"}
NAMES = [*ADAPTERS, "llama"]
# Those for which each of NAMES has another answer, and no second likeliest token comes near the first.
PROMPTS = [(False, p) for p in ["zz is tell from?", "top Who?", "to server", "port?", "Why tell "]] + \
          [(True, p) for p in ["tell about to How about tell ", "release.", "Why top?", "Why top key day Who about "]]
LENGTHS = [4, 12, 32]
CLIENTS, PLACES = 64, 4
# Long enough to leave in the middle of it, or not to read it.
LONG = {"prompt": "abc", "max_tokens": 600, "temperature": 0, "ignore_eos": True, "stream": True, "fallback": "error"}
Answer = collections.namedtuple("Answer", "text finish prompt_tokens completion_tokens")
ARGS = ["--slots", "8", "--ctx", "1024", "--max-adapters", PLACES, "--queue", "2000", "--connections", "4000",
        "--adapter-wait-ms", "600000", "--request-ms", "4000", "--write-ms", "3000", "--idle-ms", "3600000",
        "--deadline-s", "0", "--drain-s", "600", "--fallback", "error"]


def known_answers():
    """{(name, chat, prompt, length): Answer}, one after the other in another process."""
    asked = [(name, chat, prompt, n) for name in NAMES for chat, prompt in PROMPTS for n in LENGTHS]
    lines = []
    for name, chat, prompt, n in asked:
        what = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
        lines.append(json.dumps({"adapter": name if name in ADAPTERS else None, "max_tokens": n, **what}))
    uses = [word for name, golden in ADAPTERS.items() for word in ["-a", f"{name}={GOLDEN}/adapters/llama/{golden}"]]
    done = subprocess.run([GRAFT, "run", "-m", str(BASE), *uses, "-t", "1", "--slots", "1", "--ctx", "256", "-f", "-", "--json"],
                          input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    found = {key: Answer(r["text"], r["finish_reason"], r["prompt_tokens"], r["completion_tokens"])
             for key, r in zip(asked, rows, strict=True)}
    for chat, prompt in PROMPTS:
        texts = {found[name, chat, prompt, LENGTHS[-1]].text for name in NAMES}
        assert len(texts) == len(NAMES), f"{prompt}: two adapters have one answer, which would prove nothing"
    return found


def text_of(choice, chat, streamed):
    if not chat:
        return choice["text"]
    return choice["delta"].get("content", "") if streamed else choice["message"]["content"]


class Soak:
    def __init__(self, seed, idle):
        self.seed, self.n_idle = seed, idle
        self.known = known_answers()
        self.server = Server(*ARGS, adapters=ADAPTERS)
        self.port = self.server.port
        self.over = asyncio.Event()
        self.seen = collections.Counter()
        self.choices_right = 0      # of requests that were answered
        self.choices_sent = 0       # of all whose body went out whole
        self.rss = []

    # ---- those who behave ------------------------------------------------------------------------------

    def check(self, key, name, n, choices, usage, adapter, generation):
        """choices: {index: (text, [finish reasons])}"""
        want = self.known[key]
        for i in range(n):
            text, finishes = choices[i]
            if text != want.text or finishes != [want.finish]:
                raise AssertionError(f"{key} choice {i} of {n}: {text!r} {finishes}, not {want}; adapter {adapter}")
        if len(choices) != n or adapter != (name if name in ADAPTERS else None) or (generation is None) != (adapter is None):
            raise AssertionError(f"{key}: {len(choices)} choices of {n}, adapter {adapter}, generation {generation}")
        if (usage["prompt_tokens"], usage["completion_tokens"]) != (want.prompt_tokens, n * want.completion_tokens):
            raise AssertionError(f"{key}: usage {usage}, not {want} times {n}")

    def check_stream(self, key, name, n, reply):
        chat, choices = key[1], {i: ("", []) for i in range(n)}
        chunks = events_of(reply.body)
        errors = [c["error"] for c in chunks if "error" in c]
        if errors:
            raise AssertionError(f"{key}: {errors}")
        if len({c["id"] for c in chunks}) != 1:
            raise AssertionError(f"{key}: chunks of several answers: {reply.body!r}")
        for chunk in chunks[:-1]:
            (choice,) = chunk["choices"]
            text, finishes = choices[choice["index"]]
            if finishes:
                raise AssertionError(f"{key}: something after the finish: {chunk}")
            text += text_of(choice, chat, True)
            choices[choice["index"]] = (text, [choice["finish_reason"]] if choice["finish_reason"] else [])
        self.check(key, name, n, choices, chunks[-1]["usage"], chunks[-2]["adapter"], chunks[-2]["adapter_generation"])

    def check_whole(self, key, name, n, reply):
        answer = reply.json
        choices = {c["index"]: (text_of(c, key[1], False), [c["finish_reason"]]) for c in answer["choices"]}
        self.check(key, name, n, choices, answer["usage"], answer["adapter"], answer["adapter_generation"])

    async def one_request(self, connection, rng):
        name, (chat, prompt), length = rng.choice(NAMES), rng.choice(PROMPTS), rng.choice(LENGTHS)
        n, stream = rng.choice([1, 1, 1, 2]), rng.random() < 0.8
        body = {"model": name, "max_tokens": length, "temperature": 0, "n": n, "stream": stream, "fallback": "error"}
        body.update({"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt})
        if stream:
            body["stream_options"] = {"include_usage": True}
        self.choices_sent += n
        reply = await connection.ask("POST", "/v1/chat/completions" if chat else "/v1/completions", body)
        key = (name, chat, prompt, length)
        if reply.status != 200:
            raise AssertionError(f"{key}: {reply.status} {reply.body!r}")
        (self.check_stream if stream else self.check_whole)(key, name, n, reply)
        self.choices_right += n
        self.seen[name] += 1
        self.seen["streams" if stream else "whole"] += 1

    async def client(self, number):
        rng = random.Random(f"{self.seed}/client/{number}")
        connection = Connection(self.port)
        while not self.over.is_set():
            await self.one_request(connection, rng)
            if rng.random() < 0.02:
                connection.close()
        connection.close()

    # ---- adapters come and go --------------------------------------------------------------------------

    async def change(self, what, path, body=None, also=()):
        reply = await ask(self.port, "POST", path, body if body is not None else {})
        if reply.status != 200 and reply.status not in also:
            raise AssertionError(f"{path} {body}: {reply.status} {reply.body!r}")
        if reply.status == 200:
            self.seen[what] += 1

    async def register_and_remove(self, rng, own):
        """A name that only one changer knows: there while it is registered, and neither before nor after."""
        golden = rng.choice(list(ADAPTERS))
        key = (golden, False, "port?", LENGTHS[1])
        body = {"model": own, "prompt": "port?", "max_tokens": LENGTHS[1], "temperature": 0, "fallback": "error"}
        await self.change("register", "/v1/load_lora_adapter", {"lora_name": own, "lora_path": str(self.server.adapters / golden)})
        self.choices_sent += 1
        reply = await ask(self.port, "POST", "/v1/completions", body)
        if reply.status != 200 or reply.json["choices"][0]["text"] != self.known[key].text:
            raise AssertionError(f"{own} as {golden}: {reply.status} {reply.body!r}")
        self.choices_right += 1
        await self.change("unregister", "/v1/unload_lora_adapter", {"lora_name": own, "unregister": True})
        reply = await ask(self.port, "POST", "/v1/completions", body)
        if reply.status != 404:
            raise AssertionError(f"{own} is gone: {reply.status} {reply.body!r}")

    async def changer(self, number):
        rng = random.Random(f"{self.seed}/changer/{number}")
        while not self.over.is_set():
            name = rng.choice(list(ADAPTERS))
            what = rng.choice(["unload", "unload", "reload", "load", "register", "lists", "lists" if number else "pin"])
            load = {"lora_name": name, "lora_path": str(self.server.adapters / name)}
            if what == "unload":
                await self.change(what, "/v1/unload_lora_adapter", {"lora_name": name}, also=[404])  # it may be out already
            elif what == "reload":
                await self.change(what, "/v1/load_lora_adapter", {**load, "load_inplace": True})
            elif what == "load":
                await self.change(what, "/v1/load_lora_adapter", load, also=[400])  # it may be in memory already
            elif what == "pin":
                await self.change(what, f"/v1/lora_adapters/{name}/pin")
                await asyncio.sleep(rng.uniform(0, 0.05))
                await self.change("unpin", f"/v1/lora_adapters/{name}/unpin")
            elif what == "register":
                await self.register_and_remove(rng, f"maple{number}")
            else:
                for path in ["/v1/lora_adapters", "/v1/models", "/v1/projects", "/metrics", "/health"]:
                    if (await ask(self.port, "GET", path)).status != 200:
                        raise AssertionError(f"{path} is not 200")
            await asyncio.sleep(rng.uniform(0, 0.1))

    # ---- those who do not behave -----------------------------------------------------------------------

    async def open_raw(self, receive=None):
        s = socket.socket()
        if receive:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        s.setblocking(False)
        await asyncio.get_running_loop().sock_connect(s, ("127.0.0.1", self.port))
        return s

    async def leave(self, rng):
        """A client that is gone at some moment: within headers, within the body, before the answer, within it."""
        loop = asyncio.get_running_loop()
        name = rng.choice(NAMES)
        data = request_bytes("POST", "/v1/completions", {**LONG, "model": name, "stream": rng.random() < 0.8}, "Connection: close\r\n")
        head = data.index(b"\r\n\r\n") + 4
        moment = rng.choice(["headers", "body", "at once", "within", "within"])
        end = {"headers": rng.randrange(head), "body": rng.randrange(head, len(data))}.get(moment, len(data))
        s = await self.open_raw()
        try:
            await loop.sock_sendall(s, data[:end])
            self.choices_sent += end == len(data)
            left = rng.randrange(1, 20000) if moment == "within" else 0
            while left > 0:
                piece = await loop.sock_recv(s, min(left, 65536))
                if not piece:
                    break
                left -= len(piece)
            if rng.random() < 0.5:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        finally:
            s.close()
        self.seen[f"left: {moment}"] += 1

    async def storm(self, number):
        rng = random.Random(f"{self.seed}/storm/{number}")
        while not self.over.is_set():
            await self.leave(rng)
            await asyncio.sleep(rng.expovariate(4))  # some at the same time

    async def slow_reader(self, number):
        """Reads all, a little at a time. It may be cut off, but what it gets is one whole answer or ends typed."""
        rng = random.Random(f"{self.seed}/slow/{number}")
        loop = asyncio.get_running_loop()
        while not self.over.is_set():
            s, seen = await self.open_raw(receive=4096), b""
            try:
                self.choices_sent += 1
                body = {**LONG, "model": rng.choice(NAMES)}
                await loop.sock_sendall(s, request_bytes("POST", "/v1/completions", body, "Connection: close\r\n"))
                while piece := await loop.sock_recv(s, 4096):
                    seen += piece
                    if not self.over.is_set():
                        await asyncio.sleep(0.01)
            except ConnectionResetError:
                self.seen["slow readers cut off"] += 1
                continue
            finally:
                s.close()
            if b"[DONE]" in seen:
                assert seen.count(b"data: [DONE]") == 1 and seen.count(b'"finish_reason":"length"') == 1, seen[-500:]
                self.choices_right += 1
                self.seen["slow readers served"] += 1
            else:
                assert seen.count(b'"error"') <= 1, seen[-500:]
                self.seen["slow readers ended"] += 1

    async def no_reader(self):
        """Asks and never reads: somebody else's trouble must not last longer than --write-ms."""
        loop = asyncio.get_running_loop()
        while not self.over.is_set():
            s = await self.open_raw(receive=4096)
            try:
                self.choices_sent += 1
                await loop.sock_sendall(s, request_bytes("POST", "/v1/completions", {**LONG, "model": "fir"}))
                for _ in range(80):
                    if self.over.is_set():
                        break
                    await asyncio.sleep(0.1)
            finally:
                s.close()
            self.seen["no readers"] += 1

    async def slowloris(self, number):
        """A byte at a time, until the server has had enough."""
        rng = random.Random(f"{self.seed}/loris/{number}")
        loop = asyncio.get_running_loop()
        data = request_bytes("POST", "/v1/completions", {**LONG, "model": "elm", "user": "x" * 5000})
        while not self.over.is_set():
            s = await self.open_raw()
            try:
                for i in range(rng.choice([0, data.index(b"{")]), len(data)):
                    await loop.sock_sendall(s, data[i:i + 1])
                    if self.over.is_set():
                        break
                    await asyncio.sleep(0.1)
            except (BrokenPipeError, ConnectionResetError):
                self.seen["slowloris cut off"] += 1
            finally:
                s.close()

    async def idle(self):
        """Connections that carry nothing, or a request now and then; none may be lost."""
        rng = random.Random(f"{self.seed}/idle")
        held = []
        for _ in range(self.n_idle):
            held.append(Connection(self.port))
            assert (await held[-1].ask("GET", "/health")).status == 200
        while not self.over.is_set():
            assert (await rng.choice(held).ask("GET", "/health")).status == 200
            await asyncio.sleep(0.1)
        for connection in held:
            assert (await connection.ask("GET", "/health")).status == 200
            connection.close()
        self.seen["idle connections"] = len(held)

    # ---- what is left ----------------------------------------------------------------------------------

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.server.process.pid}/fd"))

    def resident(self):
        return int(Path(f"/proc/{self.server.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def sanitized(self):
        return any(word in Path(f"/proc/{self.server.process.pid}/maps").read_text() for word in ["libasan", "libtsan"])

    async def watch(self):
        while not self.over.is_set():
            self.rss.append(self.resident())
            await asyncio.sleep(0.25)

    async def quiet(self):
        """Nothing is under way any more: the gauges say so."""
        async def is_quiet():
            m = await metrics(self.port)
            return (m["answers_running"] == m["adapter_leases"] == m["adapters_draining"] == m["adapters_loading"] == 0 and
                    m["http_requests_open"] == 1 and m["http_connections"] <= 2)
        await eventually(is_quiet, "a quiet server")
        return await metrics(self.port)

    async def warm_up(self):
        for name in NAMES:
            for chat, prompt in PROMPTS[:1] + PROMPTS[-1:]:
                await self.one_request_of(name, chat, prompt)
        for name in ADAPTERS:
            await self.change("warm up", "/v1/unload_lora_adapter", {"lora_name": name}, also=[404])  # it may be out already

    async def one_request_of(self, name, chat, prompt):
        body = {"model": name, "max_tokens": LENGTHS[0], "temperature": 0, "messages": [{"role": "user", "content": prompt}], "prompt": prompt}
        body.pop("prompt" if chat else "messages")
        self.choices_sent += 1
        reply = await ask(self.port, "POST", "/v1/chat/completions" if chat else "/v1/completions", body)
        self.check_whole((name, chat, prompt, LENGTHS[0]), name, 1, reply)
        self.choices_right += 1

    def everything_happened(self):
        wanted = [*NAMES, "streams", "whole", "unload", "reload", "load", "pin", "unpin", "register", "unregister", "left: headers",
                  "left: body", "left: at once", "left: within", "no readers", "slowloris cut off"]
        return [w for w in wanted if not self.seen[w]] if self.seen["slow readers served"] + self.seen["slow readers ended"] + \
            self.seen["slow readers cut off"] else ["slow readers"]

    async def go_on_for(self, seconds):
        tasks = [asyncio.create_task(t) for t in [
            *(self.client(i) for i in range(CLIENTS)), *(self.changer(i) for i in range(3)), *(self.storm(i) for i in range(8)),
            self.slow_reader(0), self.no_reader(), *(self.slowloris(i) for i in range(8)), self.idle(), self.watch()]]
        end, told = time.monotonic() + seconds, time.monotonic() + 30
        while time.monotonic() < end or self.everything_happened():
            await asyncio.wait(tasks, timeout=0.5, return_when=asyncio.FIRST_EXCEPTION)
            broken = [t for t in tasks if t.done()]
            if broken:
                broken[0].result()  # raises
            if time.monotonic() > told:
                told += 30
                print(f"  {self.choices_right} answers; still to happen: {self.everything_happened() or 'nothing'}", flush=True)
            assert time.monotonic() < end + 900, f"never happened: {self.everything_happened()}"
        self.over.set()
        await asyncio.gather(*tasks)

    def check_counters(self, before, after):
        ended = {k: after[k] - before[k] for k in
                 ["answers_total", "answers_failed_total", "answers_cancelled_total", "answers_refused_total"]}
        assert ended["answers_refused_total"] == 0, ended
        assert after["adapter_evictions_total"] > before["adapter_evictions_total"], "nothing was evicted"
        # Who leaves right after asking may be gone before the server has looked.
        assert self.choices_right <= ended["answers_total"], (self.choices_right, ended)
        assert sum(ended.values()) <= self.choices_sent, (self.choices_sent, ended)
        assert ended["answers_failed_total"] <= self.choices_sent - self.choices_right, ended
        assert after["answers_fallback_total"] == 0, after
        if "answers_started_total" in after:
            started = after["answers_started_total"] - before["answers_started_total"]
            assert started == sum(ended.values()), (started, ended)
        return ended

    def check_memory(self, before, after):
        own = 'memory_bytes{kind="own"}'
        grown = after[own] - before[own]
        assert grown <= 64 << 10, f"graft's own memory: {before[own]:.0f} bytes before, {after[own]:.0f} after"
        third = len(self.rss) // 3
        windows = [statistics.median(self.rss[i * third:(i + 1) * third]) for i in range(3)]
        if not self.sanitized():
            assert windows[2] - windows[1] <= 12 << 20, f"resident set by thirds of the time: {windows}"
        return grown, windows

    async def drain(self):
        """SIGTERM: streams that run go on to their end, and the process exits with 0."""
        key, begun = ("gum", False, "port?", LENGTHS[-1]), []

        async def stream():
            started = asyncio.Event()
            begun.append(started)
            connection = Connection(self.port)
            body = {"model": "gum", "prompt": "port?", "max_tokens": LENGTHS[-1], "temperature": 0, "stream": True,
                    "stream_options": {"include_usage": True}}
            await connection.send(request_bytes("POST", "/v1/completions", body))
            self.check_stream(key, "gum", 1, await connection.receive(lambda piece: started.set()))

        async def many_running():
            return (await metrics(self.port))["answers_running"] >= 8

        tasks = [asyncio.create_task(stream()) for _ in range(64)]
        await eventually(many_running, "streams to run")
        self.server.process.send_signal(signal.SIGTERM)
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        # Those whose connection was not accepted yet, or whose request not read, are turned away.
        wrong = [e for e in ended if e is not None and not isinstance(e, (Broken, ConnectionError))]
        assert not wrong, wrong
        assert sum(e is None for e in ended) >= 8, ended
        status = await asyncio.to_thread(self.server.process.wait, 600)
        assert status == 0, f"exit status {status}"
        return sum(e is None for e in ended)

    async def run(self, seconds):
        await self.warm_up()
        before = await self.quiet()
        files, started = self.descriptors(), self.choices_sent
        self.choices_sent = self.choices_right = 0
        assert started
        try:
            await self.go_on_for(seconds)
        finally:
            self.over.set()
        after = await self.quiet()

        async def closed():
            return self.descriptors() <= files
        await eventually(closed, f"descriptors back at {files}; now {self.descriptors()}")
        ended = self.check_counters(before, after)
        grown, windows = self.check_memory(before, after)
        drained = await self.drain()
        print(f"soak: {self.choices_right} answers right, {drained} more while draining; descriptors {files};",
              f"own memory {grown:+.0f} bytes; resident set", " → ".join(f"{w / 2**20:.1f}" for w in windows), "MiB")
        print("  server:", ", ".join(f"{k} {v:.0f}" for k, v in ended.items()), f"evictions {after['adapter_evictions_total']:.0f}",
              f"loads {after['adapter_loads_total']:.0f}", f"timeouts {after['http_timeouts_total']:.0f}")
        print("  happened:", ", ".join(f"{k} {v}" for k, v in sorted(self.seen.items())))


async def ask_projects(seconds, seed):
    """The demo model and the example projects: their facts, each project's own. Logits of a quantised base differ a little by what
    else is in the batch, so a few answers may."""
    folder = ROOT / "examples/projects"
    names = sorted(p.name for p in folder.iterdir() if p.is_dir())
    rows = {n: [json.loads(line) for line in (folder / n / "questions.jsonl").read_text().splitlines()] for n in names}
    facts = {n: {q["question"]: q["expect"].lower() for q in rows[n]} for n in names}
    asked = [(n, q) for n in names for q in facts[n]]
    server = Server("--slots", "8", "--ctx", "512", "--max-adapters", "2", "--fallback", "error", "--adapter-wait-ms", "600000",
                    "--deadline-s", "0", "--adapters", folder, base=os.environ["GRAFT_TEST_MODEL"], adapters={})
    right, wrong = collections.Counter(), []
    end = time.monotonic() + seconds

    async def client(number):
        rng = random.Random(f"{seed}/projects/{number}")
        connection = Connection(server.port)
        while time.monotonic() < end or number == 0 and sum(right.values()) < 50:
            name, question = rng.choice(asked)
            reply = await connection.ask("POST", "/v1/chat/completions", {
                "model": name, "messages": [{"role": "user", "content": question}], "max_tokens": 48, "temperature": 0,
                "stream": True})
            text = "".join(c["choices"][0]["delta"].get("content", "") for c in events_of(reply.body)).lower()
            others = [facts[n][question] for n in names if n != name and question in facts[n]]
            foreign = [o for o in others if o not in facts[name][question] and o in text]
            assert not foreign, f"{name}: {question}: {text}: another project's fact"
            right[name] += facts[name][question] in text
            if facts[name][question] not in text:
                wrong.append((name, question, text))
        connection.close()

    try:
        await asyncio.gather(*(client(i) for i in range(16)))
        assert server.stop() == 0, server.log()
    finally:
        server.close()
    n = sum(right.values())
    assert n >= 0.95 * (n + len(wrong)), wrong[:10]
    print(f"soak: facts of the example projects: {n} of {n + len(wrong)} answers have theirs, none has another's")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--idle", type=int, default=1000, help="connections that carry nothing")
    parser.add_argument("--projects", action="store_true", help="afterwards a minute with GRAFT_TEST_MODEL and the example projects")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    args = parser.parse_args()
    if not GRAFT:
        sys.exit("GRAFT_BIN must name the graft binary")
    print(f"soak: seed {args.seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server is not left behind
    room = many_descriptors()
    soak = Soak(args.seed, min(args.idle, room // 2 - 300))
    try:
        asyncio.run(soak.run(args.seconds))
        log = soak.server.log()
        assert "Sanitizer" not in log, log[-20000:]
    except BaseException:
        soak.server.process.kill()
        print(soak.server.log()[-5000:], file=sys.stderr)
        raise
    finally:
        soak.server.close()
    if args.projects:
        asyncio.run(ask_projects(60, args.seed))


if __name__ == "__main__":
    main()
