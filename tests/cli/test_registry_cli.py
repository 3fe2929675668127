#!/usr/bin/env python3
"""Tests of `graft project`, `graft adapter` and `graft adapters` from outside.

GRAFT_BIN names the binary (required). Adapters come from tests/oracle/golden. Python's standard library only.
"""
import fcntl
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

import command

ROOT = Path(__file__).resolve().parents[2]
ADAPTERS = ROOT / "tests/oracle/golden/adapters/llama"
PLAIN = ADAPTERS / "plain"
RSLORA = ADAPTERS / "rslora"
GRAFT = os.environ.get("GRAFT_BIN")
TIMEOUT = 120
VERBS = ["project add", "project list", "project show", "project rename", "project rm", "adapter add", "adapter list",
         "adapter show", "adapter rm", "adapter pin", "adapter unpin", "adapter reload", "adapters scan", "registry check",
         "registry recover"]
HISTORY = ["requests", "tokens", "loads", "failures", "evictions", "unloads", "fallbacks", "load_ms", "last_loaded", "last_used"]
ADAPTER = ["project", "adapter", "state", "path", "generation", "format", "rank", "file_bytes", "bytes", "base", "pinned", "error",
           "created", "changed", "history"]


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.registry = self.folder / "registry.db"
        self.env = {k: v for k, v in os.environ.items() if k not in ("GRAFT_REGISTRY", "XDG_DATA_HOME")}
        self.env.update(HOME=str(self.folder / "home"), GRAFT_REGISTRY=str(self.registry))

    def graft(self, *args, **env):
        return subprocess.run([GRAFT, *map(str, args)], capture_output=True, encoding="utf-8", timeout=TIMEOUT,
                              stdin=subprocess.DEVNULL, env={**self.env, **env})

    def good(self, *args, **env):
        done = self.graft(*args, **env)
        self.assertEqual(done.returncode, 0, (args, done.stderr))
        self.assertEqual(done.stderr, "")
        return done.stdout

    def object(self, *args, **env):
        lines = self.good(*args, "--json", **env).splitlines()
        self.assertEqual(len(lines), 1, lines)
        return json.loads(lines[0])

    def bad(self, status, code, *args, **env):
        return command.refused(self, self.graft, status, code, args, env)

    def adapter(self, name):
        return self.object("adapter", "show", name)["adapter"]

    def copy(self, source, name):
        return command.copy_adapter(source, self.folder / name)


class Usage(Case):
    def test_help(self):
        for verb in VERBS:
            text = self.good(*verb.split(), "--help")
            self.assertTrue(text.startswith(f"usage: graft {verb} "), text)
            for part in ["options:", "examples:", "exit codes:", "--json", "--registry", "GRAFT_REGISTRY"]:
                self.assertIn(part, text, verb)
            self.assertEqual(self.good(*verb.split(), "-h"), text)
        for group in ["project", "adapter", "adapters", "registry"]:
            text = self.good(group, "--help")
            for verb in VERBS:
                first, second = verb.split()
                self.assertEqual(first == group, bool(re.search(rf"(?m)^  {second} ", text)) and first == group, verb)
            self.assertRegex(self.good("--help"), rf"(?m)^  {group} ")

    def test_wrong_usage(self):
        for group in ["project", "adapter", "adapters", "registry"]:
            self.assertIn("a verb is needed", self.bad(2, "bad_request", group))
            self.assertIn("frob", self.bad(2, "bad_request", group, "frob"))
        for verb in VERBS:
            self.assertIn("--frob", self.bad(2, "bad_request", *verb.split(), "--frob"))
            message = self.bad(2, "bad_request", *verb.split(), "a", "b", "c")
            self.assertIn(f"graft {verb} --help", message)
        self.bad(2, "bad_request", "project", "add")
        self.bad(2, "bad_request", "adapter", "add", "x")
        self.assertFalse(self.registry.exists())


