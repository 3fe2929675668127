#!/usr/bin/env python3
"""Runs a graft binary over the golden vectors and compares its logits with PEFT's.

usage: compare.py --graft PATH [--kv f32|f16|both] [--storage f32|f16|q8_0] [--only TEXT] [--combinations]
                  [--short] [--grouped] [--json FILE] [-- ARG ...]

An adapter is right if its relative error over all logits is at most 1.5 times that of the base model alone,
measured in the same run with the same key-value type, or below a small floor (see FLOOR). What follows `--` is
handed to `graft score` as it stands, for instance `-- --apply grouped`. Exit status 1 if anything is wrong.
"""
import argparse
import array
import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path


FACTOR = 1.5
# Below these, an error is rounding whatever the base's own error is.
FLOOR = {
    ("exact", "f32"): 2e-6,
    ("gelu", "f32"): 5e-4,
    ("exact", "f16"): 1.5e-3,
    ("gelu", "f16"): 1.5e-3,
    ("quantised", "f32"): 0.0,
    ("quantised", "f16"): 0.0,
}
# What keeping A and B in fewer bits may add. Measured for f16: up to 4.1e-4. The mildest fault that these
# vectors are there to find, a wrong scale in one module of several, changes the logits by 0.1.
STORAGE = {"f32": 0.0, "f16": 8e-4, "q8_0": 2e-2}
# A base beyond these is not the base it should be, so its adapters prove nothing.
BASE_LIMIT = {
    ("exact", "f32"): 5e-6,
    ("gelu", "f32"): 1e-3,
    ("exact", "f16"): 5e-3,
    ("gelu", "f16"): 5e-3,
    # ggml rounds the other factor of a product with a quantised matrix to 8 bits.
    ("quantised", "f32"): 3e-2,
    ("quantised", "f16"): 3e-2,
}


class Refused(Exception):
    pass


class Broken(Exception):
    pass


def score(args, gguf, adapters, tokens, n_vocab, kv, folder):
    out = folder / "logits.f32"
    out.unlink(missing_ok=True)
    command = [args.graft, "score", "-m", str(gguf)]
    for path, scale in adapters:
        command += ["-a", str(path) if scale == 1 else f"{path}@{scale:g}"]
    # One thread: with more, these products of microseconds are spent waiting for each other on a busy machine.
    command += ["--tokens", ",".join(map(str, tokens)), "--logits", str(out), "--kv", kv, "--threads", "1", *args.more]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=args.timeout)
    except subprocess.TimeoutExpired:
        raise Broken(f"no end after {args.timeout} s")
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if done.returncode < 0:
        raise Broken(f"killed by signal {-done.returncode}: {last}")
    if done.returncode in (126, 127):
        raise Broken(last)  # it did not even start
    if done.returncode > 0:
        raise Refused(last)
    if not out.exists():
        raise Broken("exit status 0, but no logits")
    got = floats(out)
    if len(got) != len(tokens) * n_vocab:
        raise Broken(f"{len(got)} logits, not {len(tokens)} x {n_vocab}")
    return got


def code_of(message):
    """The name of the error in "graft: error: wrong_shape: ..."."""
    found = re.search(r"error: ([a-z_]+): ", message)
    return found.group(1) if found else None


def floats(path):
    """A file of little-endian float32."""
    values = array.array("f", path.read_bytes())
    if sys.byteorder == "big":
        values.byteswap()
    return values


def relative(got, want):
    if len(got) != len(want) or not all(map(math.isfinite, got)):
        return float("inf")
    return math.sqrt(math.fsum((g - w) ** 2 for g, w in zip(got, want)) / math.fsum(w * w for w in want))


