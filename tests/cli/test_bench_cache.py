#!/usr/bin/env python3
"""Tests of `graft bench-cache` from outside.

GRAFT_BIN names the binary (required). Python's standard library only.
"""
import json
import os
import subprocess
import sys
import tempfile
import unittest
from collections import OrderedDict
from pathlib import Path

GRAFT = os.environ.get("GRAFT_BIN")
POLICIES = ["lru", "sieve", "s3fifo", "wtinylfu", "gdsf", "belady"]


def graft(*args, text=None):
    return subprocess.run([GRAFT, "bench-cache", *map(str, args)], input=text, capture_output=True, timeout=300,
                          **({} if isinstance(text, bytes) else {"encoding": "utf-8"}))


def lru(keys, room):
    """(hits, evictions)"""
    held, hits, evictions = OrderedDict(), 0, 0
    for key in keys:
        if key in held:
            hits += 1
            held.move_to_end(key)
            continue
        if len(held) == room:
            held.popitem(last=False)
            evictions += 1
        held[key] = True
    return hits, evictions


class BenchCache(unittest.TestCase):
    def object(self, *args, text=None):
        done = graft(*args, "--json", text=text)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return json.loads(done.stdout)["workloads"]

    def bad(self, words, *args, text=None, status=1):
        done = graft(*args, text=text)
        error = done.stderr if isinstance(done.stderr, str) else done.stderr.decode()
        self.assertEqual(done.returncode, status, error)
        self.assertIn(words, error)
        self.assertEqual(error.count("\n"), 1)

    def test_all_workloads(self):
        found = self.object("--requests", 20000, "--objects", 50, "--room", 5)
        self.assertEqual([w["workload"] for w in found], ["zipf", "scan", "loop", "shift"])
        for w in found:
            self.assertEqual([r["policy"] for r in w["results"]], POLICIES)
            self.assertEqual((w["objects"], w["room"], w["capacity_bytes"]), (50, 5, None))
            best = w["results"][-1]["hits"]
            for r in w["results"]:
                self.assertEqual(r["hits"] + r["misses"], 20000)
                self.assertLessEqual(r["hits"], best)  # by number of places Belady is a bound
                self.assertLessEqual(r["misses"] - r["evictions"], 5)
        loop = {r["policy"]: r["hits"] for r in found[2]["results"]}
        self.assertEqual(loop["lru"], 0)
        self.assertGreater(loop["belady"], 0)
        self.assertEqual(found, self.object("--requests", 20000, "--objects", 50, "--room", 5))
        self.assertNotEqual(found, self.object("--requests", 20000, "--objects", 50, "--room", 5, "--seed", 2))

    def test_a_trace(self):
        keys = [f"p{i * i % 7}/default" for i in range(500)] + ["new"] * 3
        text = "# name bytes ms\n\n" + "".join(f"{k} 1000 {1 + len(k)}\n" for k in keys)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace"
            path.write_text(text)
            for room in 1, 2, 3, 4, 5:
                w = self.object("--trace", path, "--room", room, "--policy", "lru")[0]
                self.assertEqual([r["policy"] for r in w["results"]], ["lru", "belady"])
                self.assertEqual((w["results"][0]["hits"], w["results"][0]["evictions"]), lru(keys, room))
                self.assertEqual((w["requests"], w["objects"], w["bytes"]), (503, len(set(keys)), 1000 * len(set(keys))))
        self.assertEqual(self.object("--trace", "-", "--room", 3, text=text), self.object("--trace", "-", "--room", 3, text=text))

    def test_capacity(self):
        text = f"small {1 << 20} 1\nlarge {8 << 20} 9\n" * 5
        w = self.object("--trace", "-", "--capacity-mb", 4, text=text)[0]
        for r in w["results"]:
            self.assertEqual((r["hits"], r["too_large"]), (4, 5), r)
            self.assertAlmostEqual(r["load_time_ratio"], 46 / 50, 6)
        self.assertEqual(w["capacity_bytes"], 4 << 20)

    def test_text(self):
        done = graft("--workload", "loop", "--requests", 1000, "--equal-sizes")
        self.assertEqual(done.returncode, 0)
        self.assertIn("1000 requests for 100 adapters of 100.00 MiB together; 20.00 MiB", done.stdout)
        for policy in POLICIES:
            self.assertRegex(done.stdout, rf"loop +{policy} +[0-9.]+ %")

    def test_hostile_traces(self):
        for text, words in [("", "holds no requests"), ("# only\n", "holds no requests"), ("a\n", "line 1"), ("a 1\n", "line 1"),
                            ("a 1 1 1\n", "line 1"), ("a 0 1\n", "bytes"), ("a -1 1\n", "bytes"), ("a 1.5 1\n", "bytes"),
                            ("a nan 1\n", "bytes"), ("a 1e300 1\n", "bytes"), ("a 1 -1\n", "milliseconds"),
                            ("a 1 inf\n", "milliseconds"), ("a 1 1e99\n", "milliseconds"), ("a 1 1\n\na 2 1\n", "line 3"),
                            ("a 1 1\na 1 2\n", "line 2"), ("x" * 600 + " 1 1\n", "longer"), ("x" * 300 + " 1 1\n", "256"),
                            (b"\xff 1 1\n", "UTF-8"), (b"a\0 1 1\n", "line 1"), (b"\0" * 100000, "line 1")]:
            self.bad(words, "--trace", "-", text=text)
        self.bad("No such file", "--trace", "/no/such/file")
        self.bad("directory", "--trace", "/")
        self.bad("--skew", "--skew", "11", status=2)
        self.bad("--policy", "--policy", "fifo", status=2)
        self.bad("--objects", "--objects", "0", status=2)


if __name__ == "__main__":
    if not GRAFT:
        sys.exit("GRAFT_BIN must name the graft binary")
    unittest.main()
