"""M: two faults in one adapter. Which of them is told first is settled, and the same at every door."""

import os
import struct

from making import save, write
from table import add


def mixed(variant, code, change, weights=lambda raw: raw, config=None):
    def make(folder, good):
        change(good)
        return write(folder, weights(good.file()), config if config is not None else good.config)
    add("M01", variant, code, make)


def set_config(**changes):
    return lambda good: good.config.update(changes)


def hole(raw):
    n = struct.unpack("<Q", raw[:8])[0]
    return raw[:8] + raw[8:8 + n].replace(b'"data_offsets": [0, ', b'"data_offsets": [4, ', 1) + raw[8 + n:]


SHORT = lambda raw: raw[:-1]  # noqa: E731
mixed("config: another kind of adapter; weights: cut off", "unsupported_adapter", set_config(peft_type="LOHA"), SHORT)
mixed("config: bad rank; weights: cut off", "bad_rank", set_config(r=0), SHORT)
mixed("config: unknown option; weights: cut off", "unknown_option", set_config(use_magic=True), SHORT)
mixed("config: unknown option; weights: a web page", "unknown_option", set_config(use_magic=True), lambda raw: b"<html>" + bytes(40))
mixed("config: a base that was changed; weights: trailing bytes", "base_modified", set_config(init_lora_weights="pissa"), lambda raw: raw + b"x")
mixed("config: bad alpha; weights: sizes that disagree", "bad_alpha", set_config(lora_alpha=0), hole)
mixed("config: not JSON; weights: cut off", "json_syntax", lambda good: None, SHORT, b"{")
mixed("config: of a wrong type; weights: cut off", "bad_type", set_config(bias=1), SHORT)
mixed("config: rank as text; tensors: wrong shape", "bad_rank", lambda good: (
    good.config.update(r="4"), good.reshape("q_proj.lora_A.weight", lambda d: [d[0], 32])))
mixed("config: another rank; tensors: NaN", "rank_mismatch", lambda good: (
    good.config.update(r=8), good.tensors.update({n: (t[0], t[1], b"\xff" * len(t[2])) for n, t in good.tensors.items()})))
mixed("tensors: wrong shape, and no layer of that number", "unknown_target", lambda good: (
    good.reshape("q_proj.lora_A.weight", lambda d: [d[0], 32]), good.rename("layers.1.", "layers.7.")))
mixed("tensors: NaN in one, wrong shape of another", "wrong_shape", lambda good: (
    good.tensors.update({n: (t[0], t[1], b"\xff" * len(t[2])) for n, t in good.tensors.items()}), good.reshape("up_proj.lora_B.weight", lambda d: [7, d[1]])))
mixed("all at once", "unsupported_adapter", lambda good: (
    good.config.update(peft_type="IA3", r=-1, lora_alpha=0, task_type="SEQ_CLS"), good.rename("layers.1.", "layers.7.")))


def files(variant, code, maker):
    add("M02", variant, code, maker)




files("no weights, and a config that is not JSON", "missing_file", lambda folder, good: write(folder, config=b"{"))
files("empty weights, and no config", "config_missing", lambda folder, good: write(folder, b""))
files("an LFS pointer each", "lfs_pointer", lambda folder, good: write(
    folder, b"version https://git-lfs.github.com/spec/v1\n", b"version https://git-lfs.github.com/spec/v1\n"))
files("config that is not JSON, and a pickle in place of weights", "pickle_refused", lambda folder, good: write(
    folder, b"\x80\x02", b"{", "adapter_model.bin"))
files("weights by a loop of links, and no config", "not_readable", lambda folder, good: (
    os.symlink("adapter_model.safetensors", os.path.join(folder, "adapter_model.safetensors")), folder)[1])
files("good files, and a README that is a pickle", None, lambda folder, good: write(save(folder, good), b"\x80\x02", None, "README.md"))
