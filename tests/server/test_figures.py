#!/usr/bin/env python3
"""Tests of what `graft serve` tells about itself, and of llama-server's calls.

GRAFT_BIN names the binary (required). The base is the tiny one of tests/oracle/golden. Python's standard library only.
"""
import configparser
import json
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from serving import ADAPTERS, BASE, GOLDEN, GRAFT, PROMPT, ROOT, Case, Server, request_bytes, wait_until

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


# ---- Prometheus' text format, read strictly ----

SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)')
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(,|$)')


def parse_labels(text):
    labels, at = {}, 0
    while at < len(text):
        m = LABEL.match(text, at)
        assert m, text
        assert m[1] not in labels, text
        labels[m[1]] = re.sub(r"\\(.)", lambda c: "\n" if c[1] == "n" else c[1], m[2])
        at = m.end()
    assert not text.endswith(","), text
    return labels


class Page:
    """Families in order: name -> (type, help, [(sample's name, labels, value)]). Whatever the format forbids is an assertion."""

    def __init__(self, text):
        self.families, name = {}, None
        assert text.endswith("\n") and "\n\n" not in text
        lines = iter(text[:-1].split("\n"))
        for line in lines:
            if line.startswith("# HELP "):
                _, _, name, words = line.split(" ", 3)
                kind = next(lines).split(" ")
                assert kind[:3] == ["#", "TYPE", name] and kind[3] in ["counter", "gauge", "histogram"], kind
                assert name not in self.families, name
                self.families[name] = (kind[3], words, [])
                continue
            m = SAMPLE.fullmatch(line)
            assert m and name, line
            allowed = [name + s for s in ["_bucket", "_sum", "_count"]] if self.families[name][0] == "histogram" else [name]
            assert m[1] in allowed, line
            self.families[name][2].append((m[1], parse_labels(m[2] or ""), float(m[3])))
        for name, (kind, _, samples) in self.families.items():
            keys = [(n, tuple(sorted(l.items()))) for n, l, _ in samples]
            assert len(keys) == len(set(keys)), name
            assert kind != "counter" or name.endswith("_total"), name
            if kind == "histogram":
                self.check_histogram(name, samples)

    @staticmethod
    def check_histogram(name, samples):
        series = {}
        for n, labels, value in samples:
            key = tuple(sorted((k, v) for k, v in labels.items() if k != "le"))
            series.setdefault(key, {}).setdefault(n[len(name) + 1:], []).append((labels.get("le"), value))
        assert series, name
        for key, parts in series.items():
            borders = [float(le) for le, _ in parts["bucket"]]
            counts = [v for _, v in parts["bucket"]]
            assert borders == sorted(set(borders)) and borders[-1] == float("inf"), (name, key)
            assert counts == sorted(counts), (name, key)
            assert parts["count"] == [(None, counts[-1])] and len(parts["sum"]) == 1, (name, key)

    def value(self, name, **labels):
        """Of a sample; None if there is none."""
        for _, _, samples in self.families.values():
            for n, l, v in samples:
                if (n, l) == (name, labels):
                    return v
        return None

    def values(self, name, label):
        """Values of a label in a family."""
        return [l[label] for _, l, _ in self.families[name][2] if label in l]

    def names(self):
        """What an expression may name, each with its labels."""
        found = {name: {"le"} if kind == "histogram" else set() for name, (kind, _, _) in self.families.items()}
        for name, (kind, _, samples) in self.families.items():
            if kind == "histogram":
                del found[name]
                found.update({name + s: set() for s in ["_bucket", "_sum", "_count"]})
            for n, l, _ in samples:
                found[n] |= set(l)
        return found