def check(args, golden, base, case, kv, folder, base_error):
    """One row of the table: a dict with a verdict. Verdicts that begin with a capital are failures."""
    row = dict(base=base["base"], case=case["case"] if case else "(base)", kv=kv, base_error=base_error,
               error=None, ratio=None, kinds=case.get("kinds", []) if case else [])
    entry = case or base
    adapters = []
    if case and "adapters" in case:
        adapters = [(golden / a["adapter"], a["scale"]) for a in case["adapters"]]
    elif case:
        adapters = [(golden / case["adapter"], 1)]
    may_refuse = [k for k in case.get("kinds", []) if k in args.may_refuse] if case else []
    if case and base_error is None:
        row["verdict"] = "NO BASE"
        return row
    try:
        got = score(args, golden / base["gguf"], adapters, entry.get("tokens", base["tokens"]), base["n_vocab"], kv, folder)
    except Refused as e:
        row["note"] = str(e)
        row["code"] = code_of(str(e))
        wanted = [args.refused_for_ever[k] for k in may_refuse if k in args.refused_for_ever]
        if wanted and not args.rows_only.intersection(may_refuse) and row["code"] not in wanted:
            row["verdict"] = "WRONG CODE"   # whatever else is the matter with it
        else:
            row["verdict"] = f"refused ({', '.join(may_refuse)})" if may_refuse else "REFUSED"
        return row
    except Broken as e:
        row["note"] = str(e)
        row["verdict"] = "BROKEN"
        return row
    if "logits" not in entry:
        row["verdict"] = "ACCEPTED"
        row["note"] = "this adapter cannot be right on this base"
        return row
    error = relative(got, floats(golden / entry["logits"]))
    row["error"] = error
    key = (entry["tolerance"], kv)
    if case is None:
        row["base_error"] = error
        row["ratio"] = 1.0
        row["verdict"] = "right" if error <= BASE_LIMIT[key] else "WRONG"
        return row
    row["ratio"] = error / base_error if base_error else float("inf")
    limit = max(FACTOR * base_error, FLOOR[key]) + STORAGE[args.storage]
    row["verdict"] = "right" if error <= limit else "WRONG"
    return row


def first_of_each_kind(cases):
    seen, out = set(), []
    for case in cases:
        key = (case["base"], *case.get("kinds", []), case.get("format"))
        if key not in seen:
            seen.add(key)
            out.append(case)
    return out


def main(argv):
    more = []
    if "--" in argv:
        more = argv[argv.index("--") + 1:]
        argv = argv[:argv.index("--")]
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--graft", required=True, help="the binary to test")
    p.add_argument("--golden", type=Path, default=Path(__file__).resolve().parent / "golden")
    p.add_argument("--kv", choices=["f32", "f16", "both"], default="f32")
    p.add_argument("--storage", choices=list(STORAGE), default="f32",
                   help="how the binary keeps A and B; it only widens the limit, say it to graft after --")
    p.add_argument("--only", default="", help="only cases whose base/case contains this text")
    p.add_argument("--combinations", action="store_true", help="also factors and several adapters at once: -a DIR@SCALE")
    p.add_argument("--no-refusals", action="store_true", help="a refusal is a failure, whatever the manifest says")
    p.add_argument("--short", action="store_true", help="of each base the first case of each kind only")
    p.add_argument("--grouped", action="store_true", help="through libllama's adapters, which cannot do everything")
    p.add_argument("--timeout", type=float, default=60)
    p.add_argument("--json", type=Path, help="write the table to this file")
    args = p.parse_args(argv)
    args.more = more + (["--apply", "grouped"] if args.grouped else [])
    golden = args.golden
    manifest = json.loads((golden / "manifest.json").read_text())
    args.refused_for_ever = manifest["refused_for_ever"]
    args.rows_only = set(manifest["rows_only"]) if args.grouped else set()
    args.may_refuse = (set() if args.no_refusals else set(args.refused_for_ever)).union(args.rows_only)
    todo = manifest["cases"] + (manifest["combinations"] if args.combinations else [])
    if args.short:
        todo = first_of_each_kind(todo)
    todo = [c for c in todo if args.only in f"{c['base']}/{c['case']}"]

    rows = []
    print(f"{'case':36s} {'kv':4s} {'base error':>10s} {'error':>10s} {'ratio':>6s}  verdict")

    def add(row):
        rows.append(row)
        num = lambda v, f: "-" if v is None else format(v, f)
        print(f"{row['base'] + '/' + row['case']:36s} {row['kv']:4s} {num(row['base_error'], '.2e'):>10s} "
              f"{num(row['error'], '.2e'):>10s} {num(row['ratio'], '.2f'):>6s}  {row['verdict']}"
              + (f": {row['note']}" if row.get("note") else ""), flush=True)

    with tempfile.TemporaryDirectory() as tmp:
        for base in manifest["bases"]:
            cases = [c for c in todo if c["base"] == base["base"]]
            if not cases:
                continue
            for kv in ("f32", "f16") if args.kv == "both" else (args.kv,):
                row = check(args, golden, base, None, kv, Path(tmp), None)
                add(row)
                base_error = row["error"] if row["verdict"] == "right" else None
                for case in cases:
                    add(check(args, golden, base, case, kv, Path(tmp), base_error))

    bad = [r for r in rows if r["verdict"][0].isupper()]
    refused = [r for r in rows if r["verdict"].startswith("refused")]
    print(f"{len(rows) - len(bad) - len(refused)} right, {len(refused)} refused as they may be, {len(bad)} bad")
    if args.json:
        args.json.write_text(json.dumps(dict(rows=rows, bad=len(bad)), indent=1) + "\n")
    if not rows:
        print("nothing matches", file=sys.stderr)
    return 1 if bad or not rows else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
