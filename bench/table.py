"""Prints what `graft bench --json` wrote as a table for bench/RESULTS.md. usage: table.py FILE.json"""

import json
import sys

WORDS = {
    "base": "base, no adapter",
    "same": "all with one adapter, by rows",
    "rows": "mixed adapters, by rows",
    "grouped": "mixed adapters, one decode per adapter",
    "native": "all with one adapter, libllama's own path",
}

with open(sys.argv[1]) as f:
    result = json.load(f)
sizes = sorted({r["sequences"] for r in result["results"]})
rows = {(r["mode"], r["sequences"]): r for r in result["results"]}
print("| tokens/s, median (min to max) | " + " | ".join(f"{n} sequence{'s' * (n > 1)}" for n in sizes) + " |")
print("| --- |" + " --- |" * len(sizes))
for mode, words in WORDS.items():
    cells = [f"{r['tokens_per_second']:.0f} ({r['min']:.0f} to {r['max']:.0f})" if (r := rows.get((mode, n))) else "" for n in sizes]
    print(f"| {words} | " + " | ".join(cells) + " |")
for name, by_size in result["ratios"].items():
    cells = [f"**{by_size[str(n)]:.2f}**" if str(n) in by_size else "" for n in sizes]
    print(f"| {name} | " + " | ".join(cells) + " |")
