"""What tests of the command on the tiny bases of tests/oracle/golden share. GRAFT_BIN names the binary. Python's standard library only."""
import array
import json
import math
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

import command

GOLDEN = Path(__file__).resolve().parents[2] / "tests/oracle/golden"
GRAFT = os.environ.get("GRAFT_BIN")
TIMEOUT = 300
os.environ.update(GRAFT_CONFIG="/dev/null", GRAFT_REGISTRY="/nonexistent/registry.db")
MANIFEST = json.loads((GOLDEN / "manifest.json").read_text())
BASES = {b["base"]: b for b in MANIFEST["bases"]}
CASES = {(c["base"], c["case"]): c for c in MANIFEST["cases"]}


def graft(*args, **more):
    return subprocess.run([GRAFT, *map(str, args)], capture_output=True, text=True, timeout=TIMEOUT, **more)


def base(name):
    return GOLDEN / BASES[name]["gguf"]


def adapter(name, case="plain"):
    return GOLDEN / "adapters" / name / case


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def good(self, *args):
        done = graft(*args)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done

    def bad(self, code, *args, status=1):
        """Fails with this code and leaves the folder as it was."""
        before = sorted(self.folder.rglob("*"))
        message = command.refused(self, graft, status, code, args, {})
        self.assertEqual(sorted(self.folder.rglob("*")), before)
        return message

    def logits(self, name, model, *more):
        """Of the base's tokens, by `model`."""
        out = self.folder / "logits"
        tokens = ",".join(map(str, BASES[name]["tokens"]))
        self.good("score", "-m", model, "-t", "1", "--kv", "f32", "--tokens", tokens, "--logits", out, *more)
        values = array.array("f", out.read_bytes())
        out.unlink()
        self.assertEqual(len(values), len(BASES[name]["tokens"]) * BASES[name]["n_vocab"])
        return values

    def error(self, got, want):
        return math.sqrt(math.fsum((g - w) ** 2 for g, w in zip(got, want)) / math.fsum(w * w for w in want))


def main():
    if not GRAFT:
        raise SystemExit("GRAFT_BIN is not set")
    unittest.main()
