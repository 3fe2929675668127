#!/usr/bin/env python3
"""Tests of `graft bench-loader` and of what `graft demo` tells about the loader, from outside.

GRAFT_BIN names the binary (required). Base and adapters come from tests/oracle/golden. No figure's size is asserted beyond
what must be so on any machine. Python's standard library only.
"""
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

import command

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/oracle/golden"
TINY = ["-m", GOLDEN / "bases/llama.gguf", "-t", "1"]
ADAPTERS = GOLDEN / "adapters/llama"
PLAIN = ADAPTERS / "plain"
GRAFT = os.environ.get("GRAFT_BIN")
TIMEOUT = 300
POLICIES = ["lru", "sieve", "s3fifo", "wtinylfu", "gdsf"]
NAMES = 200  # of --quick
SPREADS = ["hit_us_p50", "hit_us_p99", "hit_us_p50_1thread", "hits_per_second", "switch_ms", "load_ms", "load_probe_ms", "load_libllama_ms",
           "load_ratio_libllama", "evict_ms", f"registry_open_ms_{NAMES}", "start_ms_1"]
POSITIVE = ["evict_ms_max", f"scan_ms_{NAMES}", f"overhead_mb_{NAMES}", f"overhead_mb_{NAMES}_unused", f"overhead_mb_{NAMES}_burst", "bytes", "file_bytes", "rank", "modules",
            "loads", "names", "rounds", "requests", "hit_threads", "cpus"]
# These are differences, or may be less than the clock can tell.
FINITE = [f"start_ms_{NAMES}", "evict_ms_mean"]
TEXTS = ["dtype", "cpu", "model", "graft", "libllama"]


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.temp = self.folder / "tmp"
        self.temp.mkdir()
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("GRAFT_")}
        self.env.update(GRAFT_CONFIG="/dev/null", GRAFT_REGISTRY="/nonexistent/registry.db", TMPDIR=str(self.temp))

    def graft(self, *args, **env):
        return subprocess.run([GRAFT, *map(str, args)], capture_output=True, encoding="utf-8", errors="replace", timeout=TIMEOUT,
                              stdin=subprocess.DEVNULL, env={**self.env, **env})

    def good(self, *args, **env):
        done = self.graft(*args, **env)
        self.assertEqual(done.returncode, 0, (args, done.stderr))
        self.assertEqual(list(self.temp.iterdir()), [], "temporary files are left")
        return done

    def object(self, *args, **env):
        done = self.good(*args, "--json", **env)
        lines = done.stdout.splitlines()
        self.assertEqual(len(lines), 1, lines)
        return json.loads(lines[0])

    def bad(self, status, code, *args, **env):
        done = self.graft(*args, **env)
        self.assertEqual(done.returncode, status, (args, done.stdout, done.stderr))
        match = re.search(r"graft: error: ([a-z0-9_]+): (.+)\n\Z", done.stderr)
        self.assertTrue(match, done.stderr)
        self.assertEqual(match[1], code, done.stderr)
        self.assertEqual(list(self.temp.iterdir()), [])
        return match[2]

    def copy(self, source, name):
        return command.copy_adapter(source, self.folder / name)

    def break_numbers(self, adapter):
        """The last four bytes become a NaN of any type."""
        weights = adapter / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4] + b"\xff" * 4)
        return adapter