class Registry(Case):
    def test_life(self):
        self.assertEqual(self.good("project", "add", "alder", PLAIN), f"added alder/default: {PLAIN}\n")
        self.assertEqual(self.object("project", "add", "birch"), {"project": "birch"})
        added = self.object("adapter", "add", "birch/formal", RSLORA)["adapter"]
        self.assertEqual(list(added), ADAPTER)
        self.assertEqual(list(added["history"]), HISTORY)
        self.assertEqual((added["project"], added["adapter"], added["state"]), ("birch", "formal", "registered"))
        self.assertEqual((added["format"], added["path"], added["pinned"]), ("peft", str(RSLORA), False))
        self.assertEqual(added["file_bytes"], (RSLORA / "adapter_model.safetensors").stat().st_size)
        self.assertRegex(added["generation"], r"\A[0-9a-f]{64}\Z")
        self.assertRegex(added["created"], r"\A20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z")
        self.assertEqual((added["bytes"], added["base"], added["error"]), (None, None, None))
        self.assertEqual((added["history"]["requests"], added["history"]["last_used"]), (0, None))

        projects = self.object("project", "list")["projects"]
        self.assertEqual([(p["project"], p["adapters"]) for p in projects], [("alder", 1), ("birch", 1)])
        adapters = self.object("adapter", "list")["adapters"]
        self.assertEqual([(a["project"], a["adapter"]) for a in adapters], [("alder", "default"), ("birch", "formal")])
        self.assertEqual(self.object("adapter", "list", "birch")["adapters"], adapters[1:])
        self.assertEqual(self.object("project", "show", "birch"), {"project": projects[1], "adapters": adapters[1:]})
        self.assertEqual(self.object("adapter", "show", "birch/formal"), {"adapter": adapters[1], "events": []})

        self.assertTrue(self.object("adapter", "pin", "alder")["adapter"]["pinned"])
        self.assertTrue(self.adapter("alder")["pinned"])
        self.assertFalse(self.object("adapter", "unpin", "alder/default")["adapter"]["pinned"])
        self.assertEqual(self.object("project", "rename", "alder", "elder"), {"project": "elder"})
        self.bad(1, "not_found", "adapter", "show", "alder")
        self.assertEqual(self.adapter("elder")["path"], str(PLAIN))
        self.assertEqual(self.object("adapter", "rm", "birch/formal"), {"removed": {"project": "birch", "adapter": "formal"}})
        self.assertEqual(self.object("project", "rm", "elder"), {"removed": "elder"})
        self.assertEqual(self.object("adapter", "list"), {"adapters": []})
        self.assertTrue((PLAIN / "adapter_config.json").exists())

    def test_tables(self):
        self.good("project", "add", "alder", PLAIN)
        self.good("adapter", "pin", "alder")
        lines = self.good("adapter", "list").splitlines()
        self.assertEqual(lines[0].split(), ["project", "adapter", "state", "format", "rank", "file", "memory", "requests", "last", "used"])
        self.assertRegex(lines[2], r"^alder +default +registered, pinned +peft +4 +[\d.]+ KiB +- +0  -$")
        self.assertEqual(self.good("project", "list").splitlines()[0].split()[:2], ["project", "adapters"])
        self.assertRegex(self.good("project", "show", "alder"), r"(?m)^alder +default +registered")
        text = self.good("adapter", "show", "alder")
        for part in [str(PLAIN), self.adapter("alder")["generation"], "0 requests"]:
            self.assertIn(part, text)

    def test_conflicts(self):
        self.good("project", "add", "alder", PLAIN)
        self.bad(1, "conflict", "project", "add", "alder")
        self.bad(1, "conflict", "project", "add", "alder", PLAIN)
        self.good("adapter", "add", "alder", PLAIN)  # the same again
        self.bad(1, "conflict", "adapter", "add", "alder", RSLORA)
        before = self.adapter("alder")
        self.good("adapter", "add", "alder", RSLORA, "--replace")
        self.assertNotEqual(self.adapter("alder")["generation"], before["generation"])
        self.good("project", "add", "birch")
        self.bad(1, "conflict", "project", "rename", "alder", "birch")
        self.bad(1, "not_found", "project", "rename", "x", "y")
        self.bad(1, "not_found", "adapter", "add", "x", PLAIN)
        for verb in ["show", "rm", "pin", "unpin", "reload"]:
            self.bad(1, "not_found", "adapter", verb, "alder/x")
            self.bad(1, "not_found", "adapter", verb, "x")

    def test_names_and_paths(self):
        self.good("project", "add", "alder")
        for name in ["", ".", "..", "a b", "caf\u00e9", "a\n", "\x1b[1m", "x" * 129]:
            self.bad(1, "bad_name", "project", "add", name)
            self.bad(1, "bad_name", "adapter", "add", f"alder/{name}", PLAIN)
        self.bad(1, "bad_name", "adapter", "show", "../../etc/passwd")
        self.bad(1, "bad_name", "project", "add", "a/b", PLAIN)
        self.bad(1, "adapter_file_missing", "adapter", "add", "alder", self.folder / "nowhere")
        self.bad(1, "missing_file", "adapter", "add", "alder", self.folder)
        self.bad(1, "unsupported_adapter", "project", "add", "birch", ADAPTERS / "loha")
        self.assertEqual(len(self.object("project", "list")["projects"]), 1)  # the project came to nothing too
        done = subprocess.run([GRAFT, "adapter", "add", "alder", "./plain/"], cwd=ADAPTERS, env=self.env, capture_output=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.adapter("alder")["path"], str(PLAIN))

    def test_reload(self):
        path = self.copy(PLAIN, "mine")
        self.good("project", "add", "alder", path)
        before = self.adapter("alder")
        self.assertTrue(self.good("adapter", "reload", "alder").startswith("unchanged: alder/default"))
        shutil.copy(RSLORA / "adapter_config.json", path / "adapter_config.json")
        self.assertIn("other content", self.good("adapter", "reload", "alder"))
        after = self.adapter("alder")
        self.assertNotEqual(after["generation"], before["generation"])
        (path / "adapter_model.safetensors").write_bytes(b"short")
        self.bad(1, "header_too_small", "adapter", "reload", "alder")
        self.assertEqual(self.adapter("alder"), after)

    def test_scan(self):
        store = self.folder / "store"
        store.mkdir()
        shutil.copytree(PLAIN, store / "alder")
        shutil.copytree(RSLORA, store / "my project")
        shutil.copytree(ADAPTERS / "loha", store / "cedar")
        (store / "notes.txt").write_text("x")
        found = self.object("adapters", "scan", store)
        self.assertEqual([(i["outcome"], i["project"]) for i in found["items"]],
                         [("added", "alder"), ("broken", "cedar"), ("added", "my-project")])
        self.assertEqual(found["items"][1]["error"]["code"], "unsupported_adapter")
        self.assertEqual((found["added"], found["broken"], found["complete"]), (2, 1, True))
        cedar = self.adapter("cedar")
        self.assertEqual((cedar["state"], cedar["error"]["code"]), ("failed", "unsupported_adapter"))
        table = self.good("adapter", "list")
        self.assertIn("\n  unsupported_adapter: ", table)
        text = self.good("adapters", "scan", store)
        self.assertIn("0 added, 2 known, 1 broken, 0 refused, 0 skipped", text)
        self.assertRegex(text, r"(?m)^broken +cedar/default +\S+: unsupported_adapter: ")
        self.bad(1, "adapter_file_missing", "adapters", "scan", store / "nowhere")
        deep = store
        for _ in range(18):
            deep = deep / "d"
        deep.mkdir(parents=True)
        done = self.graft("adapters", "scan", store)
        self.assertEqual(done.returncode, 1)
        self.assertIn("2 known", done.stdout)
        self.assertRegex(done.stderr, r"\Agraft: error: too_large: .*\n\Z")


