#!/usr/bin/env python3
"""Tests of `graft merge`: logits of the merged model against base and adapter, types, bytes that stay, refusals.

GRAFT_BIN names the binary (required). Runs on the tiny bases of tests/oracle/golden. Python's standard library only.
"""
import array
import json
import math
import resource
import shutil
import struct

import command
from golden import BASES, CASES, GOLDEN, Case as Shared, adapter, base, graft, main

F32, F16, Q4_0, Q8_0 = 0, 1, 2, 8


class Gguf:
    """Keys and tensors of a GGUF file; strings, numbers and arrays of them."""
    FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

    def __init__(self, path):
        self.data, self.at = path.read_bytes(), 4
        _, n_tensors, n_keys = self.take("IQQ")
        self.keys = {}
        for _ in range(n_keys):
            key = self.string()
            self.keys[key] = self.value(self.take("I")[0])
        table = []
        for _ in range(n_tensors):
            name = self.string()
            ne = self.take(f"{self.take('I')[0]}Q")
            table.append((name, ne, *self.take("IQ")))
        begin = (self.at + 31) // 32 * 32
        ends = [t[3] for t in table[1:]] + [len(self.data) - begin]
        self.tensors = {name: (ne, kind, self.data[begin + offset:begin + end])
                        for (name, ne, kind, offset), end in zip(table, ends)}

    def take(self, what):
        values = struct.unpack_from("<" + what, self.data, self.at)
        self.at += struct.calcsize("<" + what)
        return values

    def string(self):
        n, = self.take("Q")
        self.at += n
        return self.data[self.at - n:self.at]

    def value(self, kind):
        if kind == 8:
            return self.string()
        if kind == 9:
            inner, n = self.take("IQ")
            return [self.value(inner) for _ in range(n)]
        return self.take(self.FORMATS[kind])[0]


class Case(Shared):
    def setUp(self):
        super().setUp()
        self.out = self.folder / "out.gguf"

    def merge(self, name, *more, model=None):
        self.good("merge", "-m", model or base(name), "-t", "1", *more, self.out, "--force")
        return self.out


