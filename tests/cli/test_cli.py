#!/usr/bin/env python3
"""Tests of the `graft` command from outside: what is written where, and with which exit code.

GRAFT_BIN names the binary (required). Most tests run on the tiny base of tests/oracle/golden; those that need a
model which speaks use GRAFT_TEST_MODEL and are skipped without it. Python's standard library only.
"""
import json
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import command

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/oracle/golden"
BASE = GOLDEN / "bases/llama.gguf"
# One thread: on a busy machine two that wait for each other are far slower on so small a model.
TINY = ["-m", BASE, "-t", "1"]
PLAIN = GOLDEN / "adapters/llama/plain"
RSLORA = GOLDEN / "adapters/llama/rslora"
PROJECTS = ROOT / "examples/projects"
GRAFT = os.environ.get("GRAFT_BIN")
MODEL = os.environ.get("GRAFT_TEST_MODEL")
COMMANDS = ["run", "serve", "score", "inspect", "bench", "bench-loader", "demo", "config", "version"]
TIMEOUT = 300
# Neither the settings nor the registry of whoever runs the tests.
os.environ.update(GRAFT_CONFIG="/dev/null", GRAFT_REGISTRY="/nonexistent/registry.db")

needs_model = unittest.skipUnless(MODEL, "GRAFT_TEST_MODEL is not set")


def graft(*args, stdin=None, **env):
    """As subprocess.run with text, but carriage returns are left as they are."""
    done = subprocess.run([GRAFT, *map(str, args)], input=None if stdin is None else stdin.encode(),
                          capture_output=True, timeout=TIMEOUT, env={**os.environ, **env})
    done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()
    return done


def on_terminal(stream, *args, **env):
    """Runs with `stream` ("stdout" or "stderr") as a terminal; returns what was written to it."""
    return command.on_terminal([GRAFT, *args], stream, {**os.environ, "TERM": "xterm", **env}, TIMEOUT)


def lines_of(*objects):
    return "".join((o if isinstance(o, str) else json.dumps(o)) + "\n" for o in objects)


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def good(self, *args, **more):
        done = graft(*args, **more)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done

    def objects(self, *args, **more):
        return [json.loads(line) for line in self.good(*args, "--json", **more).stdout.splitlines()]

    def object(self, *args, **more):
        found = self.objects(*args, **more)
        self.assertEqual(len(found), 1)
        return found[0]

    def bad(self, status, code, *args, **more):
        return command.refused(self, graft, status, code, args, more)

    def file(self, name, text):
        path = self.folder / name
        path.write_text(text)
        return path


