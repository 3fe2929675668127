"""The same adapters in the formats of others: mlx-lm's folders and llama.cpp's GGUF files.

Written from PEFT's own files with another layout, so that the logits wanted are PEFT's. Neither format has a place for
everything: mlx-lm knows one scale for all modules, a GGUF adapter one alpha and no bias or magnitude.
"""
import json
import re

import gguf
import numpy as np
from safetensors.numpy import load_file, save_file

from gguf_base import gguf_name, to_gguf
from tiny_models import N_LAYER, make_base

PREFIX = "base_model.model."


def pattern_value(patterns, path, otherwise):
    for key, value in patterns.items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return otherwise


def read(folder):
    """{module path: (A, B, scale, magnitude or None)}; A is (rank, in), B is (out, rank)."""
    config = json.loads((folder / "adapter_config.json").read_text())
    found = {}
    for name, x in load_file(folder / "adapter_model.safetensors").items():
        module, part = re.fullmatch(r"(.*)\.lora_(?:embedding_)?(A|B|magnitude_vector)(?:\.weight)?",
                                    name.removeprefix(PREFIX)).groups()
        found.setdefault(module, {})[part] = x
    out = {}
    for module, x in sorted(found.items()):
        rank = x["A"].shape[0]
        alpha = pattern_value(config["alpha_pattern"], module, config["lora_alpha"])
        scale = alpha / (np.sqrt(rank) if config["use_rslora"] else rank)
        out[module] = (x["A"], x["B"], float(scale), x.get("magnitude_vector"))
    return config, out


def write_mlx(base, source, folder):
    """As mlx_lm.lora writes it: settings of the training run, and lora_a (in, r), lora_b (r, out), with dora m (out)."""
    _, modules = read(source)
    scales = {scale for _, _, scale, _ in modules.values()}
    ranks = {a.shape[0] for a, _, _, _ in modules.values()}
    assert len(scales) == len(ranks) == 1, f"{source}: mlx-lm has one scale and one rank"
    tensors, keys, layers = {}, set(), set()
    for module, (a, b, _, magnitude) in modules.items():
        tensors[f"{module}.lora_a"] = np.ascontiguousarray(a.T)
        tensors[f"{module}.lora_b"] = np.ascontiguousarray(b.T)
        if magnitude is not None:
            tensors[f"{module}.m"] = magnitude
        in_layer = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", module)
        keys.add(in_layer.group(2) if in_layer else module)
        if in_layer:
            layers.add(int(in_layer.group(1)))
    dora = any(m is not None for _, _, _, m in modules.values())
    config = dict(
        adapter_path="adapters", batch_size=4, config=None, data="data", fine_tune_type="dora" if dora else "lora",
        grad_checkpoint=False, iters=1000, learning_rate=1e-05,
        lora_parameters=dict(rank=ranks.pop(), dropout=0.0, scale=scales.pop(), keys=sorted(keys)),
        lr_schedule=None, mask_prompt=False, max_seq_length=2048, model=f"tiny-{base}",
        num_layers=N_LAYER - min(layers), optimizer="adam", optimizer_config=dict(adam={}, adamw={}),
        resume_adapter_file=None, save_every=100, seed=0, steps_per_eval=200, steps_per_report=10, test=False,
        test_batches=500, train=True, val_batches=25)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapters.safetensors", metadata={"format": "mlx"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=4) + "\n")


def write_gguf(base, source, path):
    """As llama.cpp's converter writes it, but with the scales that PEFT has: alpha if one will do, else folded into B."""
    config, modules = read(source)
    model = make_base(base)
    products = {round(scale * a.shape[0], 9) for a, _, scale, _ in modules.values()}
    alpha = products.pop() if len(products) == 1 else 1.0
    w = gguf.GGUFWriter(path, gguf.GGUFReader(path.parents[2] / "bases" / f"{base}.gguf").get_field(
        gguf.Keys.General.ARCHITECTURE).contents())
    w.add_type(gguf.GGUFType.ADAPTER)
    w.add_string(gguf.Keys.Adapter.TYPE, "lora")
    w.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
    w.add_string(gguf.Keys.General.NAME, f"tiny-{base}-adapter")
    if config.get("alora_invocation_tokens"):
        w.add_key_value(gguf.Keys.Adapter.ALORA_INVOCATION_TOKENS, config["alora_invocation_tokens"],
                        gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32)
    for module, (a, b, scale, magnitude) in modules.items():
        assert magnitude is None, f"{source}: a GGUF adapter has no place for a magnitude"
        name = gguf_name(base, module + ".weight")
        factor = scale * a.shape[0] / alpha
        b = to_gguf(base, model.config, module + ".B", b if abs(factor - 1) < 1e-9 else b * np.float32(factor))
        if name == "token_embd.weight":
            a = a.T     # rows by token, as the embedding's own
        w.add_tensor(f"{name}.lora_a", np.ascontiguousarray(a))
        w.add_tensor(f"{name}.lora_b", np.ascontiguousarray(b))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
