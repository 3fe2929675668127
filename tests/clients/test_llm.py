"""llm, the command, with graft's models in its extra-openai-models.yaml."""
import json
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

from common import KEY, NAMES, PROMPT, SCHEMA, TOKENS, ClientCase, known

MODEL = """- model_id: graft-{name}
  model_name: {name}
  api_base: {url}
  api_key_name: graft
  supports_schema: true
"""


class Llm(ClientCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = tempfile.TemporaryDirectory()
        yaml = "".join(MODEL.format(name=name, url=cls.url) for name in [*NAMES, "elm"])
        (Path(cls.folder.name) / "extra-openai-models.yaml").write_text(yaml)
        assert cls.llm("keys", "set", "graft", "--value", KEY).returncode == 0

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()
        super().tearDownClass()

    @classmethod
    def llm(cls, *args):
        return subprocess.run(["llm", *map(str, args)], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120,
                              env={**os.environ, "LLM_USER_PATH": cls.folder.name})

    def ask(self, name, *args):
        return self.llm("-m", f"graft-{name}", PROMPT, "-o", "temperature", 0, "-o", "max_tokens", TOKENS, *args)

    def test_models(self):
        self.assertIn("graft-cedar", self.llm("models").stdout)

    def test_adapters_by_name(self):
        for name in NAMES:
            for how in ([], ["--no-stream"]):
                done = self.ask(name, *how)
                self.assertEqual((done.returncode, done.stdout.strip()), (0, known(name).strip()), done.stderr)

    def test_conversation(self):
        self.assertEqual(self.ask("alder").returncode, 0)
        done = self.llm("-c", "And then?", "-o", "max_tokens", TOKENS)
        self.assertEqual(done.returncode, 0, done.stderr)
        last = json.loads(self.llm("logs", "-n", "1", "--json").stdout)[0]
        self.assertEqual((last["model"], last["output_tokens"]), ("graft-alder", TOKENS))

    def test_structured(self):
        done = self.llm("-m", "graft-alder", PROMPT, "--schema", json.dumps(SCHEMA))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(set(json.loads(done.stdout)), set(SCHEMA["properties"]))

    def test_errors(self):
        done = self.ask("elm")
        self.assertEqual(done.returncode, 1)
        self.assertIn("404", done.stderr)
        self.assertIn("does not exist", done.stderr)
        done = self.ask("alder", "--key", "wrong")
        self.assertEqual(done.returncode, 1)
        self.assertIn("the key is not valid", done.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
