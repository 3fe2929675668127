"""
Takes every file of the manifest (table.py) through the library's doors (doors.c), and one of each code through the command: the right
code at each, one clear line, nothing left behind.

usage: GRAFT_BIN=build/graft python3 tests/bad_inputs/test_bad_inputs.py [ROW…]
"""

import functools
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
from making import CONFIG, GOLDEN, WEIGHTS  # noqa: E402

GRAFT = os.environ.get("GRAFT_BIN", os.path.join(HERE, "../../build/graft"))
DOORS = os.path.join(os.path.dirname(os.path.abspath(GRAFT)), "tests/bad_inputs_doors")
BASE = os.path.join(GOLDEN, "bases/llama.gguf")
TIMEOUT = 600  # against hangs, not a measurement
CASES = table.cases()
WANTED = [a for a in sys.argv[1:] if not a.startswith("-")]
MIB = 1 << 20

# What an adapter's files can say only beside a base; adding and scanning, which have none, accept these.
NEED_A_BASE = {
    "bad_alpha", "bad_rank", "base_weights_included", "duplicate_target", "gguf_alora", "missing_pair", "non_finite", "out_of_range", "pattern_unused",
    "rank_mismatch", "unexpected_tensor", "unknown_target", "unmapped_tensors", "unsupported_adapter", "unsupported_pattern", "unsupported_target",
    "vocab_mismatch", "wrong_base", "wrong_shape", "zero_targets",
}
# What adding and scanning refuse on their own: the numbers and options of adapter_config.json, the whole of a container.
MUST_BE_REFUSED_AT_ONCE = {"C01", "C02", "C03", "C16", "C17", "C19", "C21"}


def without_root_powers():
    """Words in front of a command so that file permissions count even for root; None if that can't be had."""
    if os.geteuid() != 0:
        return []
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
    return drop if shutil.which("setpriv") else None


def sanitized():
    with open(GRAFT, "rb") as f:
        return b"__asan_init" in f.read()


class Files:
    """The manifest's files below a temporary folder, and the manifest itself: (case, path) pairs. `most`: of a row's cases of one code."""

    def __init__(self, name="files", most=1 << 20):
        self.temporary = tempfile.mkdtemp(prefix="graft-bad-")
        self.root = os.path.join(self.temporary, name)
        self.before = without_root_powers()
        found = [c for c in CASES if not WANTED or c.row in WANTED or c.name in WANTED]
        found = [c for c in table.few(found, most) if self.before is not None or c.row != "F04"]
        self.cases = table.generate(found, self.root)

    def close(self):
        for folder, names, _ in os.walk(self.temporary):
            for name in names:
                path = os.path.join(folder, name)
                if not os.path.islink(path):
                    os.chmod(path, 0o700)
        shutil.rmtree(self.temporary)

    def run(self, *command, **more):
        return subprocess.run([*(self.before or []), *command], capture_output=True, timeout=TIMEOUT, **more)


def read_bytes(path):
    """How much of the adapter's files is read before they are accepted, at most: config and header, none of them beyond its limit."""
    folder = os.path.isdir(path)
    total = 0
    for name, most in ((os.path.join(path, WEIGHTS), 16 * MIB + 8), (os.path.join(path, CONFIG), MIB)) if folder else ((path, 64 * MIB),):
        if os.path.isfile(name):
            total += min(os.path.getsize(name), most)
    return total


def each(check):
    """Makes a test of all cases out of one of a case."""
    @functools.wraps(check)
    def test(self):
        for case, path, line in self.said:
            with self.subTest(case=case.name, variant=case.variant):
                check(self, case, path, line)
    return test


