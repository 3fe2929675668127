#!/usr/bin/env python3
"""Tests of `graft convert`: round trips to the bit, logits through both readers, refusals, and paths that resist.

GRAFT_BIN names the binary (required). Runs on the tiny bases of tests/oracle/golden. Python's standard library only.
"""
import array
import json
import math
import resource
import shutil
import struct

import command
from golden import CASES, GOLDEN, Case as Shared, adapter, base, graft, main

WEIGHTS = "adapter_model.safetensors"


def tensors(folder):
    """Every tensor of a folder: its type, shape and bytes."""
    data = (folder / WEIGHTS).read_bytes()
    length, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    header.pop("__metadata__", None)
    body = data[8 + length:]
    return {name: (t["dtype"], t["shape"], body[t["data_offsets"][0]:t["data_offsets"][1]]) for name, t in header.items()}


def rewrite(source, target, change):
    """A copy of a folder whose float32 tensors went through change(name, array)."""
    target.mkdir()
    shutil.copy(source / "adapter_config.json", target)
    header, body = {}, b""
    for name, (dtype, shape, data) in sorted(tensors(source).items()):
        values = array.array("f", data)
        change(name, values)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += values.tobytes()
    text = json.dumps(header).encode()
    (target / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + body)
    return target


class Case(Shared):
    def convert(self, name, source, out, *more):
        self.good("convert", "-m", base(name), source, self.folder / out, *more)
        return self.folder / out

    def applied(self, name, source, *more):
        return self.logits(name, base(name), "-a", source, *more)

    def assert_near(self, got, want, limit):
        self.assertLessEqual(self.error(got, want), limit)
        self.assertEqual(len(got), len(want))


