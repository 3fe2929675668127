#!/usr/bin/env python3
"""Tests of what `graft serve` tells about itself, and of llama-server's calls.

GRAFT_BIN names the binary (required). The base is the tiny one of tests/oracle/golden. Python's standard library only.
"""
import sys
import unittest

from serving import ADAPTERS, BASE, GRAFT, Case, read_all, request_bytes, wait_until

# An answer that goes on for as long as a test needs.
LONG = {"model": "alder", "prompt": "abc", "max_tokens": 60000, "temperature": 0, "ignore_eos": True, "stream": True}
LONG_ARGS = ["--ctx", "65536", "--slots", "4"]


class Status(Case):
    args = LONG_ARGS

    def status(self, **more):
        return self.good("GET", "/v1/status", **more).json

    def test_shape(self):
        s = self.status()
        self.assertEqual(list(s), ["version", "uptime_s", "draining", "admin", "model", "health", "memory", "cache", "answers", "tokens",
                                   "slots", "batch", "http", "current"])
        self.assertEqual((s["draining"], s["admin"]), (False, True))
        self.assertEqual(s["model"], {"id": "llama", "path": str(BASE), "context": 65536, "slots": 4, "apply": "rows"})
        self.assertEqual(s["health"]["state"], "healthy")
        m = s["memory"]
        self.assertEqual(m["counted"], sum(m[k] for k in ["weights", "context", "own", "resident", "loading", "draining", "by_path"]))
        self.assertGreater(m["process"], 0)
        self.assertEqual([x["id"] for x in s["slots"]], [0, 1, 2, 3])
        self.assertGreaterEqual(s["http"]["requests_open"], 1)

    def test_while_answers_go_on(self):
        clients = []
        for model in ["alder", "birch", "llama", "alder", "cedar"]:
            clients.append(self.server.socket())
            clients[-1].sendall(request_bytes({**LONG, "model": model}))
        try:
            # Four slots and five answers; who comes last waits.
            wait_until(lambda: sum(x["state"] == "decode" for x in self.status()["slots"]) == 4, "four answers at once")
            wait_until(lambda: self.status()["answers"]["waiting"] == 1, "the fifth to wait")
            wait_until(lambda: self.status()["tokens"]["completion_per_s"] > 0, "a rate")
            s = self.status()
            self.assertEqual(s["answers"]["running"], 4)
            self.assertEqual(s["batch"]["rows"], 4)
            busy = sorted(str(x["adapter"]) for x in s["slots"])
            self.assertIn(s["batch"]["adapters"], [2, 3])
            self.assertEqual(s["batch"]["adapters"], len(set(busy) - {"None"}))
            self.assertTrue(set(busy) <= {"None", *ADAPTERS}, busy)
            for slot in s["slots"]:
                self.assertEqual(slot["hidden"], False)
                self.assertEqual(slot["prompt_tokens"], s["slots"][0]["prompt_tokens"])
                self.assertGreater(slot["completion_tokens"], 0)
            wait_until(lambda: self.status()["tokens"]["completion"] > s["tokens"]["completion"], "more tokens")
        finally:
            for c in clients:
                c.close()
        self.settled()
        wait_until(lambda: all(x["state"] == "idle" for x in self.status()["slots"]), "empty slots")
        wait_until(lambda: self.status()["batch"] == {"rows": 0, "adapters": 0}, "no batch")
        s = self.status()
        self.assertTrue(all(x["adapter"] is None and x["completion_tokens"] == 0 for x in s["slots"]), s["slots"])
        self.assertGreaterEqual(s["answers"]["cancelled"], 5)
        # With nothing to do the rate falls to 0 once the busy seconds are out of sight.
        wait_until(lambda: self.status()["tokens"]["completion_per_s"] == 0, "a rate of 0")

    def test_counts(self):
        before = self.status()
        self.complete(max_tokens=5, ignore_eos=True)
        self.complete(max_tokens=5, ignore_eos=True)
        after = self.status()
        self.assertEqual(after["answers"]["total"] - before["answers"]["total"], 2)
        self.assertEqual(after["tokens"]["completion"] - before["tokens"]["completion"], 10)
        self.assertGreater(after["tokens"]["cached"], before["tokens"]["cached"])
        self.assertGreater(after["cache"]["hits"] + after["cache"]["misses"], 0)
        self.assertEqual(after["cache"]["hit_rate"], after["cache"]["hits"] / (after["cache"]["hits"] + after["cache"]["misses"]))
        self.assertGreater(after["memory"]["n_resident"], 0)

    def test_current(self):
        self.assertIsNone(self.status()["current"])
        self.good("POST", "/v1/projects/current", {"project": "birch"})
        self.assertEqual(self.status()["current"], "birch")


if __name__ == "__main__":
    if not GRAFT:
        sys.exit("GRAFT_BIN names the binary to test")
    unittest.main(verbosity=2)
