"""Mutated tensor files through graft's readers and through the safetensors package and gguf-py: both must accept or both refuse.

usage: compare.py LIBRARY [--files N] [--seed N] [--keep FOLDER]

Of five files four are safetensors, one is GGUF (gguf-py is slow). Where the two may differ stands in reasons.py; anything else fails.
"""

import argparse
import collections
import ctypes
import logging
import os
import random
import signal
import sys
import time
import warnings

import gguf
import mutate
import numpy
import reasons
import safetensors

warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)


class TooLong(BaseException):
    pass


def alarm(*_):
    raise TooLong


def load(path):
    lib = ctypes.CDLL(path)
    lib.differential_code.restype = ctypes.c_char_p
    for name in ("differential_safetensors", "differential_gguf"):
        getattr(lib, name).argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    return lib


class Graft:
    def __init__(self, path):
        self.lib = load(path)

    def ask(self, kind, b):
        """None, or the code's name."""
        code = getattr(self.lib, "differential_" + kind)(b, len(b))
        return self.lib.differential_code(code).decode() if code else None


def ask_safetensors(b):
    """(what the package made of it, why it refused)."""
    try:
        return safetensors.deserialize(b), None
    except safetensors.SafetensorError as e:
        return None, str(e)


def ask_gguf(b):
    """The reader wants a file to map; the bytes in memory are the same to it."""
    numpy.memmap = lambda data, mode: numpy.frombuffer(data, dtype=numpy.uint8)
    signal.setitimer(signal.ITIMER_REAL, 2)
    try:
        return gguf.GGUFReader(b), None
    except TooLong:
        return None, "gguf-py does not come to an end"
    except Exception as e:  # whatever goes wrong inside it
        return None, f"{type(e).__name__}: {e}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def judge_safetensors(graft, b):
    code, (accepted, why) = graft.ask("safetensors", b), ask_safetensors(b)
    if (code is None) == (accepted is not None):
        return "both accept" if code is None else "both refuse", True
    table = reasons.SAFETENSORS_STRICTER if code else reasons.SAFETENSORS_LOOSER
    return classify(table, code or why, reasons.Facts(b))


def judge_gguf(graft, b):
    code, (reader, why) = graft.ask("gguf", b), ask_gguf(b)
    if (code is None) == (reader is not None):
        return "both accept" if code is None else "both refuse", True
    if code is None:
        return classify(reasons.GGUF_LOOSER, why, b)
    return classify(reasons.GGUF_STRICTER, code, reader, b)


def classify(table, key, *facts):
    for name, what, rule in table:
        if name in key and rule(*facts):
            return f"{name}: {what}", True
    return f"UNCLASSIFIED: {key}", False


def main():
    p = argparse.ArgumentParser()
    p.add_argument("library")
    p.add_argument("--files", type=int, default=1_000_000)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--keep", default="", help="folder for files that differ for no known reason")
    args = p.parse_args()
    signal.signal(signal.SIGALRM, alarm)
    graft, seeds, begun = Graft(args.library), mutate.safetensors_seeds(), time.monotonic()
    counts, bad = collections.Counter(), 0
    for i in range(args.files):
        rng = random.Random(args.seed << 32 | i)
        kind = "gguf" if i % 5 == 4 else "safetensors"
        b = mutate.gguf(rng) if kind == "gguf" else mutate.safetensors(rng, seeds)
        found, known = judge_gguf(graft, b) if kind == "gguf" else judge_safetensors(graft, b)
        counts[kind, found] += 1
        if not known:
            bad += 1
            if args.keep and bad <= 100:
                os.makedirs(args.keep, exist_ok=True)
                with open(os.path.join(args.keep, f"{kind}-{i}"), "wb") as f:
                    f.write(b)
        if i % 100_000 == 99_999:
            print(f"{i + 1} files, {bad} unclassified", file=sys.stderr, flush=True)
    for (kind, found), n in sorted(counts.items()):
        print(f"{kind:12} {n:8}  {found}")
    print(f"{args.files} files in {time.monotonic() - begun:.0f} s; safetensors {safetensors.__version__}, gguf-py with numpy {numpy.__version__}; unclassified: {bad}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
