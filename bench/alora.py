#!/usr/bin/env python3
"""What a switch of activated adapters (aLoRA) costs over one long context, beside a switch of plain adapters.

Starts `graft serve` with three activated adapters and three plain ones: the same matrices, the activated ones with invocation
tokens. In each round there is a new context. The three of a kind are asked about it in turn, twice over, each with a question of
its own after the context, and then its invocation tokens; the kinds change who comes first. Prompts are lists of tokens. The
switches counted are those after the first request, which has to evaluate the context.

usage: alora.py --graft BIN --model FILE --adapters DIR [--context 2000] [--rounds 5] [--json FILE]

DIR has adapter-1 to adapter-3 (make_adapters.py). Python's standard library only.
"""
import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/soak"))
from client import Connection, ask, eventually, request_bytes  # noqa: E402

QUESTION = 16  # tokens of its own
NEW = 8
KINDS = ("activated", "plain")


def invocation(number):
    """Any tokens will do."""
    return [300 + number, 301, 302 + number, 303]


def make_folders(source, folder):
    for number in (1, 2, 3):
        for kind in KINDS:
            to = folder / f"{kind}-{number}"
            to.mkdir()
            shutil.copy(source / f"adapter-{number}/adapter_model.safetensors", to)
            config = json.loads((source / f"adapter-{number}/adapter_config.json").read_text())
            if kind == "activated":
                config["alora_invocation_tokens"] = invocation(number)
            (to / "adapter_config.json").write_text(json.dumps(config))


async def question(port, name, prompt):
    """(milliseconds to the first token, tokens from the cache, tokens that were evaluated)"""
    connection, first = Connection(port), []
    body = {"model": name, "fallback": "error", "prompt": prompt, "max_tokens": NEW, "temperature": 0, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True}}
    start = time.perf_counter()
    await connection.send(request_bytes("POST", "/v1/completions", body))
    reply = await connection.receive(lambda piece: first or b'"text":""' in piece or first.append(time.perf_counter()))
    connection.close()
    events = [json.loads(b[6:]) for b in reply.body.decode().split("\n\n") if b.startswith("data: {")]
    usage = [e["usage"] for e in events if e.get("usage")]
    assert reply.status == 200 and usage, reply.body[-500:]
    cached = usage[-1]["prompt_tokens_details"]["cached_tokens"]
    return (first[0] - start) * 1e3, cached, usage[-1]["prompt_tokens"] - cached


async def evaluated(port):
    return (await ask(port, "GET", "/v1/status")).json["tokens"]["prompt"]


async def one_kind(port, kind, context, draw):
    found = []
    before = await evaluated(port)
    for turn in range(6):
        number = turn % 3 + 1
        prompt = context + [draw.randrange(1000, 20000) for _ in range(QUESTION)] + invocation(number)
        found.append(await question(port, f"{kind}-{number}", prompt))
    all_rows = await evaluated(port) - before
    assert all_rows == sum(f[2] for f in found), (all_rows, found)  # the engine's count is the answers'
    return found


async def measure(port, process, args):
    async def is_up():
        assert process.poll() is None
        try:
            return (await ask(port(), "GET", "/health")).status == 200
        except (OSError, ValueError):
            return False
    await eventually(is_up, "graft up", 300)
    for name in (f"{kind}-{number}" for kind in KINDS for number in (1, 2, 3)):
        reply = await ask(port(), "POST", f"/v1/lora_adapters/{name}/load", {})
        assert reply.status == 200, reply.body
    draw, rounds = random.Random(1), []
    for number in range(args.rounds + 1):
        order = KINDS if number % 2 else KINDS[::-1]
        length = args.context if number else 64  # the first one warms up
        context = {kind: [draw.randrange(1000, 20000) for _ in range(length)] for kind in KINDS}
        found = {kind: await one_kind(port(), kind, context[kind], draw) for kind in order}
        print(f"  round {number}: {found}", file=sys.stderr, flush=True)
        if number:
            rounds.append(found)
    return rounds


def spread(values, form):
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def show(rounds):
    rows = [("first request, tokens evaluated", slice(0, 1), 2, ".0f"), ("first request, ms to the first token", slice(0, 1), 0, ".0f"),
            ("switch to another adapter, tokens evaluated", slice(1, 3), 2, ".0f"),
            ("switch to another adapter, ms to the first token", slice(1, 3), 0, ".0f"),
            ("back to one of before, tokens evaluated", slice(3, 6), 2, ".0f"),
            ("back to one of before, ms to the first token", slice(3, 6), 0, ".0f")]
    print("| median (min to max) | activated | plain |\n| --- | --- | --- |")
    for words, of, what, form in rows:
        cells = [spread([f[what] for r in rounds for f in r[kind][of]], form) for kind in KINDS]
        print(f"| {words} | {cells[0]} | {cells[1]} |")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--graft", required=True)
    p.add_argument("--model", required=True)
    p.add_argument("--adapters", type=Path, required=True)
    p.add_argument("--context", type=int, default=2000)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--slots", type=int, default=4)
    p.add_argument("--json", type=Path)
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        (folder / "adapters").mkdir()
        make_folders(args.adapters, folder / "adapters")
        command = [args.graft, "serve", "-m", args.model, "--adapters", folder / "adapters", "--registry", folder / "registry.db", "--port", 0,
                   "--port-file", folder / "port", "--threads", 2, "--slots", args.slots, "--ctx", args.context + 64,
                   "--max-adapters", 6]
        with open(folder / "log", "w") as log:
            process = subprocess.Popen([str(c) for c in command], stdout=log, stderr=log, env={**os.environ, "GRAFT_CONFIG": "/dev/null"})
            try:
                rounds = asyncio.run(measure(lambda: int((folder / "port").read_text()), process, args))
            except BaseException:
                print((folder / "log").read_text()[-3000:], file=sys.stderr)
                raise
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(60)
    if args.json:
        args.json.write_text(json.dumps({"context": args.context, "slots": args.slots, "rounds": rounds}, indent=1) + "\n")
    show(rounds)


if __name__ == "__main__":
    main()
