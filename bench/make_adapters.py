#!/usr/bin/env python3
"""Makes PEFT folders with random LoRA matrices for a GGUF base, for benchmarks.

usage: make_adapters.py MODEL OUTDIR [--count 8] [--rank 16] [--alpha A] [--dtype F16|F32] [--seed 1]

Writes OUTDIR/adapter-1 … adapter-N, each with adapter_config.json and adapter_model.safetensors for the seven
matrices of every layer (q, k, v, o, gate, up, down). Names and shapes come from the tensors of MODEL, whose
architecture must name them as Llama does: llama, qwen2, qwen3, mistral and their like. The numbers are small
noise, so answers are changed but stay finite; the same seed gives the same files. Python's standard library only.
"""
import argparse
import json
import random
import re
import struct
import sys
from pathlib import Path

MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
AMPLITUDE = 0.05
POOL = 1 << 19  # numbers that are drawn; matrices are slices of them, since packing each number takes Python long
# GGUF value types as struct spells them; type 9 is an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING = 8


class Gguf:
    """The header of a GGUF file: .shapes maps tensor names to dimensions, fastest first; .values has its strings and numbers."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self.file = file
            if file.read(4) != b"GGUF" or self.number("<I") not in (2, 3):
                sys.exit(f"{path}: not a GGUF file of version 2 or 3")
            n_tensors, n_keys = self.number("<Q"), self.number("<Q")
            self.values = {}
            for _ in range(n_keys):
                key = self.string().decode()
                self.values[key] = self.value(self.number("<I"))
            self.shapes = {}
            for _ in range(n_tensors):
                name = self.string().decode()
                self.shapes[name] = [self.number("<Q") for _ in range(self.number("<I"))]
                file.read(12)  # type and offset

    def number(self, form):
        return struct.unpack(form, self.file.read(struct.calcsize(form)))[0]

    def string(self):
        return self.file.read(self.number("<Q"))

    def value(self, kind):
        if kind == STRING:
            return self.string().decode()
        if kind in SCALARS:
            return self.number(f"<{SCALARS[kind]}")
        inner, count = self.number("<I"), self.number("<Q")
        if inner in SCALARS:
            self.file.seek(count * struct.calcsize(SCALARS[inner]), 1)
        else:
            for _ in range(count):
                self.value(inner)
        return None


def modules_of(shapes):
    """[(PEFT module path, inputs, outputs)] of the matrices that get an adapter."""
    found = []
    for name, shape in shapes.items():
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
        if match and match[2] in MODULES and len(shape) == 2:
            found.append((f"base_model.model.model.layers.{match[1]}.{MODULES[match[2]]}", *shape))
    return found


class Noise:
    """Uniform random numbers, packed once; take(n) cuts n of them out at a random place."""

    def __init__(self, seed, dtype):
        self.random = random.Random(seed)
        self.width = 2 if dtype == "F16" else 4
        numbers = [self.random.uniform(-AMPLITUDE, AMPLITUDE) for _ in range(POOL)]
        self.pool = struct.pack(f"<{POOL}{'e' if dtype == 'F16' else 'f'}", *numbers)

    def take(self, n):
        start = self.random.randrange(POOL) * self.width
        wanted = n * self.width
        piece = self.pool[start:start + wanted]
        while len(piece) < wanted:
            piece += self.pool[:wanted - len(piece)]
        return piece


def write_safetensors(path, tensors, dtype):
    """tensors: [(name, shape, bytes)]"""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, data in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors:
            file.write(data)


def write_adapter(folder, modules, args, noise):
    folder.mkdir(parents=True, exist_ok=True)
    tensors = []
    for module, n_in, n_out in modules:
        tensors.append((f"{module}.lora_A.weight", [args.rank, n_in], noise.take(args.rank * n_in)))
        tensors.append((f"{module}.lora_B.weight", [n_out, args.rank], noise.take(n_out * args.rank)))
    write_safetensors(folder / "adapter_model.safetensors", tensors, args.dtype)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": Path(args.model).stem,
        "r": args.rank,
        "lora_alpha": args.alpha if args.alpha is not None else args.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
        "target_modules": sorted({module.rsplit(".", 1)[1] for module, _, _ in modules}),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", help="the base, a GGUF file")
    parser.add_argument("outdir", type=Path)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=float, help="lora_alpha; default: the rank, so that the scale is 1")
    parser.add_argument("--dtype", choices=["F16", "F32"], default="F16")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    modules = modules_of(Gguf(args.model).shapes)
    if not modules:
        sys.exit(f"{args.model}: no tensors named as Llama's")
    if args.rank < 1 or args.count < 1:
        sys.exit("--rank and --count must be at least 1")
    for i in range(1, args.count + 1):
        folder = args.outdir / f"adapter-{i}"
        write_adapter(folder, modules, args, Noise(f"{args.seed}/{i}", args.dtype))
        print(folder)


if __name__ == "__main__":
    main()
