"""curl, as people type it in a shell."""
import json
import os
import subprocess
import unittest

from common import KEY, NAMES, TOKENS, ClientCase, known

# Set by the test: ROOT, KEY. Each is one line of a shell.
ASK = ("curl -sS --fail-with-body $ROOT/v1/chat/completions -H \"Authorization: Bearer $KEY\" -H 'Content-Type: application/json' "
       "-d '{\"model\":\"%s\",\"messages\":[{\"role\":\"user\",\"content\":\"What?\"}],\"max_tokens\":%d,\"temperature\":0%s}'")


class Curl(ClientCase):
    def shell(self, line, status=0):
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120,
                              env={**os.environ, "ROOT": self.root, "KEY": KEY, "no_proxy": "127.0.0.1"})
        self.assertEqual(done.returncode, status, done.stdout + done.stderr)
        return done.stdout

    def test_models(self):
        listed = json.loads(self.shell('curl -sS $ROOT/v1/models -H "Authorization: Bearer $KEY"'))
        self.assertEqual([m["id"] for m in listed["data"]], NAMES)

    def test_adapters_by_name(self):
        for name in NAMES:
            answer = json.loads(self.shell(ASK % (name, TOKENS, "")))
            self.assertEqual(answer["choices"][0]["message"]["content"], known(name))

    def test_stream(self):
        lines = self.shell(ASK % ("alder", TOKENS, ',"stream":true') + " -N").split("\n\n")
        self.assertEqual(lines[-2:], ["data: [DONE]", ""])
        pieces = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
        self.assertEqual("".join(p["choices"][0]["delta"].get("content", "") for p in pieces), known("alder"))

    def test_a_body_that_waits(self):
        """curl asks first for leave to send more than a megabyte, and waits a second for it."""
        text = self.shell("head -c 1100000 /dev/zero | tr '\\0' ' ' >\"$TMPDIR/body\"; echo '{\"prompt\":\"x\",\"max_tokens\":1}' >>\"$TMPDIR/body\"; "
                          "curl -sSv --expect100-timeout 100 --data-binary @\"$TMPDIR/body\" -H \"X-Api-Key: $KEY\" "
                          "-H 'Content-Type: application/json' $ROOT/v1/completions 2>&1; rm \"$TMPDIR/body\"")
        self.assertIn("HTTP/1.1 200", text)

    def test_several_on_one_connection(self):
        text = self.shell('curl -sSv $ROOT/health $ROOT/v1/health $ROOT/health 2>&1')
        self.assertEqual(text.count("HTTP/1.1 200"), 3)
        self.assertEqual(text.count("Connected to"), 1)
        self.assertIn("HTTP/1.1 200", self.shell("curl -sSI $ROOT/health"))
        self.assertIn("HTTP/1.0 200", self.shell("curl -sS0i $ROOT/health").replace("HTTP/1.1 200", "HTTP/1.0 200"))

    def test_errors(self):
        wrong = self.shell("curl -sS --fail-with-body $ROOT/v1/models -H 'Authorization: Bearer wrong'", status=22)
        self.assertEqual(json.loads(wrong)["error"]["code"], "invalid_api_key")
        unknown = self.shell(ASK % ("elm", 1, ""), status=22)
        self.assertEqual(json.loads(unknown)["error"]["code"], "model_not_found")
        form = self.shell('curl -sS $ROOT/v1/completions -H "Authorization: Bearer $KEY" -d \'{"prompt":"x"}\'')  # curl says it is a form
        self.assertEqual(json.loads(form)["error"]["code"], "unsupported_media_type")


if __name__ == "__main__":
    os.environ.setdefault("TMPDIR", "/tmp")
    unittest.main(verbosity=2)
