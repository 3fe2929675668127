"""Each example project answers its own questions right (at least 95 %), and the base answers none.

All questions of all projects, and the same ones to the base, go through one continuous batch, so this is also a
test that no row gets another row's adapter.
usage: GRAFT_BIN=build/graft GRAFT_TEST_MODEL=model.gguf python3 tests/projects/test_projects.py
"""

import json
import os
import subprocess
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
GRAFT = os.environ.get("GRAFT_BIN", os.path.join(HERE, "../../build/graft"))
MODEL = os.environ.get("GRAFT_TEST_MODEL")
PROJECTS = os.path.join(HERE, "../../examples/projects")
RIGHT = 0.95


def questions(project):
    with open(os.path.join(PROJECTS, project, "questions.jsonl")) as f:
        return [json.loads(line) for line in f]


@unittest.skipUnless(MODEL, "GRAFT_TEST_MODEL is not set")
class Projects(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.names = sorted(n for n in os.listdir(PROJECTS) if os.path.isdir(os.path.join(PROJECTS, n)))
        cls.asked = []  # (adapter or None, project, question, expected)
        for project in cls.names:
            for q in questions(project):
                for adapter in (project, None):
                    cls.asked.append((adapter, project, q["question"], q["expect"]))
        # Neighbours in the batch then belong to different projects.
        cls.asked.sort(key=lambda a: (a[2], a[1], a[0] or ""))
        # The base rambles; a fact that it knew would come in its first sentence.
        lines = [json.dumps({"adapter": a, "max_tokens": 48 if a else 24, "messages": [{"role": "user", "content": q}]})
                 for a, _, q, _ in cls.asked]
        cls.answers = cls.run_lines(lines)

    @classmethod
    def run_lines(cls, lines, *more):
        adapters = [word for n in cls.names for word in ("-a", f"{n}={os.path.join(PROJECTS, n)}")]
        done = subprocess.run([GRAFT, "run", "-m", MODEL, *adapters, "-f", "-", "-n", "48", "--temp", "0", "--json",
                               "--slots", "8", "--ctx", "512", *more],
                              input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stderr
        return [json.loads(line)["text"] for line in done.stdout.splitlines()]

    def share_right(self, adapter_of):
        asked = [(a, p, q, e, t) for (a, p, q, e), t in zip(self.asked, self.answers) if adapter_of(a, p)]
        wrong = [(q, e, t) for _, _, q, e, t in asked if e.lower() not in t.lower()]
        self.assertTrue(asked)
        return 1 - len(wrong) / len(asked), wrong

    def test_one_answer_for_each_line(self):
        self.assertEqual(len(self.answers), len(self.asked))

    def test_projects_know_their_own_facts(self):
        for project in self.names:
            with self.subTest(project=project):
                share, wrong = self.share_right(lambda a, p: a == p == project)
                self.assertGreaterEqual(share, RIGHT, wrong)

    def test_the_base_knows_none(self):
        share, _ = self.share_right(lambda a, p: a is None)
        self.assertEqual(share, 0)

    def test_projects_do_not_answer_for_each_other(self):
        """The same question to two projects has two answers: a mixed-up row would show here."""
        lines, wanted, foreign = [], [], []
        facts = {p: {q["question"]: q["expect"].lower() for q in questions(p)} for p in self.names}
        shared = set.intersection(*(set(f) for f in facts.values()))
        self.assertTrue(shared, "the projects share no question")
        for q in sorted(shared):
            for p in self.names:
                lines.append(json.dumps({"adapter": p, "messages": [{"role": "user", "content": q}]}))
                wanted.append(facts[p][q])
                foreign.append([facts[o][q] for o in self.names if o != p])
        answers = [a.lower() for a in self.run_lines(lines)]
        right = sum(w in a for w, a in zip(wanted, answers))
        self.assertGreaterEqual(right / len(lines), RIGHT)
        for answer, own, others in zip(answers, wanted, foreign):
            for other in others:
                if other not in own:
                    self.assertNotIn(other, answer)


if __name__ == "__main__":
    unittest.main()