class Metrics(Case):
    args = LONG_ARGS

    def page(self):
        return Page(self.good("GET", "/metrics").text)

    def test_answers_by_adapter(self):
        def counts(page, adapter):
            one = lambda name: page.value("graft_adapter_" + name, adapter=adapter) or 0
            return [one(n) for n in ["answers_total", "prompt_tokens_total", "completion_tokens_total", "answers_fallback_total",
                                     "time_to_first_token_seconds_count", "time_per_output_token_seconds_count"]]

        before = self.page()
        self.assertIsNotNone(before.value("graft_adapter_answers_total", adapter="llama"))  # the base is there from the beginning
        one = self.complete(max_tokens=5, ignore_eos=True)["usage"]["prompt_tokens"]
        self.complete(max_tokens=1, ignore_eos=True)
        self.good("POST", "/v1/completions", {**LONG, "max_tokens": 3, "model": "birch", "prompt": PROMPT})
        self.complete(model="llama", max_tokens=4, ignore_eos=True)
        self.complete(model="llama", lora=[{"name": "alder"}, {"name": "birch"}], max_tokens=2, ignore_eos=True)
        after = self.page()
        gained = {a: [y - x for x, y in zip(counts(before, a), counts(after, a))] for a in ["alder", "birch", "llama"]}
        # The answer with one token has no token after its first; of several adapters the first one counts.
        self.assertEqual(gained, {"alder": [3, 3 * one, 8, 0, 3, 2], "birch": [1, one, 3, 0, 1, 1], "llama": [1, one, 4, 0, 1, 1]})
        self.assertGreater(after.value("graft_adapter_prompt_tokens_cached_total", adapter="alder"), 0)
        for adapter in gained:
            self.assertGreater(after.value("graft_adapter_time_to_first_token_seconds_sum", adapter=adapter), 0)
            self.assertGreater(after.value("graft_adapter_time_per_output_token_seconds_sum", adapter=adapter), 0)
        self.assertEqual(after.value("graft_adapter_requests_total", adapter="alder"), 3)
        self.assertEqual(sum(v for _, _, v in after.families["graft_adapter_answers_total"][2]), after.value("graft_answers_total"))

    def test_batches_and_routers_series(self):
        clients = []
        for model in ["alder", "birch", "alder", "llama", "cedar", "cedar"]:
            clients.append(self.server.socket())
            clients[-1].sendall(request_bytes({**LONG, "model": model}))
            seen = min(len(clients), 4)
            wait_until(lambda: self.page().value("graft_slots_busy") == seen, "the answer to begin")
        try:
            wait_until(lambda: self.page().value("graft_queue_waiting") == 2, "two to wait")
            wait_until(lambda: self.page().value("graft_batch_rows") == 4, "a batch of four")
            page = self.page()
            self.assertEqual(page.value("graft_batch_adapters"), 2)
            self.assertGreater(page.value("graft_step_rows_bucket", le="4") - page.value("graft_step_rows_bucket", le="2"), 0)
            self.assertGreater(page.value("graft_step_adapters_bucket", le="2") - page.value("graft_step_adapters_bucket", le="1"), 0)
            (_, labels, time), = page.families["vllm:lora_requests_info"][2]
            self.assertEqual(labels["max_lora"], "4")
            self.assertEqual(sorted(labels["running_lora_adapters"].split(",")), ["alder", "birch"])
            self.assertEqual(labels["waiting_lora_adapters"], "cedar")
            self.assertGreater(time, page.value("graft_start_time_seconds") - 1)
            self.assertEqual(page.value("vllm:num_requests_running", model_name="llama"), 4)
            self.assertEqual(page.value("vllm:num_requests_waiting", model_name="llama"), 2)
            self.assertTrue(0 < page.value("vllm:kv_cache_usage_perc", model_name="llama") <= 1)
            self.assertEqual(page.value("vllm:lora_adapter_loaded", adapter_name="alder", level="gpu", pinned="false", rank="4"), 1)
        finally:
            for c in clients:
                c.close()
        self.settled()
        wait_until(lambda: self.page().value("graft_slots_busy") == 0, "the slots to be empty")
        (_, labels, _), = self.page().families["vllm:lora_requests_info"][2]
        self.assertEqual((labels["running_lora_adapters"], labels["waiting_lora_adapters"]), ("", ""))

    def test_pins_are_told_to_routers(self):
        self.complete(model="cedar")
        self.good("POST", "/v1/lora_adapters/cedar/pin")
        loaded = lambda: {l["adapter_name"]: l["pinned"] for _, l, _ in self.page().families["vllm:lora_adapter_loaded"][2]}
        wait_until(lambda: loaded()["cedar"] == "true", "the pin")
        self.good("POST", "/v1/lora_adapters/cedar/unpin")
        wait_until(lambda: loaded()["cedar"] == "false", "the pin to go")

    def test_docs_name_every_series(self):
        self.complete()
        page = self.page()
        rows = re.findall(r"^\| `(\S+)` \| (\w+) \| ([\w, ]*) \| (.+) \|$", (ROOT / "docs/metrics.md").read_text(), re.M)
        self.assertEqual(len(rows), len({r[0] for r in rows}))
        self.assertEqual([(n, kind, text) for n, kind, _, text in rows], [(n, kind, text) for n, (kind, text, _) in page.families.items()])
        for name, _, labels, _ in rows:
            found = {k for _, l, _ in page.families[name][2] for k in l} - {"le"}
            self.assertTrue(not found or found == set(labels.split(", ")) - {""}, (name, found, labels))