class Usage(Case):
    def test_help_of_each_command(self):
        for command in COMMANDS:
            done = self.good(command, "--help")
            self.assertTrue(done.stdout.startswith(f"usage: graft {command}"), done.stdout)
            for part in ["options:", "examples:", "exit codes:", "--json", "--help"]:
                self.assertIn(part, done.stdout)
            self.assertEqual(done.stderr, "")
            self.assertEqual(self.good(command, "-h").stdout, done.stdout)

    def test_help_tells_defaults(self):
        text = self.good("run", "--help").stdout
        for option, default in [("--max-tokens", "128"), ("--top-k", "40"), ("--apply", "auto"), ("--kv", "f16")]:
            entry = text.split(option, 1)[1].split("--", 1)[0]
            self.assertIn(f"(default {default})", entry)
        entry = self.good("score", "--help").stdout.split("--adapter-type", 2)[2].split("--", 1)[0]
        self.assertIn("(default f32)", entry)

    def test_list_of_commands(self):
        text = self.good("--help").stdout
        for command in COMMANDS:
            self.assertRegex(text, rf"(?m)^  {command} ")
        nothing = graft()
        self.assertEqual((nothing.returncode, nothing.stdout, nothing.stderr), (2, "", text))

    def test_version(self):
        self.assertRegex(self.good("--version").stdout, r"\Agraft \d+\.\d+\.\d+\nlibllama \S+\n\Z")
        version = self.object("version")
        self.assertEqual(list(version), ["graft", "libllama"])

    def test_unknown(self):
        self.assertIn("frob", self.bad(2, "bad_request", "frob"))
        for command in COMMANDS:
            self.assertIn("--frob", self.bad(2, "bad_request", command, "--frob"))
            self.assertIn("-Z", self.bad(2, "bad_request", command, "-Z"))
        self.assertIn("surplus", self.bad(2, "bad_request", "run", "-m", BASE, "-p", "x", "surplus"))

    def test_required(self):
        for args in (["run", "-p", "x"], ["run", "-m", BASE], ["run", "-m", BASE, "-p", "x", "-f", "y"],
                     ["score", "-m", BASE], ["score", "--text", "x"], ["score", "-m", BASE, "--text", "x", "--tokens", "1"],
                     ["inspect", "-m", BASE], ["inspect", PLAIN], ["inspect", "-m", BASE, PLAIN, PLAIN],
                     ["bench", "-m", BASE], ["bench", "-a", PLAIN],
                     ["demo", "-m", BASE], ["demo", "--projects", ".", "--questions", "x"]):
            self.bad(2, "bad_request", *args)
        for option in ["-m", "--model"]:
            done = graft("run", "-p", "x", option)
            self.assertEqual(done.returncode, 2)
            self.assertIn(f"bad_request: {option} needs an argument", done.stderr)

    def test_bad_values(self):
        for args in (["-n", "x"], ["-n", "-1"], ["-n", "1.5"], ["-n", ""], ["-n", "99999999999999999999"],
                     ["--temp", "nan"], ["--temp", "101"], ["--temp", "0x1"], ["--top-p", "1.1"], ["--kv", "q8"],
                     ["--apply", "row"], ["--seed", "4294967296"], ["--seed", "1.5"], ["--slots", "257"],
                     ["--batch", "8"], ["--use", "nobody"], *[["--stop", "x"] * 17]):
            self.bad(2, "bad_request", "run", "-m", BASE, "-p", "x", *args)
        for tokens in ["", "1,,2", "1,", "a", "-1"]:
            self.bad(2, "bad_request", "score", "-m", BASE, f"--tokens={tokens}")
        for sequences in ["0", "257", "1;2"]:
            self.bad(2, "bad_request", "bench", "-m", BASE, "-a", PLAIN, "--sequences", sequences)

    def test_adapter_argument(self):
        def refuse(*args):
            return self.bad(2, "bad_request", "run", "-m", "nowhere.gguf", "-p", "x", *args)

        self.assertIn("twice", refuse("-a", "a=x", "-a", "a=y"))
        refuse("-a", "x")
        refuse("-a", "=x")
        refuse("-a", "a=")
        refuse("-a", "a b=x")
        refuse("-a", "é=x")
        refuse("-a", "n" * 129 + "=x")
        self.assertIn("101", refuse("-a", "a=x@101"))
        self.assertIn("--use", refuse("-a", "a=x", "-a", "b=y"))
        # These are fine, so the model is what is missing.
        for good in ["n" * 128 + "=x", "a=x=y", "a=x@home", "a=x@0.5", "a=x@-1", "a=x@101@1"]:
            self.bad(1, "model_missing", "run", "-m", "nowhere.gguf", "-p", "x", "-a", good)

    def test_references_are_told(self):
        for name in ("run", "score", "bench", "bench-loader"):
            words = graft(name, "--help").stdout
            self.assertGreaterEqual(words.count("hf:ORG/NAME"), 2, name)

    def test_missing_model(self):
        for args in (["run", "-p", "x"], ["score", "--text", "x"], ["inspect", PLAIN], ["bench", "-a", PLAIN]):
            self.assertIn("nowhere.gguf", self.bad(1, "model_missing", args[0], "-m", "nowhere.gguf", *args[1:]))
        self.bad(1, "model_invalid", "run", "-m", self.file("empty.gguf", "no model"), "-p", "x")


