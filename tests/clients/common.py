"""What the tests of real clients share: a server that asks for a key, and the answers it must give. run.sh starts them."""
import functools
import json
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "server"))
from serving import ADAPTERS, GRAFT, PROMPT, Server, run_answer, wait_until  # noqa: E402,F401

if not GRAFT:
    sys.exit("GRAFT_BIN must name the graft binary")
KEY = "correct-horse"
MESSAGES = [{"role": "user", "content": PROMPT}]
TOKENS = 8
NAMES = ["llama", *sorted(ADAPTERS)]
# A schema that leaves a model without sense few ways to answer.
SCHEMA = {"type": "object", "properties": {"colour": {"enum": ["red", "green"]}, "sure": {"type": "boolean"}},
          "required": ["colour", "sure"], "additionalProperties": False}


@functools.lru_cache(None)
def known(name, chat=True):
    """What `graft run` answers, each model something else."""
    return run_answer(PROMPT, None if name == "llama" else name, n=TOKENS, chat=chat)["text"]


class ClientCase(unittest.TestCase):
    """One server with a key for all tests of a class."""
    args = []

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.args, env={"GRAFT_API_KEY": KEY})
        cls.root = f"http://127.0.0.1:{cls.server.port}"
        cls.url = cls.root + "/v1"

    @classmethod
    def tearDownClass(cls):
        status, log = cls.server.stop(), cls.server.log()
        cls.server.close()
        assert status == 0 and "Sanitizer" not in log, log

    def settled(self):
        wait_until(lambda: self.metric("answers_running") == 0, "the end of all answers")

    def metric(self, name):
        return metric(self.server, name)


def metric(server, name):
    text = server.get("/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    return float(text.split(f"\ngraft_{name} ")[1].split("\n")[0])


class FullServer:
    """A server whose one slot and one place in the queue are taken for as long as `free` is not called."""

    def __init__(self):
        self.server = Server("--ctx", "65536", "--slots", "1", "--queue", "1", env={"GRAFT_API_KEY": KEY})
        self.root = f"http://127.0.0.1:{self.server.port}"
        self.url = self.root + "/v1"
        body = {"prompt": "x", "max_tokens": 60000, "ignore_eos": True, "stream": True}
        self.holders = [self.server.connect() for _ in range(2)]
        for holder in self.holders:
            holder.request("POST", "/v1/completions", json.dumps(body),
                           {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"})
        wait_until(lambda: metric(self.server, "answers_running") == 2, "a full queue")

    def free_one(self):
        self.holders.pop().close()
        wait_until(lambda: metric(self.server, "answers_running") == 1, "one place in the queue")

    def free(self):
        for holder in self.holders:
            holder.close()
        self.holders = []

    def free_after_a_refusal(self):
        """For a thread: makes room as soon as somebody was told that there is none."""
        end = time.monotonic() + 60
        while metric(self.server, "answers_refused_total") == 0 and time.monotonic() < end:
            time.sleep(0.02)
        self.free()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.free()
        self.server.close()
