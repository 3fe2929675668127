"""The manifest of bad adapters: what each file is, and the one code with which it must be refused, at every door.

The rows are those of docs/bad-inputs.md, which this script prints; the files files.py, json_text.py, container.py, config.py,
tensors.py, options.py, gguf.py and mixed.py hold them, letter by letter. Everything in them is the same on each run (SEED).

usage: table.py              the documentation
       table.py FOLDER       all the files, each case below FOLDER/ROW-NUMBER, and FOLDER/manifest.json
"""

import json
import os
import random
import sys

from making import Good

SEED = 20260701

LETTERS = {
    "F": "files and paths", "J": "JSON, as adapter_config.json", "S": "the safetensors container", "C": "adapter_config.json",
    "L": "tensors against the base", "O": "options that change more than matrices", "G": "GGUF adapters", "M": "two faults in one",
}


class ANY:
    """In place of a code: refused or not, as long as all doors agree and nothing breaks. For changes whose meaning is a matter of luck."""


class Case:
    """
    expected   the code; None: loads; ANY
    below      the code where adapters must lie below a folder (the server, a scan), if links decide: None = the same
    by_name    the code of a load by name, if the probe that it ends with decides: None = the same
    """

    def __init__(self, row, variant, expected, maker, below=None, by_name=None):
        self.row, self.variant, self.expected, self.maker = row, variant, expected, maker
        self.below = below or expected
        self.by_name = by_name or expected
        self.number = 0

    @property
    def name(self):
        return f"{self.row}-{self.number:03d}"

    def make(self, folder):
        """Writes the case below the empty folder; the path to hand to graft."""
        return self.maker(folder, GOOD.copy())


GOOD = Good()
CASES = []


def add(row, variant, expected, maker, below=None, by_name=None):
    CASES.append(Case(row, variant, expected, maker, below, by_name))


def case(row, variant, expected, below=None):
    """For a maker: (empty folder, good adapter to spoil) -> path to hand to graft."""
    def take(maker):
        add(row, variant, expected, maker, below)
        return maker
    return take


def dice(*about):
    """A random generator of one case's own, so that a new case changes no other."""
    return random.Random(f"{SEED} {about}")


def cases():
    import files, json_text, container, config, tensors, options, gguf, mixed  # noqa: E401,F401 each adds to CASES
    counts = {}
    for c in CASES:
        counts[c.row] = c.number = counts.get(c.row, 0) + 1
    return CASES


def few(found, most):
    """Of each row the first `most` cases of each code."""
    counts = {}
    for c in found:
        counts[c.row, c.expected] = counts.get((c.row, c.expected), 0) + 1
        if counts[c.row, c.expected] <= most:
            yield c


def shown(c):
    code = {None: "loads", ANY: "any, the same everywhere"}.get(c.expected, f"`{c.expected}`")
    code += f"; below a root `{c.below}`" if c.below != c.expected else ""
    return code + (f"; by name `{c.by_name}`" if c.by_name != c.expected else "")


def plain(variant):
    """As text in a table of Markdown."""
    for c in "\\|*_[]<>`#":
        variant = variant.replace(c, "\\" + c)
    return "".join(ch if ch.isprintable() else f"\\\\x{ord(ch):02x}" for ch in variant)


def markdown(found):
    letters = ", ".join(f"{letter}: {words}" for letter, words in LETTERS.items())
    print(f"""# Bad inputs

What graft does with adapters that are not what they should be. The tests make {len(found)} of them (`tests/bad_inputs`,
seed {SEED}), those below, and take each through every door: `graft inspect`, an open by path, `graft adapter add`, `graft adapters scan`, the
load of a registered adapter, and a server's `POST /v1/load_lora_adapter` and requests by name. The code is the same at each. Where a door
cannot know yet, because it has no base model (add, scan), it accepts, and the first load says the code.

It must also hold each time: the process lives, and the base's greedy tokens are what they were; the message is one line that names the file,
tensor or key, with nothing raw of the file in it; nothing is registered, or it is `failed` with its code; what served under the name before goes
on; descriptors, threads and memory are what they were, and no more was taken meanwhile than the file's own header justifies; answers of other
adapters that are under way come out the same.

{letters}. "loads" stands where a stricter reader might refuse.
This page is made by `python3 tests/bad_inputs/table.py`; `make check` fails when it is out of date. The codes are explained in
[errors.md](errors.md).

| row | input | code |
| --- | --- | --- |""")
    groups = {}
    for c in found:
        groups.setdefault((c.row, shown(c)), []).append(plain(c.variant))
    for (row, code), variants in groups.items():
        print(f"| {row} | {'; '.join(variants)} | {code} |")


def generate(found, root):
    """All files below `root`. Returns (case, path) pairs."""
    made = []
    for c in found:
        folder = os.path.join(root, c.name)
        os.makedirs(folder)
        made.append((c, c.make(folder)))
    return made


def main():
    found = cases()
    if len(sys.argv) < 2:
        markdown(found)
        return
    rows = [{"row": c.row, "variant": c.variant, "expected": "any" if c.expected is ANY else c.expected, "path": path}
            for c, path in generate(found, sys.argv[1])]
    with open(os.path.join(sys.argv[1], "manifest.json"), "w") as f:
        json.dump(rows, f, indent=1)


if __name__ == "__main__":
    sys.modules["table"] = sys.modules["__main__"]  # the rows import it
    main()