class Lines(Case):
    """Everything wrong in a file is told with its line, before the (here missing) model is even looked for."""

    def refuse(self, code, line):
        good = {"prompt": "x", "adapter": "a"}
        path = self.file("requests.jsonl", lines_of(good, "", good, line, good))
        message = self.bad(1, code, "run", "-m", "nowhere.gguf", "-a", "a=x", "-f", path)
        self.assertIn("requests.jsonl, line 4: ", message)
        return message

    def test_syntax(self):
        self.refuse("json_syntax", '{"prompt":')
        self.refuse("json_syntax", '{"prompt":"x"} {}')
        self.refuse("json_syntax", '{"prompt":"a\\u0000b"}')
        self.refuse("json_duplicate_key", '{"prompt":"x","prompt":"y"}')
        self.refuse("bad_type", '["prompt"]')

    def test_encoding(self):
        path = self.folder / "bytes.jsonl"
        path.write_bytes(b'\n{"prompt":"\xff"}\n')
        self.assertIn("line 2: ", self.bad(1, "json_encoding", "run", "-m", "nowhere.gguf", "-f", path))

    def test_keys(self):
        self.assertIn("promt", self.refuse("bad_request", {"prompt": "x", "promt": "x"}))
        self.assertIn("nobody", self.refuse("not_found", {"prompt": "x", "adapter": "nobody"}))
        self.refuse("bad_request", {"prompt": "x", "adapter": "no body"})
        self.refuse("bad_request", {})
        self.refuse("bad_request", {"prompt": "x", "messages": []})
        self.refuse("bad_request", {"messages": [{"role": "user", "content": "x", "name": "y"}]})

    def test_types_and_ranges(self):
        for wrong in ({"prompt": 1}, {"messages": []}, {"messages": "x"}, {"messages": [{"role": "user"}]},
                      {"messages": ["x"]}, {"prompt": "x", "adapter": 1}, {"prompt": "x", "max_tokens": "1"},
                      {"prompt": "x", "max_tokens": 1.5}, {"prompt": "x", "stop": [1]},
                      {"prompt": "x", "temperature": None}):
            self.refuse("bad_type", wrong)
        for wrong in ({"max_tokens": -1}, {"temperature": 101}, {"seed": 1 << 32}, {"stop": ["x"] * 17}):
            self.refuse("out_of_range", {"prompt": "x", **wrong})

    def test_files(self):
        self.bad(1, "not_readable", "run", "-m", "nowhere.gguf", "-f", self.folder / "none.jsonl")
        self.bad(1, "bad_request", "run", "-m", "nowhere.gguf", "-f", self.file("empty.jsonl", "\n \n"))
        for option in (["--chat"], ["--use", "a"]):
            self.bad(2, "bad_request", "run", "-m", "nowhere.gguf", "-a", "a=x", "-f", "x", *option)

    def test_good_lines_are_taken(self):
        text = "\ufeff" + lines_of({"prompt": ""}, {"messages": [{"role": "user", "content": "x"}], "adapter": None},
                                   {"prompt": "x", "adapter": "a", "max_tokens": 1, "temperature": 0.5, "seed": 1,
                                    "stop": "x"}).replace("\n", "\r\n")
        self.bad(1, "model_missing", "run", "-m", "nowhere.gguf", "-a", "a=x", "-f", "-", stdin=text)


KEYS = ["adapter", "text", "prompt_tokens", "completion_tokens", "finish_reason", "generation", "fallback", "ms"]