class Place(Case):
    def test_order(self):
        option, home, data = self.folder / "option.db", self.folder / "home", self.folder / "data"
        self.good("project", "add", "a", "--registry", option)
        self.good("project", "add", "b")
        self.good("project", "add", "c", GRAFT_REGISTRY="", XDG_DATA_HOME=str(data))
        home.mkdir()
        self.good("project", "add", "d", GRAFT_REGISTRY="", XDG_DATA_HOME="relative")
        mac = sys.platform == "darwin"
        default = home / ("Library/Application Support/graft" if mac else ".local/share/graft") / "registry.db"
        for path, name in [(option, "a"), (self.registry, "b"), (data / "graft/registry.db", "c"), (default, "d")]:
            found = self.object("project", "list", "--registry", path)["projects"]
            self.assertEqual([p["project"] for p in found], [name])
            self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        self.assertIn("--registry", self.bad(1, "bad_request", "project", "list", GRAFT_REGISTRY="", HOME=""))

    def test_none_yet(self):
        self.assertIn("graft project add", self.bad(1, "not_found", "project", "list"))
        self.assertFalse(self.registry.exists())
        self.bad(1, "not_found", "project", "add", "a", "--registry", self.folder / "no/such/folder/r.db")


class Faults(Case):
    def test_damaged(self):
        for content in [b"", b"SQLite format 3\0" + b"\xa5" * 8000, b"{}" * 100]:
            self.registry.write_bytes(content)
            self.bad(1, "registry_invalid", "adapter", "list")
            self.bad(1, "registry_invalid", "project", "add", "a")
            self.assertEqual(self.registry.read_bytes(), content)

    def test_recover(self):
        self.good("project", "add", "alder", PLAIN)
        self.good("project", "add", "birch")
        backup = Path(f"{self.registry}.backup")
        self.assertEqual(backup.stat().st_mode & 0o777, 0o600)
        whole = self.object("registry", "check")
        for which in "registry", "backup":
            self.assertEqual({k: whole[which][k] for k in ("whole", "projects", "adapters", "error")},
                             {"whole": True, "projects": 2, "adapters": 1, "error": None})
        self.assertIn("registry  whole: 2 projects, 1 adapters", self.good("registry", "check"))
        self.assertIn("nothing to recover", self.bad(1, "conflict", "registry", "recover"))
        damaged = self.registry.read_bytes()[:9000]
        self.registry.write_bytes(damaged)
        message = self.bad(1, "registry_invalid", "project", "list")
        self.assertIn("`graft registry recover` puts the backup of 20", message)
        self.assertIn("registry.db.backup", message)
        done = self.graft("registry", "check", "--json")
        self.assertEqual(done.returncode, 1)
        self.assertEqual(json.loads(done.stdout)["registry"]["error"]["code"], "registry_invalid")
        with open(f"{self.registry}.lock", "r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.bad(1, "registry_busy", "registry", "recover", "--registry-wait-ms", "0")
        result = self.object("registry", "recover")
        self.assertEqual(result["backup"]["projects"], 2)
        self.assertRegex(result["damaged"], r"^registry\.db\.damaged-\d{8}T\d{6}Z$")
        self.assertEqual((self.folder / result["damaged"]).read_bytes(), damaged)
        self.assertEqual([p["project"] for p in self.object("project", "list")["projects"]], ["alder", "birch"])
        self.registry.unlink()
        self.assertIn("is gone", self.bad(1, "registry_invalid", "project", "add", "x"))
        self.assertIn("recovered 2 projects, 1 adapters", self.good("registry", "recover"))
        self.registry.write_bytes(b"x")
        backup.write_bytes(b"x")
        self.assertIn("damaged too", self.bad(1, "registry_invalid", "project", "list"))
        self.bad(1, "registry_invalid", "registry", "recover")

    def test_references(self):
        """hf:ORG/NAME in a cache laid out as Hugging Face's: links into blobs."""
        hub = self.folder / "hub"
        snapshot = hub / "models--org--alder/snapshots" / ("0" * 40)
        blobs = hub / "models--org--alder/blobs"
        snapshot.mkdir(parents=True)
        blobs.mkdir()
        (hub / "models--org--alder/refs").mkdir()
        (hub / "models--org--alder/refs/main").write_text("0" * 40)
        for file in PLAIN.iterdir():
            shutil.copy(file, blobs / file.name)
            (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
        env = {"HF_HUB_CACHE": str(hub)}
        self.good("project", "add", "alder", "hf:org/alder", **env)
        self.assertEqual(self.adapter("alder")["path"], str(snapshot.resolve()))
        self.good("adapter", "add", "alder/again", "hf:org/alder@main", "--hf-hub", hub)
        self.assertIn("models--org--none/refs/main", self.bad(1, "adapter_file_missing", "project", "add", "b", "hf:org/none", **env))
        self.bad(1, "bad_request", "project", "add", "b", "hf:../../alder", **env)
        self.bad(1, "adapter_file_missing", "project", "add", "b", "ollama:none")
        (snapshot / "adapter_model.safetensors").unlink()
        (snapshot / "adapter_model.safetensors").symlink_to("/etc/passwd")
        self.bad(1, "outside_root", "project", "add", "b", "hf:org/alder", **env)

    def test_newer(self):
        self.good("project", "add", "a")
        with sqlite3.connect(self.registry) as db:
            db.execute("PRAGMA user_version=99")
        db.close()
        self.assertIn("version 99", self.bad(1, "registry_invalid", "project", "list"))

    def test_another_process_writes(self):
        self.good("project", "add", "alder", PLAIN)
        with open(f"{self.registry}.lock", "r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write("4711\n")
            lock.flush()
            self.assertIn("process 4711 writes", self.bad(1, "registry_busy", "project", "add", "b"))
            self.assertEqual(self.adapter("alder")["state"], "registered")
            self.assertEqual(len(self.object("project", "list")["projects"]), 1)
        self.good("project", "add", "b")

    def test_many_at_once(self):
        running = [subprocess.Popen([GRAFT, "project", "add", f"p{i}"], env=self.env, stdout=subprocess.DEVNULL,
                                    stderr=subprocess.PIPE) for i in range(8)]
        for process in running:
            self.assertEqual(process.wait(TIMEOUT), 0, process.stderr.read())
            process.stderr.close()
        self.assertEqual(len(self.object("project", "list")["projects"]), 8)

    def test_killed(self):
        """What the command said is there, however it ends."""
        acknowledged = []
        for i in range(30):
            process = subprocess.Popen([GRAFT, "project", "add", f"k{i}", PLAIN], env=self.env, stdout=subprocess.PIPE,
                                       stderr=subprocess.DEVNULL, bufsize=0)
            time.sleep(0.002 * (i % 15))
            process.send_signal(signal.SIGKILL)
            if b"added" in process.communicate(timeout=TIMEOUT)[0]:
                acknowledged.append(f"k{i}")
        self.good("project", "add", "last")
        found = {p["project"]: p["adapters"] for p in self.object("project", "list")["projects"]}
        self.assertEqual({name: found.get(name) for name in acknowledged}, dict.fromkeys(acknowledged, 1))
        self.assertTrue(all(n == 1 for name, n in found.items() if name != "last"))
        with sqlite3.connect(self.registry) as db:
            self.assertEqual(db.execute("PRAGMA integrity_check").fetchall(), [("ok",)])
        db.close()
        self.assertEqual(sorted(p.name for p in self.folder.glob("registry.db.new*")), [])


if __name__ == "__main__":
    if not GRAFT:
        sys.exit("GRAFT_BIN must name the graft binary")
    unittest.main()