class Logits(Case):
    def test_as_base_and_adapter(self):
        """Float32's rounding, and on the bases with biases and GELU tables a little more."""
        for name in ["llama", "llama-untied", "mistral", "qwen3", "gpt2", "phi3", "gemma2", "starcoder2", "command-r"]:
            with self.subTest(base=name):
                merged = self.logits(name, self.merge(name, "-a", adapter(name)))
                applied = self.logits(name, base(name), "-a", adapter(name))
                limit = 2e-5 if BASES[name]["tolerance"] == "gelu" else 2e-6
                self.assertLess(self.error(merged, applied), limit)
                self.assertGreater(self.error(merged, self.logits(name, base(name))), 1e-2)

    def test_every_kind_of_change(self):
        cases = {"llama": ["dora", "dora-rslora", "lm-head", "embed", "lm-head-embed", "dora-embed", "embed-tied", "modules-to-save",
                           "modules-to-save-head-embed", "modules-to-save-norm", "trainable-tokens", "mlx-dora", "gguf-embed"],
                 "llama-untied": ["lm-head-embed", "modules-to-save", "trainable-tokens-head", "fused-dora"],
                 "gpt2": ["dora", "lora-bias", "bias-all", "modules-to-save-norm", "trainable-tokens"],
                 "gemma2": ["modules-to-save-norm", "trainable-tokens"], "phi3": ["split-plain", "split-dora"], "gptneox": ["lora-bias"]}
        for name, case in [(n, c) for n, all_of in cases.items() for c in all_of]:
            with self.subTest(base=name, case=case):
                entry = CASES[name, case]
                merged = self.logits(name, self.merge(name, "-a", GOLDEN / entry["adapter"]))
                want = array.array("f", (GOLDEN / entry["logits"]).read_bytes())
                self.assertLess(self.error(merged, want), 5e-4 if entry["tolerance"] == "gelu" else 2e-6)

    def test_half_a_factor(self):
        for name, case in [("llama", "dora"), ("llama", "dora-embed"), ("qwen3", "dora-embed"), ("llama", "lm-head-embed"),
                           ("llama", "trainable-tokens"), ("llama", "modules-to-save-embed"), ("llama", "modules-to-save-norm"),
                           ("qwen2", "bias-lora-only")]:
            with self.subTest(base=name, case=case):
                use = f"{adapter(name, case)}@0.5"
                merged = self.logits(name, self.merge(name, "-a", use))
                self.assertLess(self.error(merged, self.logits(name, base(name), "-a", use)), 2e-6)

    def test_scales_and_factors(self):
        cases = [["rslora"], ["patterns"], ["plain@0.5"], ["plain@-1"], ["plain", "qv@0.25"], ["qv@0.25", "plain"]]
        for case in cases:
            with self.subTest(adapters=case):
                uses = [x for a in case for x in ("-a", adapter("llama", a))]
                merged = self.logits("llama", self.merge("llama", *uses))
                self.assertLess(self.error(merged, self.logits("llama", base("llama"), *uses)), 2e-6)

    def test_quantised_types_lose_what_they_lose_without_an_adapter(self):
        """The measure is the base in that type beside the base: with the adapter it is no more than twice that."""
        plain = self.logits("llama", base("llama"))
        applied = self.logits("llama", base("llama"), "-a", adapter("llama"))
        for kind in ["f16", "bf16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0", "q3_k", "q2_k"]:
            with self.subTest(type=kind):
                lost = self.error(self.logits("llama", self.merge("llama", "-a", f"{adapter('llama')}@0", "--type", kind)), plain)
                merged = self.logits("llama", self.merge("llama", "-a", adapter("llama"), "--type", kind))
                self.assertGreater(lost, 1e-6)
                self.assertLess(self.error(merged, applied), 2 * lost)

    def test_a_quantised_base_in_float32(self):
        """The base's weights are dequantised, so nothing but float32's rounding is between the two."""
        small = self.folder / "q8.gguf"
        shutil.move(self.merge("llama", "-a", f"{adapter('llama')}@0", "--type", "q8_0"), small)
        merged = self.logits("llama", self.merge("llama", "-a", adapter("llama"), "--type", "f32", model=small))
        # The base's products round x to Q8_0 as well, so only the base's own loss is a measure.
        both = self.logits("llama", self.merge("llama", "-a", adapter("llama")))
        lost = self.error(self.logits("llama", small), self.logits("llama", base("llama")))
        self.assertLess(self.error(merged, both), 2 * lost)


class Files(Case):
    def test_what_no_adapter_touches_is_copied(self):
        before, after = Gguf(base("llama")), Gguf(self.merge("llama", "-a", adapter("llama", "qv")))
        self.assertEqual(list(before.tensors), list(after.tensors))
        changed = {name for name in before.tensors if before.tensors[name] != after.tensors[name]}
        self.assertEqual(changed, {f"blk.{i}.attn_{x}.weight".encode() for i in (0, 1) for x in "qv"})

    def test_keys_stay(self):
        before, after = Gguf(base("llama")).keys, Gguf(self.merge("llama", "-a", adapter("llama"))).keys
        added = {k: v for k, v in after.items() if k not in before}
        self.assertEqual({k: v for k, v in after.items() if k in before}, before)
        self.assertTrue(all(k.startswith(b"graft.") for k in added), added)
        self.assertEqual(added[b"graft.merged.0.name"], b"plain")

    def test_types(self):
        keys = Gguf(self.merge("llama", "-a", adapter("llama"), "--type", "q4_0")).keys
        self.assertEqual(keys[b"general.file_type"], 2)
        tensors = Gguf(self.out).tensors
        self.assertEqual(tensors[b"blk.0.attn_q.weight"][1], Q4_0)
        self.assertEqual(tensors[b"token_embd.weight"][1], Q8_0)  # serves as the head; its rows are too short for Q6_K
        self.assertEqual(tensors[b"blk.0.attn_norm.weight"][1], F32)

    def test_a_factor_of_nought_copies_all(self):
        before, after = Gguf(base("llama")), Gguf(self.merge("llama", "-a", f"{adapter('llama')}@0"))
        self.assertEqual(before.tensors, after.tensors)

    def test_a_tied_embedding_is_parted_only_if_it_must_be(self):
        self.assertNotIn(b"output.weight", Gguf(self.merge("llama", "-a", adapter("llama", "trainable-tokens"))).tensors)
        before, after = Gguf(base("llama")).tensors, Gguf(self.merge("llama", "-a", adapter("llama", "lm-head"))).tensors
        self.assertEqual(after[b"token_embd.weight"], before[b"token_embd.weight"])
        self.assertNotEqual(after[b"output.weight"][2], before[b"token_embd.weight"][2])

    def test_threads_do_not_matter(self):
        one = self.merge("llama", "-a", adapter("llama"), "--type", "q4_1").read_bytes()
        self.good("merge", "-m", base("llama"), "-t", "3", "-a", adapter("llama"), "--type", "q4_1", self.out, "--force")
        self.assertEqual(self.out.read_bytes(), one)