def end(server):
    status, log = server.stop(), server.log()
    server.close()
    assert status == 0 and "Sanitizer" not in log, log


class Failures(unittest.TestCase):
    """One slot, no queue, an adapter that fits another base."""

    @classmethod
    def setUpClass(cls):
        cls.server = Server("--slots", "1", "--queue", "0", "--ctx", "65536", adapters={"alder": "plain"})
        shutil.copytree(GOLDEN / "adapters/qwen3/plain", cls.server.adapters / "elm")
        assert cls.server.post("/v1/lora_adapters/scan", None).status == 200

    @classmethod
    def tearDownClass(cls):
        end(cls.server)

    def page(self):
        return Page(self.server.get("/metrics").text)

    def test_fallbacks_and_failures(self):
        body = {"model": "elm", "prompt": PROMPT, "max_tokens": 2, "ignore_eos": True}
        self.assertEqual(self.server.post("/v1/completions", body).status, 200)
        self.assertEqual(self.server.post("/v1/completions", {**body, "fallback": "error"}).status, 422)
        page = self.page()
        self.assertEqual(page.value("graft_adapter_answers_total", adapter="elm"), 1)
        self.assertEqual(page.value("graft_adapter_answers_fallback_total", adapter="elm"), 1)
        self.assertEqual(page.value("graft_adapter_answers_failed_total", adapter="elm"), 1)
        self.assertEqual(page.value("graft_adapter_lease_fallbacks_total"), 1)
        code, = page.values("graft_adapter_load_failures_total", "code")
        self.assertEqual(page.value("graft_answer_failures_total", code=code), 1)
        with self.server.socket() as s:
            s.sendall(request_bytes(LONG))
            wait_until(lambda: self.page().value("graft_slots_busy") == 1, "an answer")
            self.assertEqual(self.server.post("/v1/completions", {**body, "model": "alder"}).status, 429)
        page = self.page()
        self.assertEqual(page.value("graft_answer_failures_total", code="queue_full"), 1)
        self.assertEqual(page.value("graft_adapter_answers_failed_total", adapter="alder"), 1)
        self.assertEqual(page.value("graft_answers_refused_total"), 1)


class Labels(unittest.TestCase):
    """More adapters than there are labels, one of them called as the label for the rest."""
    NAMES = ["other", *("p%03d" % i for i in range(110))]

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        base = Path(cls.folder.name) / 'a "b" \\ c\nd.gguf'
        shutil.copy(BASE, base)
        cls.server = Server("--max-adapters", "200", adapters={n: "plain" for n in cls.NAMES}, base=base)

    @classmethod
    def tearDownClass(cls):
        end(cls.server)
        cls.folder.cleanup()

    def test_cap_and_escapes(self):
        for name in self.NAMES:
            self.assertEqual(self.server.post("/v1/completions", {"model": name, "prompt": "a", "max_tokens": 2, "ignore_eos": True}).status, 200)
        page = Page(self.server.get("/metrics").text)
        base = 'a "b" \\ c\nd'
        for name in ["graft_adapter_answers_total", "graft_adapter_completion_tokens_total", "graft_adapter_time_to_first_token_seconds"]:
            labels = list(dict.fromkeys(page.values(name, "adapter")))
            self.assertEqual(labels, [base, *("p%03d" % i for i in range(98)), "other"])
        self.assertEqual(page.value("graft_adapter_answers_total", adapter="other"), 13)
        self.assertEqual(page.value("graft_adapter_answers_total", adapter="p097"), 1)
        self.assertEqual(page.value("graft_adapter_time_to_first_token_seconds_count", adapter="other"), 13)
        one = page.value("graft_adapter_bytes", adapter="p000", state="resident")
        rest = page.value("graft_adapter_bytes", adapter="other", state="resident")
        self.assertTrue(13 * one <= rest < 13 * one + 100, (one, rest))  # names are counted
        self.assertLessEqual(len(page.families["vllm:lora_adapter_loaded"][2]), 100)
        # At most eight can be added up for requests that name none.
        self.assertEqual(self.server.post("/lora-adapters", [{"id": i, "scale": 0.1} for i in range(9)]).status, 400)
        self.assertEqual(self.server.post("/lora-adapters", [{"id": i, "scale": 0.1 if i < 8 else 0} for i in range(9)]).status, 200)
        # A name as long as names get.
        longest = "x" * 128
        shutil.copytree(GOLDEN / "adapters/llama/plain", self.server.adapters / longest)
        self.assertEqual(self.server.post("/v1/lora_adapters/scan", None).status, 200)
        self.assertEqual(self.server.post("/v1/completions", {"model": longest, "prompt": "a", "max_tokens": 2}).status, 200)
        Page(self.server.get("/metrics").text)


