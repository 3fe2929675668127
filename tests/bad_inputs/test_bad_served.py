"""
Takes every file of the manifest (table.py) to a server: by POST /v1/load_lora_adapter under a new name, in the place of a good adapter, and by
the name under which a scan registered it. One server process for all, with other adapters' answers under way.

Two cases of each row and code, which are more than 400; with GRAFT_BAD_INPUTS=all, all.

usage: GRAFT_BIN=build/graft python3 tests/bad_inputs/test_bad_served.py [ROW…]
"""

import os
import sys
import threading
import unittest
from pathlib import Path

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "../server")]
import serving  # noqa: E402
import table  # noqa: E402
from test_bad_inputs import WANTED, Files  # noqa: E402

GREEDY = {"prompt": serving.PROMPT, "max_tokens": 16, "temperature": 0, "cache_prompt": False}


def started(files):
    """A server, without root's powers, whose folder of adapters the files lie in; among them what serves well."""
    if files.before:
        wrapper = Path(files.temporary) / "graft"
        wrapper.write_text("#!/bin/sh\nexec " + " ".join(files.before) + f' "{os.path.abspath(serving.GRAFT)}" "$@"\n')
        wrapper.chmod(0o755)
        serving.GRAFT = wrapper
    for name in ("alder", "birch"):
        folder = Path(files.root) / name
        folder.mkdir()
        golden = serving.GOLDEN / "adapters/llama" / serving.ADAPTERS[name]
        for file in golden.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    return serving.Server("--slots", 4, "--ctx", 64, folder=files.temporary)


class Served(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.files = Files("adapters", most=1 << 20 if WANTED or os.environ.get("GRAFT_BAD_INPUTS") == "all" else 2)
        cls.addClassCleanup(cls.files.close)
        cls.server = started(cls.files)

    @classmethod
    def tearDownClass(cls):
        status = cls.server.stop()
        log = cls.server.log()
        assert status == 0, log[-4000:]
        assert "Sanitizer" not in log, log[-20000:]

    def setUp(self):
        self.connection = self.server.connect()
        self.addCleanup(self.connection.close)

    def post(self, path, **body):
        return self.server.post(path, body, connection=self.connection)

    def answer(self, model=None):
        """The base's unless an adapter is named; never the base's in its place."""
        reply = self.post("/v1/completions", **({"model": model, "fallback": "error"} if model else {}), **GREEDY)
        self.assertEqual(reply.status, 200, reply.text)
        return reply.json["choices"][0]["text"]

    def holdings(self):
        process = Path("/proc") / str(self.server.process.pid)
        return len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))

    def names(self):
        return [(a["id"], a["source"]) for a in self.server.get("/v1/lora_adapters").json["data"]]

    def alongside(self, work):
        """Runs `work` while answers of another adapter are given one after the other; all must be the same. Returns them."""
        seen, stop = [], threading.Event()
        first = self.answer("alder")

        def ask():
            while not stop.is_set():
                seen.append(self.server.post("/v1/completions", {"model": "alder", **GREEDY}).json["choices"][0]["text"])

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            work()
        finally:
            stop.set()
            thread.join()
        self.assertEqual(set(seen), {first})
        return seen

    def said(self, reply, where):
        """The code of a reply, None if it is good."""
        if reply.status == 200:
            return None
        error = reply.json["error"]
        self.assertIn(reply.status // 100, (4,), reply.text)
        self.assertTrue(error["message"])
        self.assertFalse([c for c in error["message"] if ord(c) < 32 or 0x7f <= ord(c) < 0xa0], error)
        return error[where]

    def every(self, check):
        for case, path in self.files.cases:
            with self.subTest(case=case.name, variant=case.variant):
                check(case, path)

    def test_all(self):
        """The same code at each of a server's doors; and what the process holds, knows and answers is as it was."""
        base, self.birch = self.answer(), self.answer("birch")
        before, names = self.holdings(), self.names()
        self.registered = dict(names)
        for door in (self.load_new, self.load_in_place, self.ask_by_name):
            with self.subTest(door=door.__name__):
                seen = self.alongside(lambda: self.every(door))
                self.assertGreater(len(seen), 1)
                self.assertEqual(self.answer(), base)
        self.assertEqual(self.names(), names)
        serving.wait_until(lambda: self.holdings() == before, f"{before} descriptors and threads, not {self.holdings()}")

    def expect(self, case, found):
        if case.expected is not table.ANY:
            self.assertEqual(found, case.below or case.by_name)

    def load_new(self, case, path):
        reply = self.post("/v1/load_lora_adapter", lora_name="fresh", lora_path=path)
        self.expect(case, self.said(reply, "reason"))
        if reply.status == 200:
            reply = self.post("/v1/unload_lora_adapter", lora_name="fresh", unregister=True)
            self.assertEqual(reply.status, 200, reply.text)

    def load_in_place(self, case, path):
        """What served so far goes on, whatever comes in its place."""
        reply = self.post("/v1/load_lora_adapter", lora_name="birch", lora_path=path, load_inplace=True)
        self.expect(case, self.said(reply, "reason"))
        if reply.status == 200:
            reply = self.post("/v1/load_lora_adapter", lora_name="birch", lora_path=self.registered["birch"], load_inplace=True)
            self.assertEqual(reply.status, 200, reply.text)
        self.assertEqual(self.answer("birch"), self.birch)

    def ask_by_name(self, case, path):
        if self.registered.get(case.name) != path:  # nothing there that a scan takes for an adapter, or it leads out
            self.assertIn(case.row[0], "FGO")
            return
        reply = self.post("/v1/completions", model=case.name, fallback="error", **GREEDY)
        self.expect(case, self.said(reply, "code"))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0]] + [a for a in sys.argv[1:] if a.startswith("-")])
