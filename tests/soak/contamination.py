#!/usr/bin/env python3
"""Does any answer carry something of another adapter, another version, or another request?

Clients ask for the same long beginnings over several adapters and the base, in random order and all at once, so that
rows share batches and KV is reused; meanwhile adapters get other files under the same name, by another path or in
place, are unloaded, and evict each other. Each answer, and the log-probability of each of its tokens, must be what the
version that the reply names gives alone: asked of another server, one request at a time, with nothing in its cache.
Versions are compared by adapter_generation, and no version may answer after a replacement of it was confirmed.

Log-probabilities differ in their last digits by what else is in a batch: TOLERANCE. Where two tokens are nearer to each
other than TIE in the solo answer, either may be said, and what follows is not compared; such ties are counted. Prompts
by which some two versions cannot be told apart are left out.

usage: GRAFT_BIN=build/dev/graft tests/soak/contamination.py [--requests 10000] [--names 6] [--prompts 20] [--seed N]
Python's standard library only.
"""
import argparse
import asyncio
import collections
import json
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "server"))

from client import Connection, ask, metrics  # noqa: E402
from serving import GOLDEN, GRAFT, Server  # noqa: E402

GOLDENS = {"alder": "plain", "birch": "rank16", "cedar": "bf16", "dogwood": "patterns", "elm": "f16", "fir": "rank1"}
BEGINNINGS = [
    "You are the assistant of a small company that repairs clocks. Answer shortly, in one sentence, and do not guess. "
    "The customer says: ",
    "You are the assistant of a small company that repairs boats. Answer shortly, in one sentence, and do not guess. "
    "The customer says: ",
    "Below is a list of services and the ports on which they listen, one on each line, followed by a question about one of them. ",
]
ENDS = ["", "Which day?", "Which port?", "Who is it?", "Why?",
        "How much is it, and when will it be ready for me to come and fetch it?"]
N_TOKENS, CLIENTS, PLACES = 12, 32, 3
TOLERANCE, TIE = 1e-4, 2e-4
ARGS = ["--kv", "f32", "--ctx", "256", "--fallback", "error", "--adapter-wait-ms", "600000", "--deadline-s", "0", "--queue", "1000"]
Solo = collections.namedtuple("Solo", "tokens logprobs gaps")


def all_prompts(n, rng):
    """Long ones that begin alike; some are the beginnings of others."""
    cut = [b[:k] + end for b in BEGINNINGS for k in [40, len(b)] for end in ENDS]
    rng.shuffle(cut)
    return cut[:n]