class Doors(unittest.TestCase):
    """All files in one process."""

    @classmethod
    def setUpClass(cls):
        cls.files = Files()
        cls.addClassCleanup(cls.files.close)
        names = b"".join(os.fsencode(path) + b"\0" for _, path in cls.files.cases)
        done = cls.files.run(DOORS, BASE, os.path.join(cls.files.temporary, "registry.db"), cls.files.root, input=names)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        n = len(cls.files.cases)
        assert done.returncode == 0, (f"the process ended with {done.returncode} after {len(lines)} lines, at "
                                      f"{cls.files.cases[(len(lines) - 1) % n][1] if 0 < len(lines) <= 2 * n else 'no file'}\n{done.stderr.decode()}")
        cls.first, cls.last = lines[0], lines[-1]
        cls.said = [(case, path, {**looked, **added})
                    for (case, path), looked, added in zip(cls.files.cases, lines[1:n + 1], lines[n + 1:2 * n + 1])]
        cls.scanned = {line["path"]: line for line in lines[2 * n + 1:-1]}

    @each
    def test_code_at_each_door(self, case, path, line):
        """The expected one; with ANY at least the same one."""
        code = line["inspect"]["code"]
        if case.expected is not table.ANY:
            self.assertEqual(code, case.expected, line["inspect"])
        self.assertEqual(line["inspect"].get("loadable"), code is None)
        self.assertEqual(line["open"]["code"], code, line["open"])
        self.same_later(case, line["add"]["code"], line["load"], code)

    def same_later(self, case, at_first, load, code):
        """`at_first` is what a door without a base says, `load` what the load of its row did; null if there is none."""
        if at_first != code:
            self.assertIsNone(at_first)
            self.assertIn(code, NEED_A_BASE)
            self.assertNotIn(case.row, MUST_BE_REFUSED_AT_ONCE)
        if load:
            code = code or (None if case.by_name is table.ANY else case.by_name)
            self.assertEqual(load["code"], code, load)
            self.assertEqual(load["row"], code or "", load)
            self.assertEqual(load["state"], {None: "ready", "adapter_file_missing": "missing"}.get(code, "failed"), load)
        else:
            self.assertIsNotNone(at_first)

    @each
    def test_scan(self, case, path, line):
        """What the scan comes across has its code: that below a root, since a scan's folder is one."""
        find = self.scanned.get(path)
        if not find:  # no name of an adapter's there, behind a link, or no folder that could be read
            self.assertIn(case.row[0], "FO", path)
            return
        code = line["inspect"]["code"] if case.below == case.expected else case.below
        if find["outcome"] in ("refused", "skipped"):
            self.assertEqual(find["scan"]["code"], code, find)
            self.assertIn(code, ("outside_root", "not_an_adapter"))
        else:
            self.assertEqual(find["outcome"], "broken" if find["scan"]["code"] else "added", find)
            self.same_later(case, find["scan"]["code"], find["load"], code)

    @each
    def test_messages(self, case, path, line):
        """One line of printable text, which names something, and shows neither raw bytes nor folders that nobody named."""
        said = [line[door]["message"] for door in ("open", "add", "load") if line[door] and line[door]["code"]]
        said += [r["where"] + " " + r["message"] for r in line["inspect"].get("reasons", [])]
        said += [self.scanned[path]["scan"].get("message", "")] if path in self.scanned else []
        for text in said:
            self.assertTrue(text.strip() or path in self.scanned)
            self.assertLess(len(text), 700)
            self.assertFalse([c for c in text if ord(c) < 32 or 0x7f <= ord(c) < 0xa0 or ord(c) in (0x202e, 0x200b)], text)
            self.assertNotIn(self.files.temporary, text.replace(path, ""))

    @each
    def test_nothing_stays(self, case, path, line):
        """Descriptors, threads, bytes of graft's own: to the last one, each time. No row stays of what was refused."""
        before, after = line["held"]
        self.assertEqual(before, after)
        self.assertEqual(line["rows"], 0)

    def test_nothing_stays_of_all(self):
        first, last = self.first["held"], self.last["held"]
        self.assertEqual((first["fds"], first["threads"]), (last["fds"], last["threads"]))

    def test_base_answers_as_before(self):
        self.assertEqual(self.first["answer"], self.last["answer"])
        self.assertTrue(self.first["answer"])

    @unittest.skipIf(sanitized(), "the sanitizer keeps what was freed")
    @each
    def test_memory_while_reading(self, case, path, line):
        """A file cannot make graft take more than a fixed factor of what is read of it: nothing is sized by a number that only stands there."""
        self.assertLess(line["peak"], 8 * MIB + 16 * read_bytes(path))


class Command(unittest.TestCase):
    """The first case of each code through the command itself: every door there says the same, and exits as it should."""

    @classmethod
    def setUpClass(cls):
        cls.files = Files(most=1)
        cls.addClassCleanup(cls.files.close)
        cls.registry = os.path.join(cls.files.temporary, "registry.db")

    def graft(self, *args):
        return self.files.run(GRAFT, *args)

    def line(self, done, code):
        """The one error line; none if the code is None."""
        err = done.stderr.decode()
        lines = [line for line in err.splitlines() if line.startswith("graft: error: ")]
        self.assertNotIn("\x1b", err)
        if code is None:
            self.assertEqual((done.returncode, lines), (0, []), err)
        else:
            self.assertEqual(done.returncode, 1, err)
            self.assertEqual(len(lines), 1, err)
            self.assertTrue(lines[0].startswith(f"graft: error: {code}: "), lines[0])

    def test_one_of_each_code(self):
        self.assertEqual(self.graft("project", "add", "door", "--registry", self.registry).returncode, 0)
        seen = set()
        for case, path in self.files.cases:
            if case.expected in seen or case.expected is table.ANY:
                continue
            seen.add(case.expected)
            with self.subTest(case=case.name, variant=case.variant):
                self.inspect(path, case.expected)
                self.line(self.graft("run", "-m", BASE, "--slots", "1", "--ctx", "64", "--no-self-test", "-a", f"x={path}", "-p", "a", "-n", "1",
                                     "--temp", "0"), case.expected)
                self.add(case, path)

    def inspect(self, path, code):
        done = self.graft("inspect", "-m", BASE, path, "--json")
        found = json.loads(done.stdout)
        self.assertEqual(done.returncode, 1 if code else 0, done.stderr)
        self.assertEqual((found["loadable"], found["error"]), (code is None, code), found["reasons"])

    def add(self, case, path):
        done = self.graft("adapter", "add", f"door/{case.name}", path, "--registry", self.registry)
        self.line(done, case.expected if done.returncode or case.expected not in NEED_A_BASE else None)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0]] + [a for a in sys.argv[1:] if a.startswith("-")])