# ---- llama-server's calls ----

class Llama(Case):
    args = LONG_ARGS

    def setUp(self):
        self.good("POST", "/lora-adapters", [])

    def text(self, **body):
        body = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0, **body}
        return self.good("POST", "/v1/completions", body).json["choices"][0]["text"]

    def scales(self):
        return [a["scale"] for a in self.good("GET", "/lora-adapters").json]

    def test_adapters(self):
        listed = self.good("GET", "/lora-adapters").json
        self.assertEqual(listed, [{"id": i, "path": str(self.server.adapters / n), "scale": 0, "task_name": "", "prompt_prefix": ""}
                                  for i, n in enumerate(sorted(ADAPTERS))])
        self.assertEqual(self.good("POST", "/lora-adapters", [{"id": 1, "scale": 0.5}, {"id": 0, "scale": 2}, {"id": 0, "scale": 1}]).json,
                         {"success": True})
        self.assertEqual(self.scales(), [1, 0.5, 0])
        both = self.text(model="llama", lora=[{"id": 0}, {"id": 1, "scale": 0.5}])
        self.assertEqual(self.text(), both)
        alone = {n: self.text(model=n) for n in ["alder", "birch", "llama"]}
        self.assertEqual(len({both, *alone.values()}), 4, alone)  # or these lines prove nothing
        # Who names an adapter or the base gets that, and a list in the request beats what is set for all.
        self.assertEqual(self.text(lora=[]), alone["llama"])
        self.assertEqual(self.text(lora=[{"id": 1}]), alone["birch"])
        self.good("POST", "/lora-adapters", [{"id": 0, "scale": 0}])
        self.assertEqual((self.scales(), self.text()), ([0, 0, 0], alone["llama"]))

    def test_one_state_with_switching(self):
        self.good("POST", "/lora-adapters", [{"id": 2, "scale": 1}])
        self.assertEqual(self.good("GET", "/v1/projects/current").json["id"], "cedar")
        self.assertEqual(self.good("GET", "/v1/status").json["current"], "cedar")
        self.good("POST", "/v1/projects/current", {"project": "birch"})
        self.assertEqual(self.scales(), [0, 1, 0])
        self.assertEqual(self.text(), self.text(model="birch"))
        self.good("POST", "/lora-adapters", [{"id": 2, "scale": 0.5}])
        self.bad(404, "not_found", "GET", "/v1/projects/current")

    def test_bad_scales(self):
        self.good("POST", "/lora-adapters", [{"id": 1, "scale": 1}])
        for body, status, code, param in [({}, 400, "bad_type", None), (5, 400, "bad_type", None), (b"[", 400, "bad_type", None),
                                          ([5], 400, "invalid_value", None), ([{"id": 0}], 400, "invalid_value", None),
                                          ([{"scale": 1}], 400, "invalid_value", None), ([{"id": "0", "scale": 1}], 400, "invalid_value", None),
                                          ([{"id": 0, "scale": 101}], 400, "invalid_value", None),
                                          ([{"id": 3, "scale": 1}], 404, "model_not_found", "id"),
                                          ([{"id": -1, "scale": 1}], 404, "model_not_found", "id"),
                                          ([{"id": 2 ** 62, "scale": 1}], 404, "model_not_found", "id")]:
            reply = self.bad(status, code, "POST", "/lora-adapters", body, param=param, headers={"Content-Type": "application/json"})
        self.assertEqual(self.scales(), [0, 1, 0])  # nothing of it
        self.assertEqual(self.server.post("/lora-adapters", {}).json["error"]["message"], "Request body must be an array")

    def test_what_was_set_may_be_gone(self):
        shutil.copytree(GOLDEN / "adapters/llama/plain", self.server.adapters / "willow")
        self.good("POST", "/v1/lora_adapters/scan")
        self.good("POST", "/lora-adapters", [{"id": 3, "scale": 1}])
        self.assertEqual(self.text(), self.text(model="willow"))
        self.good("POST", "/v1/unload_lora_adapter", {"lora_name": "willow", "unregister": True})
        self.assertEqual(self.text(), self.text(model="llama"))

    def test_props(self):
        props = self.good("GET", "/props").json
        self.assertEqual((props["total_slots"], props["model_path"], props["model_alias"]), (4, str(BASE), "llama"))
        self.assertEqual(props["default_generation_settings"]["n_ctx"], 65536)
        self.assertEqual(props["default_generation_settings"]["params"]["temperature"], 1)
        self.assertEqual(props["modalities"], {"vision": False, "video": False, "audio": False})
        self.assertIn("im_start", props["chat_template"])
        self.assertEqual((props["bos_token"], props["eos_token"]), ("<|endoftext|>", "<|im_end|>"))
        self.assertIn("graft", props["build_info"])
        self.assertEqual((props["is_sleeping"], props["chat_template_caps"]), (False, {}))

    def test_slots(self):
        wait_until(lambda: not any(s["is_processing"] for s in self.good("GET", "/slots?fail_on_no_slot=1").json), "idle slots")
        self.assertEqual(self.good("GET", "/slots").json,
                         [{"id": i, "n_ctx": 65536, "speculative": False, "is_processing": False} for i in range(4)])
        clients = [self.server.socket() for _ in range(4)]
        try:
            for c in clients:
                c.sendall(request_bytes(LONG))
            wait_until(lambda: all(s["is_processing"] and s["next_token"][0]["n_decoded"] for s in self.good("GET", "/slots").json), "four answers")
            slot = self.good("GET", "/slots?fail_on_no_slot=").json[0]
            self.assertEqual(list(slot), ["id", "n_ctx", "speculative", "is_processing", "id_task", "n_prompt_tokens", "n_prompt_tokens_processed",
                                          "n_prompt_tokens_cache", "adapter", "next_token"])
            self.assertEqual(slot["adapter"], "alder")
            for s in self.good("GET", "/slots").json:
                self.assertEqual(s["n_prompt_tokens_processed"] + s["n_prompt_tokens_cache"], s["n_prompt_tokens"])
            reply = self.bad(503, "no_slot", "GET", "/slots?fail_on_no_slot=1")
            self.assertEqual(reply.json["error"]["type"], "unavailable_error")
        finally:
            for c in clients:
                c.close()
        self.settled()

    def test_what_is_not_supported(self):
        for path in ["/slots/0?action=save", "/slots/0?action=restore", "/slots/0?action=erase", "/slots/x"]:
            reply = self.bad(501, "not_supported", "POST", path, {"filename": "a"})
            self.assertEqual(reply.json["error"]["type"], "not_supported_error")
        self.bad(404, "not_found", "POST", "/completion", {"prompt": "a"})
        self.bad(405, "method_not_allowed", "POST", "/props", {})

    def test_tokens(self):
        def tokens(**body):
            return self.good("POST", "/tokenize", body).json["tokens"]

        self.assertEqual(tokens(content="h\u00e9"), [104, 195, 169])  # bytes are tokens of the tiny base
        self.assertEqual(tokens(content="h\u00e9", with_pieces=True), [{"id": 104, "piece": "h"}, {"id": 195, "piece": [195]}, {"id": 169, "piece": [169]}])
        self.assertEqual((tokens(), tokens(content="")), ([], []))
        special = tokens(content="<|im_end|>")
        self.assertEqual(len(special), 1)
        self.assertEqual(len(tokens(content="<|im_end|>", parse_special=False)), len("<|im_end|>"))
        self.assertEqual(tokens(content=["a", special[0], "b"]), [*tokens(content="a"), *special, *tokens(content="b")])
        many = "abc \u00e9\n" * 20000  # for the worker
        self.assertEqual(len(tokens(content=many)), len(many.encode()))
        self.assertEqual(self.good("POST", "/detokenize", {"tokens": tokens(content=many)}).json["content"], many)
        self.assertEqual(self.good("POST", "/detokenize", {"tokens": special}).json["content"], "<|im_end|>")
        self.assertEqual(self.good("POST", "/detokenize", {}).json["content"], "")

    def test_bad_tokens(self):
        for key, values in {"content": [5.5, {}, True, [[]], [-1], [None]], "add_special": [1], "parse_special": ["x"], "with_pieces": [[]]}.items():
            for value in values:
                self.bad(400, "invalid_value", "POST", "/tokenize", {"content": "a", key: value}, param=key)
        self.bad(400, "bad_request", "POST", "/tokenize", {"content": [99999], "with_pieces": True})
        for value in [5, "a", ["a"], [-1], [2 ** 40], [1.5], {}]:
            self.bad(400, "invalid_value", "POST", "/detokenize", {"tokens": value}, param="tokens")
        self.bad(400, "bad_request", "POST", "/detokenize", {"tokens": [99999]})
        for path in ["/tokenize", "/detokenize", "/apply-template"]:
            self.bad(400, "bad_type", "POST", path, [])
            self.bad(400, "json_syntax", "POST", path, b"{", headers={"Content-Type": "application/json"})
            self.bad(413, "too_large", "POST", path, {"content": "a" * (1 << 20)})
        # A client that leaves while the worker cuts.
        with self.server.socket() as s:
            s.sendall(request_bytes({"content": "a" * 1_000_000, "with_pieces": True}, path="/tokenize"))
        self.good("POST", "/tokenize", {"content": "b" * 100_000})

    def test_template(self):
        messages = [{"role": "system", "content": "be"}, {"role": "user", "content": "abc"}]
        prompt = self.good("POST", "/apply-template", {"messages": messages}).json["prompt"]
        self.assertEqual(prompt, "<|im_start|>system\nbe<|im_end|>\n<|im_start|>user\nabc<|im_end|>\n<|im_start|>assistant\n")
        self.assertEqual(self.text(prompt=prompt, model="alder"),
                         self.chat(messages=messages)["choices"][0]["message"]["content"])
        self.bad(400, "invalid_value", "POST", "/apply-template", {"messages": [{"role": "x", "content": "a"}]}, param="messages")
        self.bad(400, "invalid_value", "POST", "/apply-template", {}, param="messages")