class RoundTrips(Case):
    def test_folder_to_gguf_to_folder_is_the_same_to_the_bit(self):
        for name, case in [("llama", "plain"), ("llama", "rslora"), ("llama", "bf16"), ("llama", "f16"), ("llama", "rank1"),
                           ("llama", "qv"), ("mistral", "plain"), ("qwen3", "plain"), ("gpt2", "plain"), ("phi3", "plain"),
                           ("granite", "plain")]:
            with self.subTest(base=name, case=case):
                gguf = self.convert(name, adapter(name, case), f"{name}-{case}.gguf")
                back = self.convert(name, gguf, f"{name}-{case}")
                self.assertEqual(tensors(back), tensors(adapter(name, case)))

    def test_gguf_to_folder_to_gguf_is_the_same_to_the_bit(self):
        first = self.convert("llama", adapter("llama"), "first.gguf")
        folder = self.convert("llama", first, "folder")
        second = self.convert("llama", folder, "second.gguf")
        a, b = first.read_bytes(), second.read_bytes()
        size = sum(len(data) for _, _, data in tensors(folder).values())
        self.assertGreater(size, 10000)
        self.assertEqual(a[-size:], b[-size:])

    def test_scales_stay(self):
        for case in ["plain", "rslora", "patterns", "patterns-rslora", "patterns-order", "rank16"]:
            with self.subTest(case=case):
                want = self.applied("llama", adapter("llama", case), "--adapter-type", "f32")
                gguf = self.convert("llama", adapter("llama", case), f"{case}.gguf")
                self.assert_near(self.applied("llama", gguf), want, 1e-6)
                folder = self.convert("llama", gguf, case)
                self.assert_near(self.applied("llama", folder), want, 1e-6)

    def test_other_kinds_and_sources(self):
        cases = {"llama": ["embed", "alora", "mlx-plain", "gguf-embed", "gguf-alora"],
                 "llama-untied": ["lm-head-embed", "fused-patterns", "mlx-lm-head", "mlx-embed"],
                 "phi3": ["split-plain", "split-patterns", "split-v"], "qwen2": ["lm-head-embed"], "gptneox": ["plain"]}
        folders = {"llama": ["dora", "lora-bias", "lm-head-embed", "dora-embed", "mlx-dora"], "gpt2": ["dora", "lora-bias"],
                   "phi3": ["split-dora"], "llama-untied": ["fused-dora"]}
        todo = [(n, c, ["gguf", "peft"]) for n, all_of in cases.items() for c in all_of]
        todo += [(n, c, ["peft"]) for n, all_of in folders.items() for c in all_of]
        for name, case, forms in todo:
            entry = CASES[name, case]
            want = array.array("f", (GOLDEN / entry["logits"]).read_bytes())
            for to in forms:
                with self.subTest(base=name, case=case, to=to):
                    out = self.convert(name, GOLDEN / entry["adapter"], f"{name}-{case}.{to}", "--to", to)
                    self.assert_near(self.applied(name, out), want, 5e-4 if entry["tolerance"] == "gelu" else 2e-6)

    def test_embeddings_heads_and_mixed_rows_come_back_to_the_bit(self):
        for name, case in [("llama", "embed"), ("llama-untied", "embed"), ("llama-untied", "lm-head"), ("gptneox", "plain")]:
            with self.subTest(base=name, case=case):
                gguf = self.convert(name, adapter(name, case), f"{name}-{case}.gguf")
                self.assertEqual(tensors(self.convert(name, gguf, f"{name}-{case}")), tensors(adapter(name, case)))

    def test_what_has_no_place_is_refused(self):
        for case, words in [("dora", "magnitude"), ("lora-bias", "lora_bias"), ("lm-head", "tied"), ("modules-to-save", "whole"),
                            ("modules-to-save-norm", "norm"), ("trainable-tokens", "token")]:
            for to in ["gguf", "peft"] if "modules" in case or "tokens" in case else ["gguf"]:
                message = self.bad("unsupported_adapter", "convert", "-m", base("llama"), adapter("llama", case), self.folder / "out",
                                   "--to", to)
                self.assertIn(words, message)

    def test_libllama_reads_it(self):
        """Grouped decoding hands the adapter to libllama; its own reading of the file is in unit/test_model_export.c."""
        gguf = self.convert("llama", adapter("llama"), "a.gguf")
        want = self.applied("llama", adapter("llama"))
        self.assert_near(self.applied("llama", gguf, "--apply", "grouped"), want, 1e-5)

    def test_one_alpha_for_modules_of_different_scales(self):
        self.convert("llama", adapter("llama", "patterns"), "a.gguf")
        done = self.good("inspect", "-m", base("llama"), self.folder / "a.gguf", "--json")
        modules = json.loads(done.stdout)["modules"]
        self.assertEqual(len({round(m["scale"] * m["rank"], 6) for m in modules}), 1)
        self.assertGreater(len({m["rank"] for m in modules}), 1)

    def test_keys_of_the_gguf(self):
        self.convert("llama", adapter("llama"), "a.gguf")
        data = (self.folder / "a.gguf").read_bytes()
        for key in [b"general.type", b"adapter.lora.alpha", b"general.name", b"general.file_type", b"graft.source.generation"]:
            self.assertIn(struct.pack("<Q", len(key)) + key, data)

    def test_the_config_of_a_folder(self):
        folder = self.convert("llama", self.convert("llama", adapter("llama", "rslora"), "a.gguf"), "folder")
        config = json.loads((folder / "adapter_config.json").read_text())
        original = json.loads((adapter("llama", "rslora") / "adapter_config.json").read_text())
        self.assertEqual(config["peft_type"], "LORA")
        self.assertEqual(config["r"], original["r"])
        self.assertAlmostEqual(config["lora_alpha"] / config["r"], original["lora_alpha"] / math.sqrt(original["r"]), 6)
        names = {"base_model.model." + m for m in config["target_modules"]}
        self.assertEqual(names, {n.rsplit(".lora_", 1)[0] for n in tensors(folder)})


class Types(Case):
    def test_f16_and_back_is_rounded_once(self):
        gguf = self.convert("llama", adapter("llama"), "a.gguf", "--type", "f16")
        folder = self.convert("llama", gguf, "folder", "--type", "f32")
        original = tensors(adapter("llama"))
        for name, (dtype, shape, data) in tensors(folder).items():
            self.assertEqual((dtype, shape), original[name][:2])
            want = struct.unpack(f"{len(data) // 4}f", original[name][2])
            rounded = struct.unpack(f"{len(want)}e", struct.pack(f"{len(want)}e", *want))
            self.assertEqual(struct.unpack(f"{len(want)}f", data), rounded)

    def test_types_are_kept(self):
        for case, dtype in [("bf16", "BF16"), ("f16", "F16"), ("plain", "F32")]:
            folder = self.convert("llama", self.convert("llama", adapter("llama", case), f"{case}.gguf"), case)
            self.assertEqual({t[0] for t in tensors(folder).values()}, {dtype})

    def test_what_float16_cannot_hold_is_refused(self):
        def large(name, values):
            if "lora_B" in name:
                values[5] = 70000.0
        source = rewrite(adapter("llama"), self.folder / "large", large)
        for to in ["gguf", "peft"]:
            message = self.bad("out_of_range", "convert", "-m", base("llama"), source, self.folder / "out", "--to", to, "--type", "f16")
            self.assertIn("65504", message)

    def test_what_is_not_finite_is_refused(self):
        def nan(name, values):
            if "lora_A" in name:
                values[70] = math.nan
        source = rewrite(adapter("llama"), self.folder / "nan", nan)
        self.assertIn("[1, 6]", self.bad("non_finite", "convert", "-m", base("llama"), source, self.folder / "out"))