class Refusals(Case):
    def args(self, *more):
        return ("merge", "-m", base("llama"), "-t", "1", "-a", adapter("llama"), self.out, *more)

    def test_what_is_there(self):
        self.out.write_text("mine")
        self.bad("conflict", *self.args())
        self.assertEqual(self.out.read_text(), "mine")
        self.good(*self.args("--force"))
        self.assertEqual(list(self.folder.iterdir()), [self.out])
        (self.folder / "d").mkdir()
        self.bad("conflict", "merge", "-m", base("llama"), "-a", adapter("llama"), self.folder / "d", "--force")

    def test_two_that_replace_or_scale_one_weight(self):
        for a, b in [("dora", "dora-embed"), ("modules-to-save-norm", "modules-to-save-norm"),
                     ("modules-to-save-embed", "dora-embed")]:
            with self.subTest(adapters=[a, b]):
                self.bad("unsupported_adapter", "merge", "-m", base("llama"), "-a", adapter("llama", a), "-a",
                         adapter("llama", b), self.out)

    def test_not_over_the_base(self):
        model = self.folder / "base.gguf"
        shutil.copy(base("llama"), model)
        (self.folder / "link").symlink_to(model)
        for out in [model, self.folder / "link"]:
            self.bad("bad_request", "merge", "-m", model, "-a", adapter("llama"), out, "--force")

    def test_what_weights_do_not_express(self):
        for name, case, code, words in [("llama", "alora", "unsupported_adapter", "aLoRA"),
                                        ("llama", "lora-bias", "unsupported_adapter", "the base has none"),
                                        ("gemma2", "lm-head-embed", "unsupported_model", "libllama")]:
            self.assertIn(words, self.bad(code, "merge", "-m", base(name), "-t", "1", "-a", adapter(name, case), self.out))
        dora = adapter("llama", "dora")
        self.bad("unsupported_adapter", "merge", "-m", base("llama"), "-a", dora, "-a", dora, self.out)

    def test_what_float16_cannot_hold(self):
        self.bad("out_of_range", "merge", "-m", base("llama"), "-a", self.large(3e5), self.out, "--type", "f16")

    def test_what_float32_cannot_hold(self):
        self.bad("non_finite", "merge", "-m", base("llama"), "-a", self.large(3e38), self.out)

    def large(self, value):
        source = command.copy_adapter(adapter("llama"), self.folder / "large")
        data = bytearray((source / "adapter_model.safetensors").read_bytes())
        length, = struct.unpack_from("<Q", data)
        for t in json.loads(data[8:8 + length]).values():
            if "shape" in t:
                begin, end = (8 + length + o for o in t["data_offsets"])
                data[begin:end] = struct.pack("<f", math.sqrt(value)) * ((end - begin) // 4)
        (source / "adapter_model.safetensors").write_bytes(data)
        return source

    def test_a_disk_that_ends(self):
        for limit in [100, 200000]:
            done = graft(*self.args(), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertIn("storage_full", done.stderr)
            self.assertEqual(list(self.folder.iterdir()), [])

    def test_usage_and_files(self):
        for args in [("merge",), ("merge", "-m", base("llama"), self.out), ("merge", "-m", base("llama"), "-a", adapter("llama")),
                     self.args("--type", "q9")]:
            self.assertEqual(graft(*args).returncode, 2)
        self.bad("wrong_shape", "merge", "-m", base("qwen3"), "-a", adapter("llama"), self.out)
        self.bad("model_missing", "merge", "-m", self.folder / "none", "-a", adapter("llama"), self.out)


if __name__ == "__main__":
    main()