# ---- keys for one project ----

class Scopes(Case):
    args = LONG_ARGS

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.keys = {}
        for name, projects in [("root", None), ("alder", ["alder"]), ("cedar", ["cedar"])]:
            body = {"name": name} if projects is None else {"name": name, "projects": projects}
            headers = {"Authorization": "Bearer " + cls.keys["root"]} if cls.keys else None
            cls.keys[name] = cls.server.post("/v1/keys", body, headers=headers).json["key"]

    def ask(self, key, method, path, body=None, status=200):
        reply = self.server.ask(method, path, body, headers={"Authorization": "Bearer " + self.keys[key]})
        self.assertEqual(reply.status, status, reply.text)
        return reply.json

    def text(self, key, **body):
        body = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0, **body}
        return self.ask(key, "POST", "/v1/completions", body)["choices"][0]["text"]

    def test_what_others_do_is_hidden(self):
        clients = []
        try:
            for model in ["alder", "birch", "llama"]:
                clients.append(self.server.socket())
                clients[-1].sendall(request_bytes({**LONG, "model": model}, extra=f"Authorization: Bearer {self.keys['root']}\r\n"))
            busy = lambda key: [s for s in self.ask(key, "GET", "/v1/status")["slots"] if s["state"] == "decode"]
            wait_until(lambda: len(busy("root")) == 3, "three answers")
            seen = lambda key: sorted((str(s["adapter"]), s["hidden"]) for s in busy(key))
            self.assertEqual(seen("root"), [("None", False), ("alder", False), ("birch", False)])
            self.assertEqual(seen("alder"), [("None", False), ("None", True), ("alder", False)])
            self.assertNotIn("birch", json.dumps(self.ask("alder", "GET", "/v1/status")))
            numbers = lambda s: [s[f"{kind}_tokens"] for kind in ["prompt", "cached", "completion"]]
            wait_until(lambda: all(s["completion_tokens"] for s in busy("root")), "a token of each")
            self.assertEqual([numbers(s) for s in busy("alder") if s["hidden"]], [[0, 0, 0]])
            self.assertTrue(all(s["prompt_tokens"] and s["completion_tokens"] for s in busy("alder") if not s["hidden"]))
            slots = lambda key: sorted(str(s["adapter"]) for s in self.ask(key, "GET", "/slots") if s["is_processing"])
            self.assertEqual((slots("root"), slots("alder")), (["None", "alder", "birch"], ["None", "None", "alder"]))
            bare = [sorted(s) for s in self.ask("alder", "GET", "/slots") if s["is_processing"] and "id_task" not in s]
            self.assertEqual(bare, [["adapter", "id", "is_processing", "n_ctx", "speculative"]])
            self.assertTrue(all("id_task" in s for s in self.ask("root", "GET", "/slots") if s["is_processing"]))
        finally:
            for c in clients:
                c.close()

    def test_paths_are_for_admins(self):
        root, alder = (self.ask(k, "GET", "/v1/status") for k in ["root", "alder"])
        self.assertEqual((root["admin"], root["model"]["path"]), (True, str(BASE)))
        self.assertEqual((alder["admin"], alder["model"]["path"]), (False, None))
        self.assertEqual((self.ask("root", "GET", "/props")["model_path"], self.ask("alder", "GET", "/props")["model_path"]), (str(BASE), ""))
        for key in ["alder", "cedar"]:
            self.assertEqual(self.ask(key, "GET", "/lora-adapters"), [{"id": 0, "path": "", "scale": 0, "task_name": "", "prompt_prefix": ""}])
            index, = (a["index"] for a in self.ask(key, "GET", "/v1/lora_adapters")["data"])
            self.assertEqual(index, 0)
            self.assertEqual(self.text(key, model="llama", lora=[{"id": 0}]), self.text(key, model=key))
        for method, path, body in [("GET", "/metrics", None), ("POST", "/lora-adapters", [])]:
            self.assertEqual(self.ask("alder", method, path, body, 403)["error"]["code"], "admin_key_needed")

    def test_defaults_do_not_reach_further_than_the_key(self):
        base = self.text("alder", model="llama")
        self.ask("root", "POST", "/v1/projects/current", {"project": "birch"})
        self.assertEqual((self.ask("root", "GET", "/v1/status")["current"], self.ask("alder", "GET", "/v1/status")["current"]), ("birch", None))
        self.assertEqual((self.text("root"), self.text("alder")), (self.text("root", model="birch"), base))
        self.ask("root", "POST", "/lora-adapters", [{"id": 0, "scale": 1}, {"id": 1, "scale": 1}])
        self.assertEqual(self.text("alder"), self.text("alder", model="alder"))
        self.assertNotEqual(self.text("alder"), self.text("root"))
        self.ask("root", "POST", "/lora-adapters", [])

    def test_every_key_may_ask_about_text(self):
        self.assertEqual(self.ask("alder", "POST", "/tokenize", {"content": "a"}), {"tokens": [97]})
        self.assertEqual(self.ask("alder", "POST", "/detokenize", {"tokens": [97]}), {"content": "a"})
        self.assertIn("abc", self.ask("alder", "POST", "/apply-template", {"messages": [{"role": "user", "content": "abc"}]})["prompt"])
        for path in ["/v1/status", "/metrics", "/lora-adapters", "/props", "/slots"]:
            self.bad(401, "invalid_api_key", "GET", path)
        for path in ["/tokenize", "/detokenize", "/apply-template", "/lora-adapters", "/slots/0"]:
            self.bad(401, "invalid_api_key", "POST", path, {})