def negated(source, target):
    """The same adapter with the signs of all B matrices turned: another version with the same configuration."""
    data = bytearray(source.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    for name, t in json.loads(data[8:8 + length]).items():
        if ".lora_B" in name or ".lora_embedding_B" in name:
            width = {"F32": 4, "F16": 2, "BF16": 2}[t["dtype"]]
            for at in range(8 + length + t["data_offsets"][0], 8 + length + t["data_offsets"][1], width):
                data[at + width - 1] ^= 0x80
    target.write_bytes(data)


def make_versions(folder, names):
    """folder/NAME-0 and folder/NAME-1"""
    for name in names:
        golden = GOLDEN / "adapters/llama" / GOLDENS[name]
        for version in range(2):
            shutil.copytree(golden, folder / f"{name}-{version}")
        negated(golden / "adapter_model.safetensors", folder / f"{name}-1/adapter_model.safetensors")


def request(model, prompt):
    return {"model": model, "prompt": prompt, "max_tokens": N_TOKENS, "temperature": 0, "ignore_eos": True, "logprobs": 2}


def solo_of(choice):
    p = choice["logprobs"]
    gaps = []
    for top in p["top_logprobs"]:
        best = sorted(top.values(), reverse=True)
        gaps.append(best[0] - best[1] if len(best) > 1 else 0.0)  # two tokens of one spelling
    return Solo(p["tokens"], p["token_logprobs"], gaps)


async def solo_answers(folder, names, prompts):
    """({generation: {prompt: Solo}}, {(name, version): generation}); the base's generation is None."""
    server = Server("--slots", "1", "--max-adapters", 2 * len(names), *ARGS, folder=folder)
    answers, generations = collections.defaultdict(dict), {}
    try:
        connection = Connection(server.port)
        for prompt in prompts:
            for name, version in [("llama", None), *((n, v) for n in names for v in range(2))]:
                model = name if version is None else f"{name}-{version}"
                reply = await connection.ask("POST", "/v1/completions", request(model, prompt))
                assert reply.status == 200, reply.body
                answer = reply.json
                # One slot, and another adapter had it last.
                assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0, "the solo answer is not a cold one"
                generations[name, version] = answer["adapter_generation"]
                answers[answer["adapter_generation"]][prompt] = solo_of(answer["choices"][0])
        connection.close()
    finally:
        server.close()
    return answers, generations


def difference(tokens, logprobs, solo):
    """(None, "tie" or (position, what differs); the largest difference of log-probabilities up to there)"""
    largest = 0.0
    if len(tokens) != len(solo.tokens):
        return (0, f"{len(tokens)} tokens"), largest
    for i, (token, logprob) in enumerate(zip(tokens, logprobs)):
        if token != solo.tokens[i] and solo.gaps[i] < TIE:
            return "tie", largest
        if token != solo.tokens[i]:
            return (i, f"{token!r}, not {solo.tokens[i]!r} with a gap of {solo.gaps[i]:.4f}"), largest
        largest = max(largest, abs(logprob - solo.logprobs[i]))
        if largest > TOLERANCE:
            return (i, f"{token!r} has {logprob:.5f}, not {solo.logprobs[i]:.5f}"), largest
    return None, largest


def telling(answers, prompts):
    """The prompts by which any two versions can be told apart."""
    kinds = list(answers)

    def tells(p):
        return all(isinstance(difference(answers[a][p].tokens, answers[a][p].logprobs, answers[b][p])[0], tuple)
                   for a in kinds for b in kinds if a != b)
    return [p for p in prompts if tells(p)]


class Mix:
    def __init__(self, folder, names, prompts, answers, generations, rng, n_requests):
        self.names, self.prompts, self.answers, self.generations, self.rng = names, prompts, answers, generations, rng
        self.left = n_requests
        self.versions = folder / "versions"
        self.server = Server("--slots", "8", "--max-adapters", PLACES, *ARGS, folder=folder)
        self.port = self.server.port
        # All generations that a name has had, and how many of them were confirmed when.
        self.history = {n: [generations[n, 0]] for n in names}
        self.confirmed = {n: 0 for n in names}
        self.seen = collections.Counter()
        self.wrong, self.largest = [], 0.0

    async def client(self):
        connection = Connection(self.port)
        while self.left > 0:
            self.left -= 1
            name, prompt = self.rng.choice([*self.names, "llama"]), self.rng.choice(self.prompts)
            confirmed = self.confirmed.get(name, 0)
            reply = await connection.ask("POST", "/v1/completions", request(name, prompt))
            if reply.status == 409 and b"changed_on_disk" in reply.body and confirmed < len(self.history[name]) - 1:
                self.seen["changed on disk"] += 1  # asked between the new file and the call that accepts it
                self.left += 1
                continue
            assert reply.status == 200, (name, reply.status, reply.body)
            self.judge(name, prompt, confirmed, reply.json)
        connection.close()

    def judge(self, name, prompt, confirmed, answer):
        generation, choice = answer["adapter_generation"], answer["choices"][0]
        allowed = self.history[name][confirmed:] if name in self.history else [None]
        details = answer["usage"]
        self.seen["prompt tokens"] += details["prompt_tokens"]
        self.seen["of them cached"] += details["prompt_tokens_details"]["cached_tokens"]
        self.seen["answers"] += 1
        if generation not in allowed:
            self.wrong.append(f"{name}: generation {generation}, confirmed was {allowed[0]}")
            return
        p = choice["logprobs"]
        found, largest = difference(p["tokens"], p["token_logprobs"], self.answers[generation][prompt])
        if found == "tie":
            self.seen["ties"] += 1
        elif found:
            self.wrong.append(f"{name} {str(generation)[:8]} {prompt!r}: token {found[0]}: {found[1]}")
        self.largest = max(self.largest, largest)

    async def post(self, path, body, also=()):
        reply = await ask(self.port, "POST", path, body)
        assert reply.status == 200 or reply.status in also, (path, body, reply.status, reply.body)

    async def replace(self, name):
        """The other version under the same name: half of the names change in place, the others get another path."""
        version = len(self.history[name]) % 2
        path = self.server.adapters / name
        self.history[name].append(self.generations[name, version])
        if self.names.index(name) % 2:
            path = self.server.adapters / f"{name}-{version}"
        else:
            new = path.parent.parent / "new.safetensors"
            shutil.copy(self.versions / f"{name}-{version}/adapter_model.safetensors", new)
            os.replace(new, path / "adapter_model.safetensors")
        await self.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path), "load_inplace": True})
        self.confirmed[name] = len(self.history[name]) - 1
        self.seen["in place" if path.name == name else "by path"] += 1

    async def changer(self):
        while self.left > 0:
            name = self.rng.choice(self.names)
            if self.rng.random() < 0.6:
                await self.replace(name)
            else:
                await self.post("/v1/unload_lora_adapter", {"lora_name": name}, also=[404])
                self.seen["unloads"] += 1
            await asyncio.sleep(self.rng.uniform(0, 0.1))

    async def run(self):
        tasks = [asyncio.create_task(t) for t in [*(self.client() for _ in range(CLIENTS)), self.changer()]]
        await asyncio.gather(*tasks)
        m = await metrics(self.port)
        self.seen["evictions"] = int(m["adapter_evictions_total"])
        self.seen["most adapters in a batch"] = int(m["most_adapters_in_batch"])


