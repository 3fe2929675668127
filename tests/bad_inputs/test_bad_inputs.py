"""Runs the table of bad adapters (table.py) through graft: right code, one clear line, nothing crashes.

usage: GRAFT_BIN=build/graft python3 tests/bad_inputs/test_bad_inputs.py [ROW…]
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import table  # noqa: E402

GRAFT = os.environ.get("GRAFT_BIN", os.path.join(HERE, "../../build/graft"))
GOLDEN = os.path.join(HERE, "../oracle/golden")
BASE = os.path.join(GOLDEN, "bases/llama.gguf")
GOOD = os.path.join(GOLDEN, "adapters/llama/plain")
TIMEOUT = 60  # against hangs, not a measurement


def without_root_powers():
    """Words in front of a command so that file permissions count even for root; None if that can't be had."""
    if os.geteuid() != 0:
        return []
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
    return drop if shutil.which("setpriv") else None


def graft(*args, before=()):
    return subprocess.run([*before, GRAFT, *args], capture_output=True, timeout=TIMEOUT)


class BadInputs(unittest.TestCase):
    def check(self, row, variant, expected, maker):
        before = []
        if row == "F04":
            before = without_root_powers()
            if before is None:
                self.skipTest("permissions do not bind root and setpriv is not there")
        folder = tempfile.mkdtemp(prefix="graft-bad-")
        try:
            path = maker(folder, table.Good(GOOD))
            for door, done in (("inspect", graft("inspect", "-m", BASE, path, "--json", before=before)),
                               ("run", graft("run", "-m", BASE, "--slots", "1", "--ctx", "64", "--no-self-test", "-a", f"x={path}", "-p", "a", "-n", "1", "--temp", "0", before=before))):
                with self.subTest(row=row, variant=variant, door=door):
                    self.judge(expected, door, done)
        finally:
            for root, folders, _ in os.walk(folder):
                for name in folders:
                    os.chmod(os.path.join(root, name), 0o700)
            shutil.rmtree(folder)

    def judge(self, expected, door, done):
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        if expected is None:
            self.assertEqual(done.returncode, 0, out + err)
            return
        self.assertEqual(done.returncode, 1, f"exit status\n{out}{err}")
        if door == "inspect":
            found = json.loads(out)
            self.assertFalse(found["loadable"])
            codes = [r["code"] for r in found["reasons"] if r["severity"] == "error"]
            self.assertEqual(codes[:1], [expected], found["reasons"])
            for reason in found["reasons"]:
                self.assertTrue(reason["message"])
                self.assertFalse(any(ord(c) < 32 for c in reason["message"] + reason["where"]), reason)
        else:
            lines = [line for line in err.splitlines() if line.startswith("graft: error: ")]
            self.assertEqual(len(lines), 1, err)
            self.assertTrue(lines[0].startswith(f"graft: error: {expected}: "), lines[0])
            self.assertNotIn("\x1b", err)


def add(number, entry):
    row, variant, expected, maker = entry

    def test(self):
        self.check(row, variant, expected, maker)
    test.__doc__ = f"{row} {variant}"
    setattr(BadInputs, f"test_{number:03d}_{row}", test)


wanted = [a for a in sys.argv[1:] if not a.startswith("-")]
for number, entry in enumerate(table.CASES):
    if not wanted or entry[0] in wanted:
        add(number, entry)

if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0]] + [a for a in sys.argv[1:] if a.startswith("-")])
