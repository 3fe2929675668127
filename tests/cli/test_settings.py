#!/usr/bin/env python3
"""Tests of settings (default, file, environment, flag) and of log lines, from outside.

GRAFT_BIN names the binary (required). `test_settings.py --table` prints the table of docs/settings.md as the binary has it.
Python's standard library only.
"""
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import command

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/oracle/golden"
BASE = GOLDEN / "bases/llama.gguf"
PLAIN = GOLDEN / "adapters/llama/plain"
RSLORA = GOLDEN / "adapters/llama/rslora"
GRAFT = os.environ.get("GRAFT_BIN")
TIMEOUT = 120
TINY = ["-m", BASE, "-t", "1", "-n", "4"]

# Of each type: a default, and a value for file, environment and flag that is neither it nor another's.
TYPED = {
    "max_adapters": (3, 11, 12, 13),
    "memory_limit_mb": (4096, 1001, 1002, 1003),
    "policy": ("lru", "sieve", "s3fifo", "gdsf"),
    "adapter_type": ("f16", "q8_0", "f32", "q8_0"),
    "gpu": (False, True, False, True),
    "self_test": (True, False, True, False),
    "model": (None, "/file.gguf", "env.gguf", "flag.gguf"),
    "context": (0, 111, 112, 113),  # the one whose flag has another name
}
FLAGS = {"context": "--ctx"}