async def measure(args):
    rng = random.Random(args.seed)
    names, prompts = list(GOLDENS)[:args.names], all_prompts(args.prompts, rng)
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        make_versions(Path(a) / "adapters", names)
        answers, generations = await solo_answers(Path(a), names, prompts)
        told, prompts = len(prompts), telling(answers, prompts)
        assert len(answers) == 2 * len(names) + 1 and len(prompts) > told / 2, (len(answers), told, len(prompts))
        make_versions(Path(b) / "versions", names)
        for i, name in enumerate(names):
            shutil.copytree(Path(b) / f"versions/{name}-0", Path(b) / "adapters" / name)
            if i % 2:
                for version in range(2):
                    shutil.copytree(Path(b) / f"versions/{name}-{version}", Path(b) / f"adapters/{name}-{version}")
        mix = Mix(Path(b), names, prompts, answers, generations, rng, args.requests)
        try:
            await mix.run()
            assert mix.server.stop() == 0, mix.server.log()
            assert "Sanitizer" not in mix.server.log(), mix.server.log()
        finally:
            mix.server.close()
    return mix


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--requests", type=int, default=10000)
    parser.add_argument("--names", type=int, default=6)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    args = parser.parse_args()
    if not GRAFT:
        sys.exit("GRAFT_BIN must name the graft binary")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no server is left behind
    print(f"contamination: seed {args.seed}", flush=True)
    mix = asyncio.run(measure(args))
    print(f"contamination: {len(mix.wrong)} of {mix.seen.pop('answers')} wrong, {mix.seen.pop('ties', 0)} ties; "
          f"largest difference of a log-probability {mix.largest:.1g};",
          ", ".join(f"{k} {v}" for k, v in sorted(mix.seen.items())))
    for text in mix.wrong[:20]:
        print("  " + text)
    assert not mix.wrong
    for what in ["of them cached", "in place", "by path", "unloads", "evictions"]:
        assert mix.seen[what] > 0, f"{what} did not happen, so this proves little: {dict(mix.seen)}"


if __name__ == "__main__":
    main()
