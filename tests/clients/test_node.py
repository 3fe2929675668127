"""openai and ollama for Node.js: the scripts beside this file, by Node's own test runner."""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from common import KEY, NAMES, PROMPT, SCHEMA, TOKENS, ClientCase, FullServer, known

HERE = Path(__file__).resolve().parent


class Node(ClientCase):
    def run_script(self, name, **more):
        """The script must lie beside the packages to find them."""
        facts = {"root": self.root, "key": KEY, "names": NAMES, "prompt": PROMPT, "tokens": TOKENS, "schema": SCHEMA,
                 "known": {n: known(n) for n in NAMES}, **more}
        with tempfile.TemporaryDirectory(dir=os.environ["CLIENTS_NODE"]) as folder:
            shutil.copy(HERE / name, folder)
            done = subprocess.run(["node", "--test", "--test-reporter=spec", Path(folder) / name], capture_output=True, text=True,
                                  stdin=subprocess.DEVNULL, timeout=300, env={**os.environ, "CLIENT_FACTS": json.dumps(facts)})
        sys.stderr.write(done.stdout + done.stderr)
        self.assertEqual(done.returncode, 0)
        self.assertNotIn("ℹ tests 0\n", done.stdout)

    def test_openai(self):
        with FullServer() as full:
            self.run_script("openai.test.mjs", full=full.root)
        self.settled()

    def test_ollama(self):
        self.run_script("ollama.test.mjs")
        self.settled()


if __name__ == "__main__":
    unittest.main(verbosity=2)