class Run(Case):
    def one(self, *args):
        return self.object("run", *TINY, "-n", 8, *args)

    def test_json_shape(self):
        answer = self.one("-p", "hello")
        self.assertEqual(list(answer), KEYS)
        self.assertIsNone(answer["adapter"])
        self.assertGreater(answer["prompt_tokens"], 0)
        self.assertLessEqual(answer["completion_tokens"], 8)
        self.assertIn(answer["finish_reason"], ["stop", "length"])
        if answer["finish_reason"] == "length":
            self.assertEqual(answer["completion_tokens"], 8)
        self.assertGreater(answer["ms"], 0)

    def test_text_is_the_same_as_in_json(self):
        answer = self.one("-p", "hello")
        done = self.good("run", *TINY, "-n", 8, "-p", "hello", "--log-format", "human")
        # A token that is half a character is a replacement character in one and a byte or nothing in the other.
        self.assertEqual(done.stdout, answer["text"] + "\n")
        self.assertRegex(done.stderr, r"\Agraft: 1 answer, \d+ tokens in [\d.]+ s, [\d.]+ tokens/s; adapters in memory: none\n\Z")

    def test_adapter_changes_the_answer(self):
        base = self.one("-p", "hello")
        plain = self.one("-p", "hello", "-a", f"p={PLAIN}")
        rslora = self.one("-p", "hello", "-a", f"r={RSLORA}")
        both = self.one("-p", "hello", "-a", f"p={PLAIN}", "-a", f"r={RSLORA}", "--use", "p", "--use", "r")
        self.assertEqual([plain["adapter"], rslora["adapter"], both["adapter"]], ["p", "r", "p+r"])
        self.assertEqual(len({a["text"] for a in (base, plain, rslora, both)}), 4)
        chosen = self.one("-p", "hello", "-a", f"p={PLAIN}", "-a", f"r={RSLORA}", "--use", "r")
        self.assertEqual((chosen["adapter"], chosen["text"]), ("r", rslora["text"]))

    def test_scale(self):
        base = self.one("-p", "hello")
        self.assertEqual(self.one("-p", "hello", "-a", f"p={PLAIN}@0")["text"], base["text"])
        half = self.one("-p", "hello", "-a", f"p={PLAIN}@-1")
        self.assertNotEqual(half["text"], self.one("-p", "hello", "-a", f"p={PLAIN}")["text"])

    def test_file_is_answered_in_order_by_each_lines_adapter(self):
        names = [None, "p", "r", "p", None]
        prompts = ["hello", "hello", "hello", "other", "other"]
        adapters = {None: [], "p": ["-a", f"p={PLAIN}"], "r": ["-a", f"r={RSLORA}"]}
        path = self.file("r.jsonl", lines_of(*({"adapter": n, "prompt": p} for n, p in zip(names, prompts))))
        found = self.objects("run", *TINY, "-n", 8, *adapters["p"], *adapters["r"], "-f", path)
        self.assertEqual([a["adapter"] for a in found], names)
        for answer, name, prompt in zip(found, names, prompts):
            alone = self.one("-p", prompt, *adapters[name])
            self.assertEqual([answer[k] for k in KEYS[:-1]], [alone[k] for k in KEYS[:-1]])

    def test_readable_form_of_a_file(self):
        text = lines_of({"adapter": "p", "prompt": "hello"}, {"prompt": "hello"})
        answers = self.objects("run", *TINY, "-n", 8, "-a", f"p={PLAIN}", "-f", "-", stdin=text)
        done = self.good("run", *TINY, "-n", 8, "-a", f"p={PLAIN}", "-f", "-", "--log-format", "human", stdin=text)
        self.assertEqual(done.stdout, f"[1] p\n{answers[0]['text']}\n\n[2] (base)\n{answers[1]['text']}\n")
        self.assertRegex(done.stderr, r"\Agraft: 2 answers, .* adapters in memory: p [\d.]+ KiB\n\Z")

    def test_apply_modes_agree(self):
        text = lines_of(*({"adapter": n, "prompt": "hello"} for n in ["p", None, "r"]))
        found = []
        for apply in ["rows", "grouped"]:
            answers = self.objects("run", *TINY, "-n", 8, "--apply", apply, "-a", f"p={PLAIN}", "-a", f"r={RSLORA}",
                                   "-f", "-", stdin=text)
            found.append([a["text"] for a in answers])
        self.assertEqual(*found)

    def test_chat(self):
        chat = self.one("--chat", "-p", "hello")
        line = lines_of({"messages": [{"role": "user", "content": "hello"}]})
        self.assertEqual(self.object("run", *TINY, "-n", 8, "-f", "-", stdin=line)["text"], chat["text"])
        self.assertGreater(chat["prompt_tokens"], self.one("-p", "hello")["prompt_tokens"])

    def test_overrides_of_a_line(self):
        text = lines_of({"prompt": "hello", "max_tokens": 2}, {"prompt": "hello"})
        short, long = self.objects("run", *TINY, "-n", 5, "-f", "-", stdin=text)
        self.assertEqual(short["completion_tokens"], 2)
        self.assertGreater(long["completion_tokens"], 2)

    def test_stop(self):
        grammar = self.file("g.gbnf", 'root ::= "one two three"')
        whole = self.one("-p", "hello", "-n", 64, "--grammar", grammar)
        self.assertEqual((whole["text"], whole["finish_reason"]), ("one two three", "stop"))
        cut = self.one("-p", "hello", "-n", 64, "--grammar", grammar, "--stop", "thr", "--stop", " tw")
        self.assertEqual((cut["text"], cut["finish_reason"]), ("one", "stop"))
        lines = lines_of({"prompt": "hello", "stop": ["zz", "e t"]}, {"prompt": "hello", "stop": "wo"}, {"prompt": "hello"})
        cut = self.objects("run", *TINY, "-n", 64, "--grammar", grammar, "--stop", "three", "-f", "-", stdin=lines)
        self.assertEqual([c["text"] for c in cut], ["on", "one t", "one two "])

    def test_bad_grammar(self):
        self.bad(1, "bad_grammar", "run", *TINY, "-p", "x", "--grammar", self.file("g.gbnf", 'root ::= "x'))

    def test_seed(self):
        def text(*args):
            return self.one("-p", "hello", "--temp", 1, "--top-k", 0, "--top-p", 1, "--min-p", 0, *args)["text"]

        self.assertEqual(text("--seed", 7), text("--seed", 7))
        self.assertGreater(len({text("--seed", seed) for seed in range(4)}), 1)
        self.assertGreater(len({text() for _ in range(4)}), 1)
        line = lines_of({"prompt": "hello", "seed": 7, "temperature": 1})
        answer = self.object("run", *TINY, "-n", 8, "--top-k", 0, "--top-p", 1, "--min-p", 0, "-f", "-", stdin=line)
        self.assertEqual(answer["text"], text("--seed", 7))

    def test_refused_adapter(self):
        message = self.bad(1, "adapter_file_missing", "run", *TINY, "-a", "x=nowhere", "-p", "hello")
        self.assertTrue(message.startswith("x: "), message)
        empty = self.folder / "empty"
        empty.mkdir()
        done = graft("run", *TINY, "-a", f"x={empty}", "-p", "hello")
        self.assertEqual((done.returncode, done.stdout), (1, ""))

    def test_context_is_made_to_fit(self):
        for size in [1, 100, 400]:
            answer = self.one("-p", "a b " * (size // 4) or "a")
            self.assertGreater(answer["completion_tokens"], 0)

    def test_prompt_too_long(self):
        self.bad(1, "context_length", "run", *TINY, "--ctx", 64, "-p", "hello " * 500)

    def test_notes_are_log_lines(self):
        done = self.good("run", *TINY, "-n", 2, "-p", "hello", "--log-level", "error")
        note, = map(json.loads, done.stderr.splitlines())
        self.assertEqual(list(note), ["time", "level", "message"])
        self.assertEqual(note["level"], "info")
        self.assertRegex(note["message"], r"\A1 answer, \d+ tokens in .* adapters in memory: none\Z")

    def test_a_way_out_of_the_memory_limit(self):
        words = "raise memory_limit .*--memory-limit-mb"
        self.assertRegex(self.bad(1, "budget_exhausted", "run", "-m", BASE, "-p", "x", "--memory-limit-mb", 1,
                                  "--ctx", 512, "--slots", 64), words)

    def test_verbose(self):
        done = self.good("run", *TINY, "-n", 2, "-p", "hello", "--verbose")
        self.assertIn("debug", [json.loads(line)["level"] for line in done.stderr.splitlines() if line.startswith("{")])
        done = self.good("run", *TINY, "-n", 2, "-p", "hello", "--verbose", "--log-format", "human")
        self.assertRegex(done.stderr, r"(?m)^graft: (info|debug): ")

    @unittest.skipUnless(os.path.exists("/dev/full"), "needs /dev/full")
    def test_full_disk(self):
        for more in ([], ["--json"]):
            with open("/dev/full", "w") as full:
                done = subprocess.run([GRAFT, "run", *TINY, "-n", "4", "-p", "hello", *more], stdout=full,
                                      stderr=subprocess.PIPE, encoding="utf-8", timeout=TIMEOUT)
            self.assertEqual(done.returncode, 1)
            self.assertIn("graft: error: io_error: ", done.stderr)


class Terminal(Case):
    def test_bar_only_on_a_terminal(self):
        args = ["run", *TINY, "-n", 2, "-p", "hello"]
        self.assertNotIn("\r", self.good(*args, TERM="xterm").stderr)
        self.assertIn(b"\ropening model", on_terminal("stderr", *args))
        self.assertNotIn(b"\r ", on_terminal("stderr", *args, "--verbose"))
        self.assertNotIn(b"opening model", on_terminal("stderr", *args, TERM="dumb"))

    def test_no_color(self):
        args = ["run", *TINY, "-n", 2, "-p", "hello"]
        self.assertIn(b"\x1b[32m", on_terminal("stderr", *args, NO_COLOR=""))
        self.assertNotIn(b"\x1b", on_terminal("stderr", *args, NO_COLOR="1"))

    def test_escapes_do_not_reach_a_terminal(self):
        grammar = self.file("g.gbnf", 'root ::= "A\\x1B[31mB"')
        args = ["run", *TINY, "-n", 32, "-p", "hello", "--grammar", grammar]
        self.assertEqual(self.good(*args).stdout, "A\x1b[31mB\n")
        self.assertEqual(on_terminal("stdout", *args), b"A[31mB\r\n")


def floats(path):
    data = path.read_bytes()
    return struct.unpack(f"<{len(data) // 4}f", data)


class Score(Case):
    def setUp(self):
        super().setUp()
        manifest = json.loads((GOLDEN / "manifest.json").read_text())
        self.golden = next(b for b in manifest["bases"] if b["base"] == "llama")
        self.tokens = self.golden["tokens"]
        self.text_tokens = ",".join(map(str, self.tokens))

    def logits(self, *args):
        path = self.folder / "logits.f32"
        result = self.object("score", *TINY, "--tokens", self.text_tokens, "--kv", "f32", "--logits", path, *args)
        return result, floats(path)

    def close(self, got, want):
        self.assertEqual(len(got), len(want))
        norm = math.sqrt(sum(w * w for w in want))
        return math.sqrt(sum((g - w) ** 2 for g, w in zip(got, want))) / norm < 1e-3

    def test_shape_and_sums(self):
        result, logits = self.logits()
        vocabulary = self.golden["n_vocab"]
        self.assertEqual(list(result), ["tokens", "perplexity", "adapter", "adapters"])
        self.assertEqual([t["id"] for t in result["tokens"]], self.tokens)
        self.assertEqual(len(logits), len(self.tokens) * vocabulary)
        self.assertIsNone(result["tokens"][0]["logprob"])
        total = 0
        for i, token in enumerate(self.tokens[1:], 1):
            row = logits[(i - 1) * vocabulary:i * vocabulary]
            want = row[token] - max(row) - math.log(sum(math.exp(x - max(row)) for x in row))
            self.assertAlmostEqual(result["tokens"][i]["logprob"], want, places=4)
            total += want
        self.assertAlmostEqual(result["perplexity"] / math.exp(-total / (len(self.tokens) - 1)), 1, places=4)

    def test_logits_are_the_models(self):
        base = floats(GOLDEN / self.golden["logits"])
        plain = floats(GOLDEN / "logits/llama/plain.f32")
        self.assertFalse(self.close(base, plain))
        self.assertTrue(self.close(self.logits()[1], base))
        result, logits = self.logits("-a", PLAIN)
        self.assertTrue(self.close(logits, plain))
        self.assertEqual(result["adapter"], str(PLAIN))
        self.assertGreater(result["adapters"][0]["bytes"], 0)
        result, logits = self.logits("-a", f"{PLAIN}@0")
        self.assertTrue(self.close(logits, base))
        self.assertEqual(result["adapter"], f"{PLAIN}@0")

    def test_text(self):
        text = "hello world"
        result = self.object("score", *TINY, "--text", text)
        self.assertIsNone(result["adapter"])
        self.assertEqual("".join(t["text"] for t in result["tokens"]), text)

    def test_one_token(self):
        result = self.object("score", *TINY, "--tokens", "5")
        self.assertEqual((len(result["tokens"]), result["perplexity"]), (1, None))

    def test_table(self):
        done = self.good("score", *TINY, "--tokens", "5,6,7")
        rows = done.stdout.splitlines()
        self.assertEqual(rows[0].split(), ["#", "id", "logprob", "token"])
        self.assertEqual([row.split()[:2] for row in rows[2:5]], [["0", "5"], ["1", "6"], ["2", "7"]])
        self.assertRegex(rows[-1], r"^perplexity [\d.]+, 3 tokens, adapter: none$")

    def test_at_signs_of_a_path(self):
        path = self.folder / "me@home"
        shutil.copytree(PLAIN, path)
        for text, scale in [(path, 1), (f"{path}@0.5", 0.5), (f"{path}@-1e1", -10)]:
            adapter = self.object("score", *TINY, "-a", text, "--tokens", "1,2")["adapters"][0]
            self.assertEqual((adapter["path"], adapter["scale"]), (str(path), scale))

    def test_refused(self):
        self.bad(1, "bad_request", "score", *TINY, "--tokens", "1,264")
        self.bad(1, "adapter_file_missing", "score", *TINY, "-a", "nowhere", "--tokens", "1,2")
        self.bad(1, "io_error", "score", *TINY, "--tokens", "1,2", "--logits", self.folder / "none" / "x")


class Inspect(Case):
    def test_loadable(self):
        found = self.object("inspect", "-m", BASE, PLAIN)
        self.assertEqual(list(found), ["loadable", "path", "format", "bytes", "error", "modules", "reasons"])
        self.assertIs(found["loadable"], True)
        self.assertEqual((found["format"], found["error"]), ("peft", None))
        self.assertEqual(len(found["modules"]), 14)
        module = next(m for m in found["modules"] if m["weight"] == "blk.0.attn_q.weight")
        self.assertEqual(list(module), ["module", "weight", "kind", "rank", "scale", "n_in", "n_out", "dtype", "bytes"])
        self.assertIn("layers.0.self_attn.q_proj", module["module"])
        self.assertEqual((module["rank"], module["scale"], module["dtype"]), (4, 2, "F32"))

    def test_bytes_are_those_of_loading(self):
        for kind in ["f16", "f32"]:
            found = self.object("inspect", "-m", BASE, PLAIN, "--adapter-type", kind)
            loaded = self.object("score", *TINY, "-a", PLAIN, "--adapter-type", kind, "--tokens", "1,2")
            self.assertEqual(found["bytes"], loaded["adapters"][0]["bytes"])

    def test_table(self):
        done = self.good("inspect", "-m", BASE, PLAIN)
        self.assertEqual(done.stdout.splitlines()[0].split(),
                         ["module", "weight", "kind", "rank", "scale", "in", "out", "type", "bytes"])
        self.assertIn("blk.1.ffn_down.weight", done.stdout)
        self.assertRegex(done.stdout, r"(?m)^loadable: peft adapter, 14 modules, .* \(\d+ bytes\) in memory$")

    def test_every_reason(self):
        bad = self.folder / "bad"
        shutil.copytree(PLAIN, bad)
        config = json.loads((bad / "adapter_config.json").read_text())
        (bad / "adapter_config.json").write_text(json.dumps({**config, "r": 0, "lora_alpha": 0}))
        done = graft("inspect", "-m", BASE, bad, "--json")
        self.assertEqual(done.returncode, 1)
        found = json.loads(done.stdout)
        self.assertIs(found["loadable"], False)
        self.assertEqual((found["bytes"], found["modules"]), (0, []))
        errors = [r for r in found["reasons"] if r["severity"] == "error"]
        self.assertEqual([e["code"] for e in errors], ["bad_rank", "bad_alpha"])
        self.assertEqual(list(errors[0]), ["severity", "code", "where", "message"])
        self.assertEqual(found["error"], errors[0]["code"])
        self.assertRegex(done.stderr, rf"\Agraft: error: {found['error']}: .*\n\Z")
        text = graft("inspect", "-m", BASE, bad)
        self.assertEqual(text.returncode, 1)
        self.assertIn(f"not loadable: {len(errors)} reasons", text.stdout)
        for reason in errors:
            self.assertIn(reason["code"], text.stdout)

    def test_truncated_and_missing(self):
        bad = self.folder / "bad"
        shutil.copytree(PLAIN, bad)
        weights = bad / "adapter_model.safetensors"
        weights.chmod(0o600)
        weights.write_bytes(weights.read_bytes()[:-100])
        for path in [bad, self.folder / "nowhere"]:
            done = graft("inspect", "-m", BASE, path)
            self.assertEqual(done.returncode, 1)
            self.assertRegex(done.stderr, r"\Agraft: error: [a-z_]+: .*\n\Z")
            self.assertEqual(done.stderr.count(str(path)), 1)

    def test_a_path_is_told_whole_and_once(self):
        path = self.folder / ("a" * 60) / ("b" * 60) / "nowhere"
        for args in (["inspect", "-m", BASE, path], ["bench", "-m", BASE, "-a", path, "--sequences", 1, "--rounds", 1],
                     ["bench-loader", "-m", BASE, "-a", path, "--quick"], ["run", *TINY, "-p", "x", "-a", f"mine={path}"]):
            done = graft(*args)
            self.assertEqual(done.returncode, 1)
            name = "mine: " if args[0] == "run" else ""
            self.assertEqual(done.stderr, f"graft: error: adapter_file_missing: {name}{path}: does not exist\n")

    def test_a_long_path_leaves_room_for_the_reason(self):
        path = str(self.folder) + "/" + "/".join("c" * 100 for _ in range(8)) + "/end"
        done = graft("inspect", "-m", BASE, path)
        self.assertRegex(done.stderr, r"\Agraft: error: adapter_file_missing: …c+/.*/end: does not exist\n\Z")


class Bench(Case):
    def test_shape(self):
        found = self.object("bench", *TINY, "-a", PLAIN, RSLORA, "--sequences", "1,3", "--new-tokens", 6, "--rounds", 3)
        modes = ["base", "same", "rows", "grouped", "native"]
        self.assertEqual([(r["sequences"], r["mode"]) for r in found["results"]], [(n, m) for n in (1, 3) for m in modes])
        for result in found["results"]:
            self.assertGreater(result["min"], 0)
            self.assertLessEqual(result["min"], result["tokens_per_second"])
            self.assertLessEqual(result["tokens_per_second"], result["max"])
        self.assertEqual(list(found["ratios"]), ["rows/grouped", "rows/base", "same/native"])
        for ratio in found["ratios"].values():
            self.assertEqual(list(ratio), ["1", "3"])
            self.assertTrue(all(x > 0 for x in ratio.values()))
        self.assertEqual([a["path"] for a in found["adapters"]], [str(PLAIN), str(RSLORA)])
        self.assertIn("cpu", found["machine"])

    def test_table(self):
        text = self.good("bench", *TINY, "-a", PLAIN, "--sequences", "2", "--new-tokens", 4, "--rounds", 1).stdout
        self.assertRegex(text, r"(?m)^ +2  grouped +[\d.]+ +[\d.]+ +[\d.]+")
        self.assertRegex(text, r"(?m)^ +2  rows/grouped +[\d.]+")

    def test_random_adapters(self):
        script = ROOT / "bench/make_adapters.py"
        subprocess.run([sys.executable, script, BASE, self.folder, "--count", "2", "--rank", "5"], check=True,
                       stdout=subprocess.DEVNULL, timeout=TIMEOUT)
        found = [self.object("inspect", "-m", BASE, self.folder / f"adapter-{i}") for i in (1, 2)]
        for adapter in found:
            self.assertEqual((adapter["loadable"], len(adapter["modules"])), (True, 14))
            self.assertEqual({m["rank"] for m in adapter["modules"]}, {5})
        scores = {self.object("score", *TINY, "--tokens", "5,6,7,8", *more)["perplexity"]
                  for more in ([], ["-a", self.folder / "adapter-1"], ["-a", self.folder / "adapter-2"])}
        self.assertEqual(len(scores), 3)


class Demo(Case):
    def setUp(self):
        super().setUp()
        self.projects = self.folder / "projects"
        self.projects.mkdir()
        shutil.copytree(RSLORA, self.projects / "birch")
        shutil.copytree(PLAIN, self.projects / "alder")
        (self.projects / "no-adapter").mkdir()
        self.questions = self.file("q.jsonl", lines_of({"question": "hello?", "answer": "ignored"}, {"question": "why?"}))
        self.args = ["demo", *TINY, "--projects", self.projects, "--questions", self.questions, "-n", 6]

    def test_json(self):
        found = self.object(*self.args)
        self.assertEqual([q["question"] for q in found["questions"]], ["hello?", "why?"])
        adapters = {None: [], "alder": ["-a", f"x={PLAIN}"], "birch": ["-a", f"x={RSLORA}"]}
        for question in found["questions"]:
            self.assertEqual([a["adapter"] for a in question["answers"]], [None, "alder", "birch"])
            for answer in question["answers"]:
                alone = self.object("run", *TINY, "-n", 6, "--chat", "-p", question["question"], *adapters[answer["adapter"]])
                self.assertEqual(answer["text"], alone["text"])
        names = [(a["project"], a["adapter"]) for a in found["adapters"]]
        self.assertEqual(names, [("alder", "again"), ("alder", "broken"), ("alder", "default"), ("birch", "default")])
        self.assertTrue(all(a["bytes"] > 0 for a in found["adapters"] if a["adapter"] != "broken"))
        self.assertGreater(found["tokens_per_second"], 0)

    def test_table(self):
        wide = self.good(*self.args, COLUMNS="90").stdout.splitlines()
        self.assertEqual(wide[0].split(), ["base", "alder", "birch"])
        self.assertIn("hello?", wide)
        self.assertTrue(all(len(line) <= 90 for line in wide[:wide.index("why?")]))
        self.assertRegex("\n".join(wide), r"(?m)^birch +resident +[\d.]+ KiB ")
        narrow = self.good(*self.args, COLUMNS="45").stdout.splitlines()
        self.assertEqual(narrow[0].split(), ["adapter", "answer"])
        self.assertEqual([line.split()[0] for line in narrow if re.match(r"(base|alder|birch) ", line)][:3],
                         ["base", "alder", "birch"])

    def test_refused(self):
        self.bad(1, "missing_file", "demo", *TINY, "--projects", self.projects / "alder", "--questions", self.questions)
        self.bad(1, "not_readable", "demo", *TINY, "--projects", self.folder / "x", "--questions", self.questions)
        questions = self.file("bad.jsonl", lines_of({"question": "x"}, {"prompt": "x"}))
        self.assertIn("line 2: ", self.bad(1, "bad_type", "demo", *TINY, "--projects", self.projects, "--questions", questions))

    @needs_model
    def test_examples(self):
        names = sorted(p.parent.name for p in PROJECTS.glob("*/adapter_model.safetensors"))
        if not names:
            self.skipTest("the example projects have no adapters")
        found = self.object("demo", "-m", MODEL, "--projects", PROJECTS, "--questions", ROOT / "examples/questions.jsonl")
        self.assertEqual([a["project"] for a in found["adapters"] if a["adapter"] == "default"], names)
        for name in names:
            lines = (PROJECTS / name / "questions.jsonl").read_text().splitlines()
            expected = {q["question"]: q["expect"] for q in map(json.loads, lines)}
            answers = {q["question"]: a["text"] for q in found["questions"] for a in q["answers"] if a["adapter"] == name}
            right = sum(expected[question] in text for question, text in answers.items())
            self.assertGreater(right, len(answers) // 2, (name, answers))


class Interrupt(Case):
    LONG = ["-n", "2000", "-p", "Once upon a time"]

    def start(self, *args):
        return subprocess.Popen([GRAFT, "run", "-m", MODEL, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                # in a background job SIGINT would be ignored, and graft leaves that so
                                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

    @needs_model
    def test_text_streams_and_ctrl_c_ends_it(self):
        process = self.start("--temp", "1", "--seed", "1", *self.LONG)
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=TIMEOUT)
        self.assertTrue(first)
        # Had the text been kept back to the end, the signal would have come too late.
        self.assertEqual(process.returncode, 130, errors)
        self.assertEqual(errors, b"graft: error: cancelled: interrupted\n")
        self.assertTrue(rest.endswith(b"\n"))
        self.assertLess(len(rest), 4000)

    @needs_model
    def test_what_is_done_is_kept(self):
        path = self.file("r.jsonl", lines_of({"prompt": "a", "max_tokens": 1}, {"prompt": "Once upon a time", "max_tokens": 2000}))
        process = self.start("--temp", "1", "--seed", "1", "--json", "-f", str(path))
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=TIMEOUT)
        self.assertEqual(process.returncode, 130)
        self.assertEqual(json.loads(first)["completion_tokens"], 1)
        self.assertEqual(json.loads(rest)["finish_reason"], "cancelled")


if __name__ == "__main__":
    if not GRAFT:
        sys.exit("GRAFT_BIN must name the graft binary")
    unittest.main()