# ---- packaging/ ----

SERIES = r"(?<![\w:])(?:graft_[a-z0-9_]+|vllm:[a-z0-9_]+)"


def label_names(expression):
    """In selectors and in `by (…)`."""
    found = set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)\s*\"", expression))
    for names in re.findall(r"by \(([^)]*)\)", expression):
        found |= {n.strip() for n in names.split(",")}
    return found


class Packaging(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server.post("/v1/completions", {"model": "alder", "prompt": "a", "max_tokens": 2})
        cls.server.post("/v1/completions", {"model": "alder", "prompt": "a", "max_tokens": 2, "n": 64})  # refused, or answered
        cls.known = Page(cls.server.get("/metrics").text).names()

    def check(self, expression):
        names = re.findall(SERIES, expression)
        labels = label_names(expression) - {"instance", "job"}
        self.assertTrue(names or "up{" in expression, expression)
        there = set()
        for name in names:
            self.assertIn(name, self.known, expression)
            there |= self.known[name]
            # A rate of a gauge, or a counter as it is, says nothing.
            rated = f"rate({name}" in expression or f"increase({name}" in expression
            self.assertEqual(rated, bool(re.search(r"_(total|bucket|sum|count)$", name)), expression)
        # Of a family without samples the labels are only in the docs.
        docs = (ROOT / "docs/metrics.md").read_text()
        for name in names:
            row = re.search(rf"^\| `{name}` \| \w+ \| ([\w, ]*) \|", docs, re.M)
            there |= set(row[1].split(", ")) if row else set()
        self.assertTrue(labels <= there, (labels - there, expression))

    def test_dashboard(self):
        board = json.loads((ROOT / "packaging/grafana-dashboard.json").read_text())
        panels = board["panels"]
        self.assertEqual(len({p["id"] for p in panels}), len(panels))
        taken = set()
        n = 0
        for p in panels:
            g = p["gridPos"]
            cells = {(x, y) for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])}
            self.assertFalse(cells & taken, p["title"])
            self.assertLessEqual(g["x"] + g["w"], 24)
            taken |= cells
            if p["type"] == "row":
                continue
            self.assertTrue(p["title"] and p["targets"])
            for t in p["targets"]:
                self.assertEqual(t["datasource"]["uid"], "${datasource}")
                self.check(t["expr"])
                self.assertTrue(set(re.findall(r"{{(\w+)}}", t["legendFormat"])) <= label_names(t["expr"]), t)
                n += 1
        self.assertGreater(n, 40)
        self.assertEqual([v["name"] for v in board["templating"]["list"]], ["datasource", "instance"])

    def test_alerts(self):
        text = (ROOT / "packaging/prometheus-alerts.yml").read_text()
        rules = re.findall(r"- alert: (\w+)\n +expr: (?:>-\n)?(.+?)\n +for: \d+m\n +labels:\n +severity: (?:warning|critical)\n"
                           r" +annotations:\n +summary: \"([^\n]+)\"\n +description: \"([^\n]+)\"\n", text, re.S)
        self.assertEqual(len(rules), text.count("- alert:"))
        for _, expression, summary, description in rules:
            self.check(" ".join(expression.split()))
            for name in re.findall(SERIES, summary + description):
                self.assertTrue(name in self.known or name + "_bucket" in self.known, name)
        if shutil.which("promtool"):
            subprocess.run(["promtool", "check", "rules", ROOT / "packaging/prometheus-alerts.yml"], check=True, capture_output=True)

    def test_unit(self):
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str
        unit.read(ROOT / "packaging/graft.service")
        service = unit["Service"]
        self.assertEqual((service["Type"], service["NotifyAccess"]), ("notify", "main"))
        program, command, *flags = service["ExecStart"].split()
        self.assertEqual((Path(program).name, command), ("graft", "serve"))
        known = subprocess.run([GRAFT, "serve", "--help"], capture_output=True, text=True, check=True).stdout
        for flag in flags[::2]:
            self.assertIn(f" {flag} ", known)


if __name__ == "__main__":
    if not GRAFT:
        sys.exit("GRAFT_BIN names the binary to test")
    unittest.main(verbosity=2)