class Bench(Case):
    def test_every_key(self):
        found = self.object("bench-loader", *TINY, "-a", PLAIN, "--quick", "--hit-threads", 4)
        for key in SPREADS + POSITIVE:
            self.assertGreater(found[key], 0, key)
        for key in SPREADS:
            self.assertLessEqual(found[f"{key}_min"], found[key], key)
            self.assertLessEqual(found[key], found[f"{key}_max"], key)
        for key in FINITE:
            self.assertIsInstance(found[key], float, key)
        for key in TEXTS:
            self.assertTrue(found[key], key)
        self.assertLessEqual(found["hit_us_p50"], found["hit_us_p99"])
        self.assertLess(found[f"overhead_mb_{NAMES}_unused"], found[f"overhead_mb_{NAMES}"])
        # A name with its path takes 200 bytes and cannot take 100 KB.
        self.assertTrue(0.0002 * NAMES < found[f"overhead_mb_{NAMES}"] < 0.1 * NAMES, found)
        self.assertEqual(found["file_bytes"], (PLAIN / "adapter_model.safetensors").stat().st_size)
        self.assertEqual((found["names"], found["hit_threads"]), (NAMES, 4))
        self.assertEqual([key for key in found if key.startswith("hit_rate_")], [f"hit_rate_zipf_{p}" for p in POLICIES])
        rates = [found[f"hit_rate_zipf_{p}"] for p in POLICIES]
        # 20 of 100 names: the 20 most wanted have 69 % of the requests; with the cold start none can have more hits.
        for rate in rates:
            self.assertTrue(0.2 < rate < 0.75, rates)
        self.assertGreater(len(set(rates)), 1, "all policies did the same")
        # Each name once; each round plain and with the probe; the misses of the policies.
        misses = sum(round((1 - rate) * found["requests"]) for rate in rates)
        self.assertGreaterEqual(found["loads"], NAMES + 2 * found["rounds"] + misses)

    def test_requests_are_the_same_each_time(self):
        args = ["bench-loader", *TINY, "-a", PLAIN, "--quick"]
        first, second = self.object(*args), self.object(*args)
        for policy in POLICIES[:2]:  # those that do not look at how long a load took
            self.assertEqual(first[f"hit_rate_zipf_{policy}"], second[f"hit_rate_zipf_{policy}"])

    def test_table(self):
        text = self.good("bench-loader", *TINY, "-a", PLAIN, "--quick").stdout
        rows = [line for line in text.splitlines() if " us" in line or " ms" in line or " MB" in line]
        self.assertGreater(len(rows), 12, text)
        verdict = {line.split("  ")[0]: line.split()[-1] for line in rows if "<=" in line or ">=" in line}
        self.assertIn(verdict["hit, median"], ("met", "MISSED"))
        # Neither is this adapter of 20 MB, nor are there 10,000 names: such targets are not judged.
        for name in ("load", "start with all names", "memory, all names used"):
            self.assertRegex(text, rf"(?m)^{name} .*not measured$")
        self.assertIn(f"{NAMES} names", text)

    def test_refused(self):
        self.bad(2, "bad_request", "bench-loader", *TINY)
        self.bad(2, "bad_request", "bench-loader", "-a", PLAIN)
        self.bad(2, "bad_request", "bench-loader", *TINY, "-a", PLAIN, "-a", PLAIN)
        self.bad(2, "bad_request", "bench-loader", *TINY, "-a", PLAIN, "--hit-threads", 65)
        self.bad(1, "model_missing", "bench-loader", "-m", self.folder / "none.gguf", "-a", PLAIN, "--quick")
        self.bad(1, "adapter_file_missing", "bench-loader", *TINY, "-a", self.folder / "none", "--quick")
        self.bad(1, "unsupported_adapter", "bench-loader", *TINY, "-a", ADAPTERS / "embed", "--quick")
        self.bad(1, "non_finite", "bench-loader", *TINY, "-a", self.break_numbers(self.copy(PLAIN, "nan")), "--quick")
        done = self.graft("bench-loader", *TINY, "-a", self.folder / "none", "--quick", "--json")
        self.assertEqual(json.loads(done.stdout)["error"]["code"], "adapter_file_missing")
        message = self.bad(1, "io_error", "bench-loader", *TINY, "-a", PLAIN, "--quick", TMPDIR=str(self.folder / "none"))
        self.assertIn(str(self.folder / "none"), message)

    def test_ctrl_c(self):
        # In a background job SIGINT would be ignored, and graft leaves that so.
        process = subprocess.Popen([GRAFT, "bench-loader", *map(str, TINY), "-a", str(PLAIN), "--requests", "1000000"], env=self.env,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        self.addCleanup(process.kill)
        end = time.monotonic() + TIMEOUT
        while not list(self.temp.glob("graft-bench-*/many/*")) and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=TIMEOUT)
        self.assertEqual((process.returncode, out), (130, b""))
        self.assertEqual(list(self.temp.iterdir()), [])


