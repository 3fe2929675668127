"""schemathesis makes requests up from docs/openapi.json, right ones and wrong ones: no reply that the file does not tell, no crash, and
the server goes on. The same requests each time: FUZZ_SEED (1) and FUZZ_EXAMPLES (for each call) say which."""
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from common import KEY, PROMPT, TOKENS, known
from serving import ADAPTERS, ROOT, Server

HERE = Path(__file__).resolve().parent
EXAMPLES = os.environ.get("FUZZ_EXAMPLES", "10")
# Not asked: whether all that fits the schema is taken. A grammar that is none, a prompt that is too long and a number of no token are
# refused, and no schema can say so.
NOT_CHECKED = ["positive_data_acceptance"]


class Fuzz(unittest.TestCase):
    def fuzz(self, key, exclude=(), not_checked=(), projects=None):
        with tempfile.TemporaryDirectory() as folder:
            server = Server("--queue", "64", folder=folder, env={"GRAFT_API_KEY": key} if key else None)
            try:
                used = self.make_key(server, key, projects) if projects else key
                self.run_on(server, used, [*NOT_CHECKED, *not_checked], exclude)
                self.check_alder(server, self.headers(key))
                self.assertEqual(server.get("/health").json["status"], "ok")
            finally:
                status, log = server.stop(), server.log()
                server.close()
            self.assertEqual(status, 0, log[-4000:])
            self.assertNotIn("Sanitizer", log)

    def make_key(self, server, admin, projects):
        return server.post("/v1/keys", {"name": "fuzz", "projects": projects}, headers=self.headers(admin)).json["key"]

    def check_alder(self, server, headers):
        """It answers as ever, once it is registered as it was: somebody may have taken the name away or given it to another folder."""
        load = {"lora_name": "alder", "lora_path": str(server.adapters / "alder"), "load_inplace": True}
        self.assertEqual(server.post("/v1/load_lora_adapter", load, headers=headers).status, 200)
        body = {"model": "alder", "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
        answer = server.post("/v1/completions", body, headers=headers)
        self.assertEqual(answer.json["choices"][0]["text"], known("alder", chat=False))

    def headers(self, key):
        return {"Authorization": f"Bearer {key}"} if key else {}

    def run_on(self, server, key, not_checked, exclude):
        command = ["st", "--config-file", HERE / "schemathesis.toml", "run", ROOT / "docs/openapi.json", "--url",
                   f"http://127.0.0.1:{server.port}", "--seed", os.environ.get("FUZZ_SEED", "1"), "--max-examples", EXAMPLES,
                   "--request-timeout", "60", "--continue-on-failure", "--no-color", "--exclude-checks", ",".join(not_checked)]
        for name, value in self.headers(key).items():
            command += ["--header", f"{name}: {value}"]
        for path in exclude:
            command += ["--exclude-path", path]
        done = subprocess.run([str(c) for c in command], cwd=server.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=900, env={**os.environ, "PYTHONPATH": str(HERE), "FUZZ_ADAPTERS": str(server.adapters)})
        sys.stderr.buffer.write(done.stdout)
        self.assertEqual(done.returncode, 0)

    def test_with_a_key(self):
        self.fuzz(KEY)

    def test_with_a_projects_key(self):
        self.fuzz(KEY, projects=["alder"])

    def test_without_a_key(self):
        # A key that is made there would shut everybody out.
        self.fuzz(None, exclude=["/v1/keys", "/v1/keys/{name}"], not_checked=["ignored_auth"])


if __name__ == "__main__":
    assert set(ADAPTERS) == {"alder", "birch", "cedar"}, "fuzz_hooks.py names them"
    unittest.main(verbosity=2)
