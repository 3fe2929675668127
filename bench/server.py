#!/usr/bin/env python3
"""Compares `graft serve` and llama-server through HTTP.

Both run all the time, with the same model, adapters, threads, slots and context for each slot, and take turns: in each
round one does all scenarios and then the other, and who begins changes. Ratios are taken within a round; their median
survives a machine whose speed drifts. Greedy, ignore_eos, streams, the same client for both. Prompts are new in every
request, so no KV is reused.

llama-server has all adapters in memory from its start (--lora-init-without-apply). Each request names all of them, the
others with scale 0: one that names none seems to get every adapter. A batch of its holds one set of adapters at a time.

usage: server.py --graft BIN --llama-server BIN --model FILE --adapters DIR --converted DIR [--rounds 5] [--tokens 128]
"""
import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/soak"))
from client import Connection, ask, eventually, many_descriptors, request_bytes  # noqa: E402

N = 8  # adapters, clients and slots
TEXT = ("{1}. The maintainers of the service met on day {0} and wrote down what had to be done before the release: "
        "who looks after the {2} database, on which port it listens, and what happens if it does not come back.")


class Side:
    """One of the two servers."""

    def __init__(self, name, command, port):
        self.name, self.port, self.count = name, port, 0
        self.log = tempfile.NamedTemporaryFile("w+", prefix=f"{name}-", suffix=".log")
        env = {**os.environ, "GRAFT_CONFIG": "/dev/null"}
        self.process = subprocess.Popen([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, env=env)

    async def ready(self):
        async def is_up():
            assert self.process.poll() is None, Path(self.log.name).read_text()[-3000:]
            try:
                return (await ask(self.port, "GET", "/health")).status == 200
            except OSError:
                return False
        await eventually(is_up, f"{self.name} up", 300)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def adapter_fields(self, adapter):
        if self.name == "graft":
            return {} if adapter is None else {"model": f"adapter-{adapter + 1}", "fallback": "error"}
        return {"lora": [{"id": i, "scale": float(i == adapter)} for i in range(N)]}

    def body(self, adapter, tokens):
        self.count += 1
        prompt = TEXT.format(self.count % 31, self.count, "north east south west".split()[self.count % 4])
        return {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True,
                "stream_options": {"include_usage": True}, **self.adapter_fields(adapter)}

    async def stream(self, adapter, tokens):
        """(tokens, seconds to the first one, seconds in all)"""
        connection, first = Connection(self.port), []
        body = request_bytes("POST", "/v1/completions", self.body(adapter, tokens))
        start = time.perf_counter()
        await connection.send(body)
        reply = await connection.receive(lambda piece: first or b'"text":""' in piece or first.append(time.perf_counter()))
        end = time.perf_counter()
        connection.close()
        events = [json.loads(b[6:]) for b in reply.body.decode().split("\n\n") if b.startswith("data: {")]
        usage = [e["usage"] for e in events if e.get("usage")]
        assert reply.status == 200 and usage and usage[-1]["completion_tokens"] == tokens, (self.name, reply.status, reply.body[-500:])
        return tokens, first[0] - start, end - start

    async def rate(self, adapters, tokens):
        """Tokens a second of all together, prompts included in the time."""
        start = time.perf_counter()
        done = await asyncio.gather(*(self.stream(a, tokens) for a in adapters))
        return sum(d[0] for d in done) / (time.perf_counter() - start)

    async def first_token(self, adapter):
        return (await self.stream(adapter, 2))[1] * 1e3

    def memory(self):
        """MiB: resident, its share of what others map too, and what is no file's."""
        rollup = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        field = {line.split(":")[0]: int(line.split()[1]) // 1024 for line in (rollup + status).splitlines() if line.endswith("kB")}
        return {"rss": field["VmRSS"], "pss": field["Pss"], "anonymous": field["RssAnon"]}


async def one_round(side, tokens, number):
    a = number % N
    found = {
        "mixed": await side.rate(range(N), tokens),
        "alone": await side.rate([a], tokens),
        "same": await side.rate([a] * N, tokens),
        "base": await side.rate([None] * N, tokens),
        "base_alone": await side.rate([None], tokens),
    }
    await side.first_token((a + 1) % N)
    found["switch_ms"] = await side.first_token((a + 2) % N)
    if side.name == "graft":
        reply = await ask(side.port, "POST", "/v1/unload_lora_adapter", {"lora_name": f"adapter-{a + 1}"})
        assert reply.status == 200, reply.body
        found["cold_ms"] = await side.first_token(a)
    else:
        found["cold_ms"] = found["switch_ms"]  # all adapters are in memory since the start
    return found


async def measure(sides, args):
    for side in sides:
        await side.ready()
    for side in sides:
        await side.rate(range(N), 8)
    rounds = []
    for number in range(args.rounds):
        order = sides if number % 2 == 0 else sides[::-1]
        found = {side.name: await one_round(side, args.tokens, number) for side in order}
        rounds.append(found)
        pairs = "; ".join(f"{k} {found['graft'][k]:.1f}/{found['llama'][k]:.1f}" for k in found["graft"])
        print(f"  round {number + 1}: {pairs}", file=sys.stderr, flush=True)
    return {"rounds": rounds, "memory": {side.name: side.memory() for side in sides}}


ROWS = [("mixed", "8 clients on 8 adapters, tokens/s"), ("alone", "one client, one adapter, tokens/s"),
        ("same", "8 clients on one adapter, tokens/s"), ("base", "8 clients on the base, tokens/s"), ("base_alone", "one client on the base, tokens/s"),
        ("switch_ms", "first token after a switch of adapter, ms"), ("cold_ms", "first token of a cold adapter, ms")]


def spread(values):
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def table(result):
    print("| median (min to max) | graft serve | llama-server | ratio |\n| --- | --- | --- | --- |")
    for key, words in ROWS:
        graft, llama = ([r[side][key] for r in result["rounds"]] for side in ["graft", "llama"])
        ratios = [a / b for a, b in zip(graft, llama)]
        ratio = f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {words} | {spread(graft)} | {spread(llama)} | {ratio} |")
    for key, words in [("rss", "resident"), ("pss", "proportional"), ("anonymous", "anonymous")]:
        a, b = (result["memory"][side][key] for side in ["graft", "llama"])
        print(f"| memory after it, {words}, MiB | {a} | {b} | {a / b:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--graft", required=True)
    parser.add_argument("--llama-server", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapters", type=Path, required=True, help="adapter-1 … adapter-8: PEFT folders")
    parser.add_argument("--converted", type=Path, required=True, help="adapter-1.gguf … adapter-8.gguf")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=min(os.cpu_count(), 8))
    parser.add_argument("--context", type=int, default=1024, help="tokens for each slot")
    parser.add_argument("--port", type=int, default=18765, help="and the next one")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    many_descriptors()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no server is left behind
    loras = ",".join(str(args.converted / f"adapter-{i + 1}.gguf") for i in range(N))
    with tempfile.TemporaryDirectory() as folder:
        sides = [
            Side("graft", [args.graft, "serve", "-m", args.model, "--adapters", args.adapters, "--registry", f"{folder}/registry.db",
                           "-t", args.threads, "--slots", N, "--ctx", args.context, "--port", args.port], args.port),
            Side("llama", [args.llama_server, "-m", args.model, "--lora", loras, "--lora-init-without-apply", "--offline",
                           "-t", args.threads, "-tb", args.threads, "-np", N, "-c", N * args.context, "--no-kv-unified",
                           "--cache-ram", "0", "--port", args.port + 1], args.port + 1)]
        try:
            result = asyncio.run(measure(sides, args))
        finally:
            for side in sides:
                side.stop()
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    table(result)


if __name__ == "__main__":
    main()