class Demo(Case):
    def setUp(self):
        super().setUp()
        self.projects = self.folder / "projects"
        self.projects.mkdir()
        for name, source in (("alder", "plain"), ("birch", "rslora"), ("cedar", "rank16")):
            self.copy(ADAPTERS / source, f"projects/{name}")
        questions = self.folder / "q.jsonl"
        questions.write_text(json.dumps({"question": "hello?"}) + "\n")
        self.args = ["demo", *TINY, "--projects", self.projects, "--questions", questions, "-n", 3]

    def test_json(self):
        found = self.object(*self.args)
        self.assertEqual([(s["project"], s["adapter"], s["hit"], s["evicted"]) for s in found["switches"]],
                         [("alder", "default", True, None), ("birch", "default", True, None), ("cedar", "default", True, None),
                          ("alder", "again", False, "alder"), ("alder", "default", False, "birch"), ("cedar", "default", True, None)])
        rows = {(a["project"], a["adapter"]): a for a in found["adapters"]}
        self.assertEqual(list(rows), [("alder", "again"), ("alder", "broken"), ("alder", "default"), ("birch", "default"), ("cedar", "default")])
        loads = {name: (a["history"]["loads"], a["history"]["evictions"]) for name, a in rows.items()}
        self.assertEqual(loads, {("alder", "again"): (1, 0), ("alder", "broken"): (0, 0), ("alder", "default"): (2, 1),
                                 ("birch", "default"): (1, 1), ("cedar", "default"): (1, 0)})
        resident = [name for name, a in rows.items() if a["loaded"]]
        self.assertEqual(resident, [("alder", "again"), ("alder", "default"), ("cedar", "default")])
        self.assertEqual(rows["birch", "default"]["state"], "ready")
        self.assertEqual(found["refused"]["code"], "non_finite")
        self.assertEqual(rows["alder", "broken"]["error"]["code"], "non_finite")
        loader, memory = found["loader"], found["memory"]
        self.assertEqual((loader["loads"], loader["evictions"], loader["fallbacks"]), (5, 2, 1))
        self.assertEqual(memory["resident"], sum(rows[name]["loaded"]["bytes"] for name in resident))
        self.assertEqual((memory["n_resident"], memory["max_adapters"], memory["limit"]), (3, 3, 4 << 30))
        parts = ["weights", "context", "own", "resident", "loading", "draining", "by_path"]
        self.assertEqual(memory["counted"], sum(memory[p] for p in parts))
        self.assertEqual(found["health"]["state"], "degraded")
        self.assertEqual([r["name"] for r in found["health"]["reasons"]], ["loads_fail"])

    def test_room_for_two(self):
        """More projects than room: each is asked all the same, and answers as it does with room."""
        wide, narrow = self.object(*self.args), self.object(*self.args, "--max-adapters", 2)
        texts = [[a["text"] for q in found["questions"] for a in q["answers"]] for found in (wide, narrow)]
        self.assertEqual(texts[0], texts[1])
        self.assertEqual((narrow["memory"]["n_resident"], narrow["memory"]["max_adapters"]), (2, 2))
        self.assertGreater(narrow["loader"]["evictions"], wide["loader"]["evictions"])

    def test_text(self):
        for columns, pattern in ((100, r"(?m)^alder/again +resident +[\d.]+ KiB +0 +1 +0 +[\d.]+ +[\d.]+ s ago$"),
                                 (60, r"(?m)^alder/again: resident, [\d.]+ KiB\n    requests 0, loads 1, evictions 0, ms a load [\d.]+, ")):
            done = self.good(*self.args, COLUMNS=str(columns))
            self.assertEqual(done.stderr, "")
            self.assertRegex(done.stdout, pattern)
            self.assertRegex(done.stdout, r"(?m)^alder/again +on disk +[\d.]+ ms +alder$")
            self.assertRegex(done.stdout, r"(?m)^and the result says why: non_finite: ")
            self.assertRegex(done.stdout, r"(?m)^loader: \d+ hits, \d+ misses \(\d+ % hits\), 5 loads, 2 evictions, 1 fallback$")
            self.assertRegex(done.stdout, r"(?m)^health: degraded$")
            long = [line for line in done.stdout.splitlines() if len(line) > 100 and "non_finite" not in line]
            self.assertEqual(long, [])

    def test_a_project_that_cannot_be_loaded(self):
        self.break_numbers(self.projects / "birch")
        done = self.graft(*self.args)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"(?m)^graft: error: non_finite: birch, question 1: ")
        self.assertEqual(list(self.temp.iterdir()), [])

    def test_a_folder_that_is_no_adapter(self):
        weights = self.projects / "cedar/adapter_model.safetensors"
        weights.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
        self.bad(1, "header_length", *self.args)


if __name__ == "__main__":
    if not GRAFT:
        sys.exit("GRAFT_BIN is not set")
    unittest.main()
