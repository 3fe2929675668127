#!/usr/bin/env python3
"""Converts a PEFT folder to the GGUF file that llama-server takes, for benchmarks against it.

usage: lora_to_gguf.py MODEL FOLDER OUT.gguf

For bases of the llama architecture. Q's and K's rows are put in the order that a conversion of such a model puts
them in, so that both servers give the same answers. Python's standard library only.
"""
import json
import struct
import sys
from pathlib import Path

from make_adapters import MODULES, STRING, Gguf

ALIGN = 32
TYPES = {"F32": 0, "F16": 1, "BF16": 30}
FLOAT = 6


def string(text):
    return struct.pack("<Q", len(text)) + text.encode()


def reordered(data, rows, n_heads):
    """Within each head: first halves and second halves of the rotated pairs, one after the other, become neighbours."""
    size, half = len(data) // rows, rows // n_heads // 2
    return b"".join(data[(head * 2 * half + part * half + i) * size:][:size]
                    for head in range(n_heads) for i in range(half) for part in range(2))


def read_tensors(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    return {name: (t["dtype"], t["shape"], data[slice(*t["data_offsets"])]) for name, t in header.items() if name != "__metadata__"}


def converted(tensors, values):
    """[(name, dtype, shape, bytes)]"""
    names = {long: short for short, long in MODULES.items()}
    heads = {"attn_q": values["llama.attention.head_count"], "attn_k": values["llama.attention.head_count_kv"]}
    found = []
    for name, (dtype, shape, data) in tensors.items():
        layer, module = name.split(".layers.")[1].split(".", 1)
        module, matrix = module.removesuffix(".weight").rsplit(".lora_", 1)
        short = names[module]
        if matrix == "B" and short in heads:
            data = reordered(data, shape[0], heads[short])
        found.append((f"blk.{layer}.{short}.weight.lora_{matrix.lower()}", dtype, shape, data))
    return found


def write(path, tensors, keys):
    info, offset = [], 0
    for name, dtype, (rows, columns), data in tensors:
        info.append(string(name) + struct.pack("<IQQIQ", 2, columns, rows, TYPES[dtype], offset))
        offset += -(-len(data) // ALIGN) * ALIGN
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    for key, value in keys.items():
        text = isinstance(value, str)
        head += string(key) + struct.pack("<I", STRING if text else FLOAT) + (string(value) if text else struct.pack("<f", value))
    head += b"".join(info)
    with open(path, "wb") as file:
        file.write(head + bytes(-len(head) % ALIGN))
        for _, _, _, data in tensors:
            file.write(data + bytes(-len(data) % ALIGN))


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    model, folder, out = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    values = Gguf(model).values
    if values["general.architecture"] != "llama":
        sys.exit(f"{model}: not of the llama architecture")
    config = json.loads((folder / "adapter_config.json").read_text())
    write(out, converted(read_tensors(folder / "adapter_model.safetensors"), values), {
        "general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora",
        "adapter.lora.alpha": float(config["lora_alpha"])})


if __name__ == "__main__":
    main()