def words(value):
    return {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def flags_for(key, value):
    flag = FLAGS.get(key, "--" + key.replace("_", "-"))
    if isinstance(value, bool):
        return [flag if value else "--no-" + flag[2:]]
    return [flag, str(value)]


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.env = {k: v for k, v in os.environ.items()
                    if not k.startswith(("GRAFT_", "XDG_", "HF_", "OLLAMA_"))}
        self.env.update(HOME=str(self.folder / "home"))

    def graft(self, *args, cwd=None, **env):
        done = subprocess.run([GRAFT, *map(str, args)], capture_output=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL,
                              cwd=cwd, env={**self.env, **env})
        done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()
        return done

    def good(self, *args, **more):
        done = self.graft(*args, **more)
        self.assertEqual(done.returncode, 0, (args, done.stderr))
        return done

    def config(self, *args, **more):
        """{name: {"value", "from", "where", …}}"""
        done = self.good("config", "--json", *args, **more)
        self.assertEqual(done.stderr, "")
        return {s["name"]: s for s in json.loads(done.stdout)["settings"]}

    def bad(self, code, *args, status=2, **env):
        return command.refused(self, self.graft, status, code, args, env)

    def ini(self, text, name="graft.ini"):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def config_folder(self):
        return self.folder / "home" / ("Library/Application Support" if sys.platform == "darwin" else ".config") / "graft"


class Precedence(Case):
    def test_each_source_beats_those_before(self):
        for key, (default, file, environment, flag) in TYPED.items():
            path = self.ini(f"# a comment\n\n{key} = {words(file)}\n")
            variable = {"GRAFT_" + key.upper(): words(environment)}
            with self.subTest(key):
                found = self.config()[key]
                self.assertEqual((found["value"], found["from"], found["where"]), (default, "default", None))
                self.assertEqual(found["default"], default)
                found = self.config("--config", path)[key]
                self.assertEqual((found["value"], found["from"], found["where"]), (file, "file", f"{path}:3"))
                found = self.config("--config", path, **variable)[key]
                self.assertEqual((found["value"], found["from"], found["where"]),
                                 (environment, "environment", "GRAFT_" + key.upper()))
                found = self.config("--config", path, *flags_for(key, flag), **variable)[key]
                self.assertEqual((found["value"], found["from"], found["where"]), (flag, "flag", flags_for(key, flag)[0]))
                found = self.config("--config", path, *flags_for(key, flag))[key]  # a flag beats a file alone as well
                self.assertEqual((found["value"], found["from"]), (flag, "flag"))

    def test_the_last_flag_counts(self):
        self.assertEqual(self.config("--slots", 2, "--slots", 3)["slots"]["value"], 3)
        self.assertIs(self.config("--gpu", "--no-gpu")["gpu"]["value"], False)
        self.assertIs(self.config("--no-gpu", "--gpu")["gpu"]["value"], True)
        self.assertEqual(self.config("-v")["log_level"]["value"], "debug")
        self.assertEqual(self.config("-v", "--log-level", "error")["log_level"]["value"], "error")

    def test_all_of_a_file(self):
        """Every setting can be given in each of the three ways, and nothing else about it changes."""
        defaults = self.config()
        values = {}
        for key, s in defaults.items():
            if "|" in s["allowed"]:
                choices = s["allowed"].split("|")
                shown = words(s["value"])
                values[key] = choices[(choices.index(shown) + 1) % len(choices)]
            elif " to " in s["allowed"]:
                low, high = map(int, s["allowed"].split(" to "))
                values[key] = str(low if s["value"] != low else high)
            else:
                values[key] = f"/some/{key}"
        path = self.ini("".join(f"{k}={v}\n" for k, v in values.items()))
        by_file = self.config("--config", path)
        by_env = self.config(**{s["environment"]: values[k] for k, s in defaults.items()})
        flags = []
        for key, s in defaults.items():
            if s["allowed"] == "true|false":
                flags.append(f"--{s['flag']}" if values[key] == "true" else f"--no-{s['flag']}")
            else:
                flags += [f"--{s['flag']}", values[key]]
        by_flag = self.config(*flags)
        for key in defaults:
            self.assertEqual(words(by_file[key]["value"]), values[key])
            self.assertNotEqual(by_file[key]["value"], defaults[key]["value"], key)
            self.assertEqual([by_env[key]["value"], by_flag[key]["value"]], [by_file[key]["value"]] * 2)
            self.assertEqual([by_file[key]["from"], by_env[key]["from"], by_flag[key]["from"]], ["file", "environment", "flag"])

    def test_a_beaten_value_is_checked_all_the_same(self):
        path = self.ini("slots = many\n")
        self.assertIn("many", self.bad("bad_setting", "config", "--config", path, "--slots", 1))
        self.assertIn("GRAFT_SLOTS", self.bad("bad_setting", "config", "--slots", 1, GRAFT_SLOTS="many"))

    def test_a_commands_own_default(self):
        """graft score keeps adapters in f32 unless it is told otherwise, and a file tells."""
        def loaded_bytes(*args, **more):
            done = self.good("score", "-m", BASE, "-t", 1, "-a", PLAIN, "--tokens", "1,2", "--json", *args, **more)
            return json.loads(done.stdout)["adapters"][0]["bytes"]

        f32 = loaded_bytes("--adapter-type", "f32")
        f16 = loaded_bytes("--adapter-type", "f16")
        self.assertLess(f16, f32)
        self.assertEqual(loaded_bytes(), f32)
        self.assertEqual(loaded_bytes("--config", self.ini("adapter_type = f16")), f16)
        self.assertEqual(loaded_bytes(GRAFT_ADAPTER_TYPE="f16"), f16)

    def test_settings_reach_the_library(self):
        path = self.ini(f"model = {BASE}\nthreads = 1\n")
        answer = json.loads(self.good("run", "--config", path, "-p", "hello", "-n", 2, "--json").stdout)
        self.assertEqual(answer["completion_tokens"], 2)
        self.assertIn("nowhere.gguf", self.bad("model_missing", "run", "--config", path, "-p", "x", status=1, GRAFT_MODEL="nowhere.gguf"))
        # 1 MiB is less than any base; 16 tokens are less than this prompt.
        self.bad("budget_exhausted", "run", *TINY, "-p", "x", status=1, GRAFT_MEMORY_LIMIT_MB="1")
        self.bad("context_length", "run", "--config", path, "-p", "hello " * 50, status=1, GRAFT_CONTEXT="16")


class Where(Case):
    def test_users_file(self):
        self.ini("slots = 5\n", self.config_folder() / "graft.ini")
        found = self.config()["slots"]
        self.assertEqual((found["value"], found["where"]), (5, f"{self.config_folder()}/graft.ini:1"))
        self.ini("slots = 6\n", "xdg/graft/graft.ini")
        self.assertEqual(self.config(XDG_CONFIG_HOME=str(self.folder / "xdg"))["slots"]["value"], 6)
        self.assertEqual(self.config(XDG_CONFIG_HOME="relative")["slots"]["value"], 5)
        given = self.ini("slots = 7\n", "given.ini")
        self.assertEqual(self.config(GRAFT_CONFIG=str(given))["slots"]["value"], 7)
        self.assertEqual(self.config(GRAFT_CONFIG="")["slots"]["value"], 5)
        flag = self.ini("slots = 8\n", "flag.ini")
        self.assertEqual(self.config("--config", flag, GRAFT_CONFIG=str(given))["slots"]["value"], 8)
        for none in (self.config("--config", "/dev/null"), self.config(GRAFT_CONFIG="/dev/null"), self.config(HOME="")):
            self.assertEqual(none["slots"]["from"], "default")
        # The file's other settings do not come from another file.
        self.ini("slots = 5\nbatch = 64\n", self.config_folder() / "graft.ini")
        self.assertEqual(self.config("--config", flag)["batch"]["from"], "default")

    def test_named_in_json(self):
        path = self.ini("")
        self.assertEqual(json.loads(self.good("config", "--json", "--config", path).stdout)["file"], str(path))
        self.assertIsNone(json.loads(self.good("config", "--json").stdout)["file"])

    def test_missing(self):
        self.assertEqual(self.config()["slots"]["from"], "default")
        for args, env in ((["--config", "nowhere.ini"], {}), ([], {"GRAFT_CONFIG": "nowhere.ini"})):
            self.assertIn("nowhere.ini", self.bad("bad_setting", "config", *args, **env))

    def test_not_a_file(self):
        fifo = self.folder / "fifo"
        os.mkfifo(fifo)
        for path in (self.folder, fifo, "/dev/zero"):
            self.assertIn("regular file", self.bad("bad_setting", "config", "--config", path))
        (self.config_folder() / "graft.ini").mkdir(parents=True)
        self.bad("bad_setting", "config")

    @unittest.skipIf(os.geteuid() == 0, "root may read everything")
    def test_not_readable(self):
        path = self.ini("slots = 5\n")
        path.chmod(0)
        self.bad("bad_setting", "config", "--config", path)

    def test_paths_of_a_file(self):
        """A path means the same wherever graft is called: it is the file's, not the current folder's."""
        path = self.ini("model = models/base.gguf\nregistry = ~/r.db\nadapter_root = /abs\n", "etc/graft.ini")
        for cwd, name in ((self.folder, "etc/graft.ini"), (self.folder / "etc", "graft.ini"), ("/", path)):
            found = self.config("--config", name, cwd=cwd)
            model = found["model"]["value"]
            self.assertEqual(os.path.normpath(os.path.join(cwd, model)), str(self.folder / "etc/models/base.gguf"))
            self.assertEqual(found["registry"]["value"], f"{self.folder}/home/r.db")
            self.assertEqual(found["adapter_root"]["value"], "/abs")
        for name in ("ollama:llama3.2:1b", "hf:org/name/file.gguf"):
            self.assertEqual(self.config("--config", self.ini(f"model = {name}\n"))["model"]["value"], name)
        self.assertEqual(self.config("-m", "x.gguf", GRAFT_REGISTRY="~/r")["model"]["value"], "x.gguf")

    def test_places_of_others(self):
        home = self.folder / "home"

        def places(**env):
            found = self.config(**env)
            self.assertEqual({found[k]["from"] for k in ("ollama_models", "hf_hub")}, {"default"})
            return found["ollama_models"]["value"], found["hf_hub"]["value"]

        self.assertEqual(places(), (f"{home}/.ollama/models", f"{home}/.cache/huggingface/hub"))
        self.assertEqual(places(OLLAMA_MODELS="/o", HF_HOME="/h"), ("/o", "/h/hub"))
        self.assertEqual(places(HF_HUB_CACHE="/c", HF_HOME="/h")[1], "/c")
        self.assertEqual(places(XDG_CACHE_HOME="/x")[1], "/x/huggingface/hub")
        self.assertEqual(self.config(OLLAMA_MODELS="/o", GRAFT_OLLAMA_MODELS="/g")["ollama_models"]["value"], "/g")


GOOD_FILES = {
    "nothing": (b"", {}),
    "bom": (b"\xef\xbb\xbfslots = 5\n", {"slots": 5}),
    "bom and comment": (b"\xef\xbb\xbf# x\nslots = 5\n", {"slots": 5}),
    "crlf": (b"slots = 5\r\n\r\npolicy = sieve\r\n", {"slots": 5, "policy": "sieve"}),
    "crlf and section": (b"[graft]\r\nslots = 5\r\n", {"slots": 5}),
    "no newline at the end": (b"slots = 5\npolicy = sieve", {"slots": 5, "policy": "sieve"}),
    "section": (b"[graft]\nslots = 5\n", {"slots": 5}),
    "comments": (b"; x\n# slots = 9\n  # y\nslots = 5 ; five\n", {"slots": 5}),
    "no blanks": (b"slots=5\npolicy=sieve\n", {"slots": 5, "policy": "sieve"}),
    "many blanks": (b"slots \t=\t 5 \t\n", {"slots": 5}),
    "equals signs": (b"model = /a=b\n", {"model": "/a=b"}),
    "colons": (b"model = ollama:a:b\n", {"model": "ollama:a:b"}),
    "beyond ASCII": ("model = /é/→\n".encode(), {"model": "/é/→"}),
    "words for true": (b"gpu = on\nself_test = no\nprobe = 0\n", {"gpu": True, "self_test": False, "probe": False}),
    "just short enough": (b"model = /" + b"x" * 189 + b"\nslots = 5\n", {"model": "/" + "x" * 189, "slots": 5}),
    "a long file": (b"# comment\n" * 100000 + b"slots = 5\n", {"slots": 5}),
}

# What the message must hold besides the file, and the line.
BAD_FILES = {
    "NUL": (b"slots = 5\nba\0tch = 64\n", 2, "NUL"),
    "NUL in a value": (b"model = a\0b\n", 1, "NUL"),
    "NUL in a comment": (b"# a\0b\nslots = 5\n", 1, "NUL"),
    "UTF-16": ("slots = 5\n".encode("utf-16"), 1, "NUL"),
    "Latin-1": (b"model = /\xe9\n", 1, "UTF-8"),
    "UTF-8 cut off": (b"slots = 5\nmodel = /\xc3", 2, "UTF-8"),
    "late BOM": (b"slots = 5\n\xef\xbb\xbfbatch = 64\n", 2, "unknown key"),
    "very long line": (b"slots = 5\nmodel = /" + b"x" * 190 + b"\n", 2, "199 bytes"),
    "very long line that goes on as another": (b"model = /" + b"x" * 189 + b"; slots = 9\n", 1, "bytes"),
    "very long comment": (b"#" + b"x" * 500000 + b"\n", 1, "bytes"),
    "duplicate": (b"slots = 5\nbatch = 64\nslots = 5\n", 3, "slots is given already in line 1"),
    "duplicate across a section": (b"slots = 5\n[graft]\nslots = 6\n", 3, "already in line 1"),
    "indented": (b"model = /a\n  slots = 5\n", 2, "blanks"),
    "indented by a tab": (b"\tslots = 5\n", 1, "blanks"),
    "colon": (b"slots: 5\n", 1, "key = value"),
    "no value": (b"slots\n", 1, "key = value"),
    "no key": (b"= 5\n", 1, 'unknown key ""'),
    "nothing after =": (b"model =\n", 1, '""'),
    "only a comment after =": (b"slots = ; 5\n", 1, '""'),
    "other section": (b"slots = 5\n[server]\n", 2, "[server]"),
    "section with more": (b"[graft] x\n", 1, "unknown section"),
    "section left open": (b"[graft\n", 1, "unknown section"),
    "unknown key": (b"slots = 5\nmax_adapter = 5\n", 2, 'unknown key "max_adapter"; the nearest is max_adapters'),
    "dashes": (b"max-adapters = 5\n", 1, "the nearest is max_adapters"),
    "dashes and more": (b"memory-limit-meg = 5\n", 1, "the nearest is memory_limit_mb"),
    "another word": (b"temperature = 5\n", 1, "graft config"),
    "capitals": (b"Slots = 5\n", 1, "the nearest is slots"),
    "far from any": (b"zzzzzzzzz = 5\n", 1, "graft config"),
    "flag's name": (b"no_probe = true\n", 1, "the nearest is probe"),
    "very long key": (b"k" * 150 + b" = 5\n", 1, "unknown key"),
    "known key and more": (b"max_adapters" + b"_" * 60 + b" = 5\n", 1, "unknown key"),
    "not a number": (b"slots = many\n", 1, 'slots: "many" is not a whole number from 0 to 256'),
    "fraction": (b"slots = 1.5\n", 1, "whole number"),
    "hexadecimal": (b"slots = 0x10\n", 1, "whole number"),
    "too much": (b"slots = 257\n", 1, "0 to 256"),
    "far too much": (b"slots = 99999999999999999999999\n", 1, "0 to 256"),
    "negative": (b"slots = -1\n", 1, "0 to 256"),
    "too little": (b"batch = 15\n", 1, "16 to 4096"),
    "quotes": (b'slots = "5"\n', 1, "whole number"),
    "choice": (b"policy = mru\n", 1, "lru|sieve|s3fifo|wtinylfu|gdsf"),
    "choice in capitals": (b"policy = LRU\n", 1, '"LRU" is not one of'),
    "bool": (b"gpu = maybe\n", 1, '"maybe" is not true or false'),
    "escapes in a comment": (b"# \x1b[31m\n", 1, "control"),
    "form feed": (b"\x0cslots = 5\n", 1, "control"),
    "old line ends": (b"model = /a\rslots = 5\r", 1, "control"),
    "escapes": (b"policy = \x1b[31mred\n", 1, "\\x1b[31mred"),
    "escapes in a key": (b"\x1b[31mred = 1\n", 1, "\\x1b[31mred"),
    "first of two": (b"slots = many\nbatch = 1\n", 1, "slots"),
}


class File(Case):
    def test_good_files(self):
        for name, (text, wanted) in GOOD_FILES.items():
            with self.subTest(name):
                found = self.config("--config", self.ini(text))
                self.assertEqual({k: s["value"] for k, s in found.items() if s["from"] == "file"}, wanted)

    def test_bad_files(self):
        for name, (text, line, part) in BAD_FILES.items():
            with self.subTest(name):
                path = self.ini(text)
                message = self.bad("bad_setting", "config", "--config", path)
                self.assertTrue(message.startswith(f"{path}:{line}: "), message)
                self.assertIn(part, message)

    def test_too_large(self):
        self.assertIn("1048576", self.bad("bad_setting", "config", "--config", self.ini(b"#" * 99 + b"\n" * (2 << 20))))
        self.assertEqual(self.config("--config", self.ini(b"\n" * (1 << 20)))["slots"]["from"], "default")
        self.bad("bad_setting", "config", "--config", self.ini(b"\n" * ((1 << 20) + 1)))

    def test_every_command_checks_all_of_it(self):
        path = self.ini("slots = 5\nfrob = 1\n")
        registry = self.folder / "r.db"
        for args in (["run", "-m", "nowhere.gguf", "-p", "x"], ["score", "-m", "nowhere.gguf", "--text", "x"],
                     ["inspect", "-m", "nowhere.gguf", PLAIN], ["bench", "-m", "nowhere.gguf", "-a", PLAIN],
                     ["demo", "-m", "nowhere.gguf", "--projects", ".", "--questions", "x"],
                     ["project", "add", "x", "--registry", registry], ["adapter", "list", "--registry", registry],
                     ["adapters", "scan", PLAIN, "--registry", registry]):
            self.assertIn(":2: ", self.bad("bad_setting", *args, "--config", path))
        self.assertFalse(registry.exists())
        # Help and version need no settings.
        for args in (["--help"], ["--version"], ["version"], ["run", "--help"], ["config", "--help"]):
            self.good(*args, GRAFT_CONFIG=str(path))


class Environment(Case):
    def test_bad_values(self):
        for variable, value, part in (("GRAFT_SLOTS", "257", "0 to 256"), ("GRAFT_POLICY", "mru", "lru|sieve"),
                                      ("GRAFT_GPU", "2", "true or false"), ("GRAFT_SLOTS", "\x1b[31m", "\\x1b[31m")):
            message = self.bad("bad_setting", "config", **{variable: value})
            self.assertIn(f"environment: {variable}: ", message)
            self.assertIn(part, message)

    def test_empty_is_unset(self):
        self.assertEqual(self.config(GRAFT_SLOTS="", GRAFT_MODEL="")["slots"]["from"], "default")

    def test_unknown(self):
        done = self.good("config", GRAFT_MAX_ADAPTER="5", GRAFT_LOG_FORMAT="human")
        self.assertEqual(done.stderr, "graft: warning: environment: unknown variable GRAFT_MAX_ADAPTER has no meaning; "
                                      "the nearest is GRAFT_MAX_ADAPTERS\n")
        done = self.good("config", GRAFT_ZZZZZZZZZZ="5", GRAFT_LOG_FORMAT="human")
        self.assertEqual(done.stderr, "graft: warning: environment: unknown variable GRAFT_ZZZZZZZZZZ has no meaning\n")
        self.assertEqual(self.good("config", GRAFT_MAX_ADAPTER="5", GRAFT_LOG_LEVEL="error").stderr, "")
        self.assertNotIn("\x1b", self.good("config", **{"GRAFT_\x1b[31m": "5"}).stderr)
        # What graft's own scripts and tests set is nobody's typing error.
        self.assertEqual(self.good("config", GRAFT_TEST_MODEL="x", GRAFT_BIN="x", GRAFT_CACHE="x", GRAFT_LLAMA_PREFIX="x",
                                   GRAFT_DEMO_MODEL="x", GRAFT_WERROR="x").stderr, "")


class Flags(Case):
    def test_bad_values(self):
        for args, part in ((["--max-adapters", "100001"], "0 to 100000"), (["--policy", "mru"], "gdsf"), (["--slots", "x"], '"x"'),
                           (["--memory-limit-mb", "-1"], "0 to"), (["--model", ""], '""'), (["--no-slots"], "unknown option"),
                           (["--gpu=yes"], "--gpu")):
            self.assertIn(part, self.bad("bad_request", "config", *args))

    def test_commands_take_what_means_something_to_them(self):
        self.bad("bad_request", "inspect", "--policy", "lru", "-m", "x", PLAIN)
        self.bad("bad_request", "project", "list", "--slots", 1)
        self.bad("bad_request", "version", "--slots", 1)
        for command in ("run", "score", "inspect", "bench", "demo", "config"):
            text = self.good(command, "--help").stdout
            for flag in ("--model", "--config", "--log-level", "--verbose", "--adapter-type"):
                self.assertIn(flag, text, command)

    def test_help_shows_the_flag_that_changes_the_default(self):
        text = self.good("config", "--help").stdout
        for shown, hidden in (("--gpu ", "--no-gpu"), ("--no-self-test ", "--self-test "), ("--no-probe ", "--probe ")):
            self.assertIn(shown, text)
            self.assertNotIn(f" {hidden}", text)


class Config(Case):
    def test_table(self):
        path = self.ini("slots = 5\nmodel = /m.gguf\n")
        done = self.good("config", "--config", path, "--no-probe", GRAFT_POLICY="sieve")
        self.assertEqual(done.stderr, "")
        rows = {line.split(None, 2)[0]: line.split(None, 2)[1:] for line in done.stdout.splitlines()[2:]}
        self.assertEqual(rows["slots"], ["5", f"{path}:1"])
        self.assertEqual(rows["model"], ["/m.gguf", f"{path}:2"])
        self.assertEqual(rows["policy"], ["sieve", "GRAFT_POLICY"])
        self.assertEqual(rows["probe"], ["false", "--no-probe"])
        self.assertEqual(rows["batch"], ["512", "default"])
        self.assertEqual(rows["adapter_root"], ["-", "default"])
        self.assertEqual(list(rows), list(self.config()))

    def test_escapes_in_values(self):
        self.assertNotIn("\x1b", self.good("config", GRAFT_MODEL="\x1b[31m").stdout)
        self.assertEqual(self.config(GRAFT_MODEL="\x1b[31m")["model"]["value"], "\x1b[31m")

    def test_docs(self):
        page = (ROOT / "docs/settings.md").read_text()
        rows = [line for line in page.splitlines() if line.startswith("| `")]
        self.assertEqual(rows, table_rows(self.config()), "docs/settings.md is out of date: tests/cli/test_settings.py --table")

    def test_no_home(self):
        found = self.config(HOME="")
        self.assertEqual([found[k]["value"] for k in ("registry", "ollama_models", "hf_hub")], [None] * 3)


def table_rows(found):
    rows = []
    for key, s in found.items():
        default = "" if s["default"] is None else words(s["default"])
        allowed = s["allowed"].replace("|", ", ") if "|" in s["allowed"] else s["allowed"]
        flag = f"`--{s['flag']}`" + (f", `--no-{s['flag']}`" if s["allowed"] == "true|false" else "")
        text = " ".join(s["help"].split())
        rows.append(f"| `{key}` | {flag} | {allowed} | {default} | {text} |")
    return rows


def terminal_stderr(*args, env):
    """Runs with stderr as a terminal; returns what was written to it."""
    return command.on_terminal([GRAFT, *args], "stderr", {**env, "TERM": "dumb"}, TIMEOUT).decode()


class Log(Case):
    TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"

    def entries(self, *args, **more):
        done = self.good("run", *TINY, "-p", "hello", *args, **more)
        entries = [json.loads(line) for line in done.stderr.splitlines()]
        others = [e for e in entries if not e["message"].startswith("1 answer, ")]
        self.assertEqual(len(others), len(entries) - 1)  # the note is written at every level
        return others

    def test_json_where_nobody_watches(self):
        entries = self.entries("--log-level", "debug")
        self.assertGreater(len(entries), 3)
        for entry in entries:
            self.assertLessEqual(set(entry), {"time", "level", "message", "project", "adapter", "generation", "request", "code"})
            self.assertEqual(list(entry)[:3], ["time", "level", "message"])
            self.assertRegex(entry["time"], rf"^{self.TIME}$")
            self.assertIn(entry["level"], ["debug", "info", "warning", "error"])
            self.assertNotIn("", entry.values())
            self.assertNotRegex(entry["message"], r"[\x00-\x1f]")

    def test_human_on_a_terminal(self):
        args = ["run", *TINY, "-p", "hello", "--log-level", "info"]
        lines = terminal_stderr(*args, env=self.env).splitlines()
        self.assertTrue(all(line.startswith("graft: ") for line in lines), lines)
        self.assertTrue(any(line.startswith("graft: info: ") for line in lines), lines)
        lines = terminal_stderr(*args, "--log-format", "json", env=self.env).splitlines()
        json.loads(lines[0])
        done = self.good(*args, "--log-format", "human")
        self.assertRegex(done.stderr, r"(?m)^graft: info: ")
        self.assertNotRegex(done.stderr, rf"(?m)^graft: info: {self.TIME}")

    def test_time_with_debug(self):
        done = self.good("run", *TINY, "-p", "hello", "-v", "--log-format", "human")
        self.assertRegex(done.stderr, rf"(?m)^graft: (info|debug): {self.TIME} ")

    def test_levels(self):
        levels = [{e["level"] for e in self.entries("--log-level", level)} for level in ("debug", "info", "warning", "error")]
        self.assertIn("debug", levels[0])
        self.assertIn("info", levels[1])
        self.assertNotIn("debug", levels[1])
        self.assertLessEqual(levels[2], {"warning", "error"})
        self.assertLessEqual(levels[3], {"error"})
        self.assertEqual({e["level"] for e in self.entries()}, levels[2])

    def test_warnings_of_the_command(self):
        done = self.good("config", GRAFT_SLOT="5")
        entry = json.loads(done.stderr)
        self.assertEqual((entry["level"], entry["code"]), ("warning", "bad_setting"))
        self.assertIn("GRAFT_SLOTS", entry["message"])

    def test_error_lines_stay(self):
        for form in ("json", "human"):
            self.bad("model_missing", "run", "-m", "nowhere.gguf", "-p", "x", "--log-format", form, status=1)

    def test_texts_are_never_logged(self):
        done = self.good("run", *TINY, "-v", "-p", "xyzzyplugh")
        self.assertNotIn("xyzzy", done.stderr)


class Named(Case):
    """graft run with adapters from the registry."""

    def setUp(self):
        super().setUp()
        self.env["GRAFT_REGISTRY"] = str(self.folder / "registry.db")
        self.adapter = self.folder / "plain"
        shutil.copytree(PLAIN, self.adapter)
        for file in self.adapter.iterdir():
            file.chmod(0o600)
        self.good("project", "add", "alder", self.adapter)
        self.good("adapter", "add", "alder/second", RSLORA)

    def answers(self, *args, lines=None, **env):
        if lines is not None:
            args += ("-f", self.ini("".join(json.dumps(line) + "\n" for line in lines), "r.jsonl"))
        done = self.good("run", *TINY, "--json", *args, **env)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def answer(self, *args, **env):
        return self.answers(*args, "-p", "hello", **env)[0]

    def test_as_by_path(self):
        base = self.answer()
        self.assertEqual((base["generation"], base["fallback"]), (None, None))
        for name, path in (("alder", PLAIN), ("alder/default", PLAIN), ("alder/second", RSLORA)):
            named, by_path = self.answer("--project", name), self.answer("-a", f"x={path}")
            self.assertEqual((named["adapter"], named["text"], named["fallback"]), (name, by_path["text"], None))
            self.assertRegex(named["generation"], r"^[0-9a-f]{64}$")
            self.assertEqual(named["generation"], by_path["generation"])
            self.assertNotEqual(named["text"], base["text"])
            self.assertEqual(self.answer("--project", f"{name}@-1")["text"], self.answer("-a", f"x={path}@-1")["text"])

    def test_several_add_up(self):
        both = self.answer("--project", "alder", "--project", "alder/second")
        by_path = self.answer("-a", f"p={PLAIN}", "-a", f"r={RSLORA}", "--use", "p", "--use", "r")
        mixed = self.answer("-a", f"r={RSLORA}", "--project", "alder")
        self.assertEqual(both["adapter"], "alder+alder/second")
        self.assertEqual(mixed["adapter"], "r+alder")
        self.assertEqual([both["text"], mixed["text"]], [by_path["text"]] * 2)
        self.assertIn("8", self.bad("bad_request", "run", *TINY, "-p", "x", *["--project", "alder"] * 9))

    def test_lines_of_a_file(self):
        names = [None, "alder", "r", "alder/second", "alder/default"]
        found = self.answers("-a", f"r={RSLORA}", lines=[{"adapter": n, "prompt": "hello"} for n in names])
        self.assertEqual([a["adapter"] for a in found], names)
        texts = [a["text"] for a in found]
        self.assertEqual(texts[1], texts[4])
        self.assertEqual(texts[2], texts[3])
        self.assertEqual(len(set(texts)), 3)
        # A -a of that name comes first.
        own = self.answers("-a", f"alder={RSLORA}", lines=[{"adapter": "alder", "prompt": "hello"}])
        self.assertEqual(own[0]["text"], texts[2])

    def test_more_than_fit_at_once(self):
        lines = [{"adapter": n, "prompt": "hello"} for n in ["alder", "alder/second"] * 6]
        one = self.answers(lines=lines, GRAFT_MAX_ADAPTERS="1")
        many = self.answers(lines=lines)
        self.assertEqual([a["text"] for a in one], [a["text"] for a in many])
        self.assertEqual({a["fallback"] is None for a in one}, {True})
        path = self.ini("".join(json.dumps(line) + "\n" for line in lines), "r.jsonl")
        for most, n in ((1, 1), (2, 2)):
            words_of = self.good("run", *TINY, "-f", path, "--max-adapters", most).stderr
            self.assertEqual(words_of.split("adapters in memory: ")[1].count("alder/"), n)

    def test_unknown_names(self):
        before = ["run", "-m", "nowhere.gguf"]  # said before the model is looked for
        self.assertIn("nobody", self.bad("not_found", *before, "-p", "x", "--project", "nobody", status=1))
        self.assertIn("third", self.bad("not_found", *before, "-p", "x", "--project", "alder/third", status=1))
        path = self.ini('{"prompt":"x"}\n{"prompt":"x","adapter":"nobody"}\n', "r.jsonl")
        self.assertIn("r.jsonl, line 2: ", self.bad("not_found", *before, "-f", path, status=1))
        for wrong in ("", "a b", "alder@", "alder@x", "alder@101", "alder/", "/alder", "a/b/c", "alder@nan"):
            self.bad("bad_request", *before, "-p", "x", "--project", wrong)
        self.bad("bad_request", *before, "-f", path, "--project", "alder")
        self.bad("not_found", *before, "-p", "x", "--project", "alder", status=1, GRAFT_REGISTRY=str(self.folder / "none.db"))
        self.bad("model_missing", *before, "-p", "x", "--project", "alder", status=1)

    def test_fallback(self):
        base = self.answer()
        (self.adapter / "adapter_model.safetensors").write_bytes(b"no adapter")
        found = self.answer("--project", "alder")
        self.assertEqual((found["text"], found["generation"]), (base["text"], None))
        self.assertEqual(list(found["fallback"]), ["code", "message"])
        self.assertNotEqual(found["fallback"]["code"], "ok")
        done = self.good("run", *TINY, "-p", "hello", "--project", "alder", "--log-format", "human")
        self.assertEqual(done.stdout, base["text"] + "\n")
        self.assertRegex(done.stderr, rf"\Agraft: answer 1: the base answered instead of alder: {found['fallback']['code']}: .*\ngraft: 1 answer, .*\n\Z")
        done = self.good("run", *TINY, "-p", "hello", "--project", "alder", "--json", "--log-level", "error")
        note, = map(json.loads, done.stderr.splitlines())
        self.assertEqual((note["level"], note["code"]), ("warning", found["fallback"]["code"]))
        done = self.good("run", *TINY, "-p", "hello", "--project", "alder", "--log-level", "info")
        self.assertIn("not loaded", done.stderr)
        for more, env in ((["--fallback", "error"], {}), ([], {"GRAFT_FALLBACK": "error"})):
            done = self.graft("run", *TINY, "-p", "hello", "--project", "alder", *more, "--json", **env)
            self.assertEqual(done.returncode, 1, done.stderr)
            answer = json.loads(done.stdout)
            self.assertEqual((answer["finish_reason"], answer["error"]["code"]), ("error", found["fallback"]["code"]))

    def history(self):
        found = json.loads(self.good("adapter", "show", "alder", "--json").stdout)["adapter"]
        return [found["history"][k] for k in ("requests", "loads")] + [found["state"]]

    def test_uses_are_counted(self):
        self.answer("--project", "alder")
        self.answer("--project", "alder")
        self.assertEqual(self.history(), [2, 2, "ready"])

    def test_a_registry_in_use_or_not_writable_is_read(self):
        before = self.history()
        registry = Path(self.env["GRAFT_REGISTRY"])
        with open(f"{registry}.lock", "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self.assertIsNone(self.answer("--project", "alder")["fallback"])
        self.assertEqual(self.history(), before)
        if os.geteuid() != 0:
            registry.chmod(0o400)
            self.assertIsNone(self.answer("--project", "alder")["fallback"])
            self.assertEqual(self.history(), before)

    def test_log_lines_name_the_adapter(self):
        (self.adapter / "adapter_model.safetensors").write_bytes(b"no adapter")
        done = self.good("run", *TINY, "-p", "hello", "--project", "alder")
        entries = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
        about = [e for e in entries if e.get("project") == "alder"]
        self.assertTrue(about, entries)
        self.assertEqual(about[0]["adapter"], "default")
        self.assertIn("code", about[0])


if __name__ == "__main__":
    if not GRAFT:
        sys.exit("GRAFT_BIN must name the graft binary")
    if sys.argv[1:] == ["--table"]:
        shown = subprocess.run([GRAFT, "config", "--config", "/dev/null", "--json"], stdout=subprocess.PIPE, check=True)
        print("\n".join(table_rows({s["name"]: s for s in json.loads(shown.stdout)["settings"]})))
    else:
        unittest.main()