class Paths(Case):
    def args(self, out, *more):
        return ("convert", "-m", base("llama"), adapter("llama"), out, *more)

    def test_what_is_there_stays_without_force(self):
        out = self.folder / "out.gguf"
        out.write_text("mine")
        self.bad("conflict", *self.args(out))
        self.assertEqual(out.read_text(), "mine")
        self.good(*self.args(out, "--force"))
        self.assertEqual(out.read_bytes()[:4], b"GGUF")
        self.assertEqual(list(self.folder.iterdir()), [out])

    def test_a_folder_goes_only_if_an_adapter_is_all_it_holds(self):
        gguf = self.convert("llama", adapter("llama"), "a.gguf")
        out = self.folder / "out"
        args = ("convert", "-m", base("llama"), gguf, out)
        self.good(*args)
        self.bad("conflict", *args)
        self.good(*args, "--force")
        (out / "notes").write_text("mine")
        self.bad("conflict", *args, "--force")
        self.assertEqual((out / "notes").read_text(), "mine")
        (out / "notes").unlink()
        self.good(*args, "--force")
        self.assertEqual(sorted(p.name for p in self.folder.iterdir()), ["a.gguf", "out"])

    def test_one_form_does_not_replace_the_other(self):
        (self.folder / "d").mkdir()
        self.bad("conflict", *self.args(self.folder / "d", "--force"))
        (self.folder / "f").write_text("mine")
        self.bad("conflict", *self.args(self.folder / "f", "--to", "peft", "--force"))

    def test_not_over_what_is_read(self):
        source = command.copy_adapter(adapter("llama"), self.folder / "source")
        self.bad("bad_request", "convert", "-m", base("llama"), source, source, "--to", "peft", "--force")
        gguf = self.convert("llama", source, "a.gguf")
        (self.folder / "link").symlink_to(gguf)
        for out in [gguf, self.folder / "link"]:
            self.bad("bad_request", "convert", "-m", base("llama"), gguf, out, "--to", "gguf", "--force")
        shutil.copy(base("llama"), self.folder / "base.gguf")
        self.bad("bad_request", "convert", "-m", self.folder / "base.gguf", source, self.folder / "base.gguf", "--force")

    def test_where_nothing_can_be_written(self):
        self.bad("storage_full", *self.args(self.folder / "missing" / "out.gguf"))
        self.bad("bad_request", *self.args(str(self.folder / "out.gguf") + "/"))
        self.bad("storage_full", *self.args(self.folder / ("n" * 300)))

    def test_a_disk_that_ends(self):
        """A limit on the size of files stands for it."""
        for to, limit in [("gguf", 100), ("gguf", 20000), ("peft", 20000)]:
            done = graft("convert", "-m", base("llama"), adapter("llama"), self.folder / "out", "--to", to,
                         preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertIn("storage_full", done.stderr)
            self.assertEqual(list(self.folder.iterdir()), [])

    def test_usage(self):
        for args in [("convert",), ("convert", "-m", base("llama"), adapter("llama")),
                     ("convert", adapter("llama"), self.folder / "out"), ("convert", "-m", base("llama"), "a", "b", "c")]:
            self.assertEqual(graft(*args).returncode, 2)

    def test_an_adapter_of_another_base(self):
        self.bad("wrong_shape", "convert", "-m", base("qwen3"), adapter("llama"), self.folder / "out")
        self.bad("adapter_file_missing", "convert", "-m", base("llama"), self.folder / "none", self.folder / "out")
        self.bad("model_missing", "convert", "-m", self.folder / "none", adapter("llama"), self.folder / "out")


if __name__ == "__main__":
    main()
