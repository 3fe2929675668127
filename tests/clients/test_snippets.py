"""Every block of docs/clients.md, as it stands there but for the address and the key."""
import os
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

from common import KEY, ClientCase
from serving import ROOT

BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "docs/clients.md").read_text(), re.M | re.S)
RUNS = {"sh": ["sh", "-eu"], "python": ["python"], "js": ["node"]}


class Snippets(ClientCase):
    def run_block(self, kind, text, folder):
        path = Path(folder) / {"sh": "block.sh", "python": "block.py", "js": "block.mjs"}[kind]
        path.write_text(text)
        before = self.metric("http_requests_total{status=\"2xx\"}")
        done = subprocess.run([*RUNS[kind], path], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120,
                              env={**os.environ, "LLM_USER_PATH": folder, "LITELLM_LOCAL_MODEL_COST_MAP": "True"})
        self.assertEqual(done.returncode, 0, text + done.stdout + done.stderr)
        self.assertTrue(done.stdout.strip(), text)
        self.assertNotIn('"error"', done.stdout)
        self.assertGreater(self.metric("http_requests_total{status=\"2xx\"}"), before + 1, "it asked graft")  # one is the metrics'

    def test_all(self):
        counts = {}
        # Beside Node's packages, which it finds from there.
        with tempfile.TemporaryDirectory(dir=os.environ["CLIENTS_NODE"]) as folder:
            for kind, text in BLOCKS:
                text = text.replace("localhost:8080", f"127.0.0.1:{self.server.port}").replace("YOUR-KEY", KEY)
                counts[kind] = counts.get(kind, 0) + 1
                if kind == "yaml":
                    (Path(folder) / "extra-openai-models.yaml").write_text(text)
                    continue
                with self.subTest(kind=kind, text=text):
                    self.run_block(kind, text, folder)
        self.assertEqual(counts, {"sh": 3, "python": 4, "js": 2, "yaml": 1})


if __name__ == "__main__":
    unittest.main(verbosity=2)
