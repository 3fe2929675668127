#!/usr/bin/env python3
"""Makes the golden vectors: tiny base models, adapters written by PEFT, and the logits that transformers and
PEFT compute for them in float32.

usage: make_oracle.py [--out DIR] [--only BASE ...] [--bases-only]

The files in tests/oracle/golden/ are this script's output. See README.md.
"""
import argparse
import json
import os
import shutil
import sys
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import numpy as np
import peft
import torch
import transformers
from safetensors.torch import load_file

from adapter_cases import CASES, FOREIGN, REFUSED_FOR_EVER, ROWS_ONLY, USES
from foreign_formats import write_gguf, write_mlx
from gguf_base import ARCH, ROW_ORDERS, write_base
from reference import combined_logits, logits_of, relative
from tiny_models import RECIPES, make_base, make_model, seed_of, tokens_for

CONFIGS = {"LORA": peft.LoraConfig, "IA3": peft.IA3Config, "LOHA": peft.LoHaConfig}


def draw(base, case, model):
    """Random values for everything the adapter trains. Returns the tensors whose size sets its strength."""
    tune = []
    for name, p in model.named_parameters():
        if not p.requires_grad or "lm_head" in name and case.config.get("ensure_weight_tying"):
            continue
        rng = np.random.default_rng(seed_of(base, case.name, name))
        x = rng.standard_normal(tuple(p.shape))
        if ".lora_A." in name or "hada" in name and "_b" in name:
            x /= np.sqrt(p.shape[-1])
        elif ".lora_embedding_A." in name:
            x /= np.sqrt(p.shape[0])
        elif "lora_magnitude_vector" in name:
            x = p.detach().numpy() * (1 + 0.1 * x)
        elif ".lora_B." in name and name.endswith("bias"):
            x *= 0.1
        elif ".lora_B." in name or ".lora_embedding_B." in name or "hada" in name:
            x *= 0.1
            tune.append(p)
        elif "trainable_tokens_delta" in name:
            x *= 0.5
        elif "norm" in name and base.startswith("gemma"):
            x *= 0.2
        elif "ia3" in name or "norm" in name and name.endswith("weight"):
            x = 1 + 0.2 * x
        elif "modules_to_save" in name or name.endswith("weight"):
            x = p.detach().numpy() + 0.1 * x
        elif name.endswith("bias"):
            x = p.detach().numpy() + 0.2 * x
        else:
            raise RuntimeError(f"{base}/{case.name}: don't know how to draw {name}")
        p.data.copy_(torch.from_numpy(np.asarray(x, dtype=np.float32)))
    return tune


def set_strength(case, model, tune, tokens, base_logits):
    """Makes B larger or smaller until the adapter changes the logits by about half of their size."""
    low, high = case.strength
    for _ in range(12):
        change = relative(logits_of(model, tokens), base_logits)
        if low <= change <= high or not tune:
            break
        factor = float(f"{np.clip(0.55 / max(change, 1e-3), 0.3, 4.0):.1e}")
        for p in tune:
            p.data.mul_(factor)


def tidy(folder, case, base):
    """Leaves what an adapter folder needs, without traces of the machine that made it."""
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = f"tiny-{base}"
    for key in ("target_modules", "feedforward_modules"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])   # PEFT keeps a set, whose order differs from run to run
    if case.alpha_order:
        config["alpha_pattern"] = {k: config["alpha_pattern"][k] for k in case.alpha_order}
    path.write_text(json.dumps(config, indent=2) + "\n")


def make_adapter(base, case, folder, tokens, base_logits):
    """Writes one adapter folder and returns the logits of the adapter as PEFT reads it back."""
    torch.manual_seed(0)
    model = make_model(case.model or base)
    if case.model and case.logits:
        error = relative(logits_of(model, tokens), base_logits)
        assert error < 1e-6, f"{case.model} is not {base}: {error}"
    if case.extra == "resize":
        model.resize_token_embeddings(model.config.vocab_size + 8, mean_resizing=False)
    config = CONFIGS[case.family](task_type="CAUSAL_LM", **case.config)
    model = peft.get_peft_model(model, config)
    model.eval()
    if config.peft_type == "LORA" and isinstance(config.init_lora_weights, str):
        pass    # A and B come out of the base's own weights
    else:
        tune = draw(base, case, model)
        if case.logits:
            set_strength(case, model, tune, tokens, base_logits)
    if isinstance(case.config.get("init_lora_weights"), str):
        for name, p in model.named_parameters():
            if p.requires_grad:     # as if trained a little
                rng = np.random.default_rng(seed_of(base, case.name, name))
                p.data.mul_(torch.from_numpy((1 + 0.3 * rng.standard_normal(tuple(p.shape))).astype(np.float32)))
    before = logits_of(model, tokens)
    dtype = getattr(torch, case.dtype)
    if dtype is not torch.float32:
        for p in model.parameters():
            if p.requires_grad:
                p.data = p.data.to(dtype)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, **case.save)
    tidy(folder, case, base)
    for name, t in load_file(folder / "adapter_model.safetensors").items():
        assert t.dtype is dtype, (name, t.dtype)
    if not case.logits:
        return None, None

    fresh = make_model(case.model or base)
    loaded = peft.PeftModel.from_pretrained(fresh, folder).eval()
    want = logits_of(loaded, tokens)
    # What was saved is what was meant, but where the file is coarser or orders its keys differently.
    if dtype is torch.float32 and not case.alpha_order and not isinstance(case.config.get("init_lora_weights"), str):
        error = relative(want, before)
        assert error < 1e-6, f"{base}/{case.name}: read back differs by {error}"
    return want, relative(want, base_logits)


def put_foreign(foreign, out, same):
    """Writes one adapter in the format of others; the logits are those of the case that it is made of."""
    source = out / "adapters" / foreign.base / foreign.case
    if foreign.format == "mlx":
        path = source.with_name(foreign.name)
        write_mlx(foreign.base, source, path)
    else:
        path = source.with_name(foreign.name + ".gguf")
        write_gguf(foreign.base, source, path)
    entry = dict(base=foreign.base, case=foreign.name, adapter=str(path.relative_to(out)), format=foreign.format,
                 options=f"{foreign.case} as {'mlx-lm' if foreign.format == 'mlx' else 'a GGUF file'}: {same['options']}",
                 tolerance=same["tolerance"])
    if foreign.kinds:
        entry["kinds"] = list(foreign.kinds)
    return {**entry, "logits": same["logits"], "change": same["change"]}


def put_use(use, base, tokens, out, put):
    """One entry of the manifest's combinations, with its logits."""
    tokens = use.tokens or tokens
    of = use.of or base
    path = out / "logits" / base / f"{use.same or use.name}.f32"
    if not use.same:
        parts = [(out / "adapters" / of / case, factor) for case, factor in use.parts]
        put(path, combined_logits(base, parts, tokens))
    want = np.fromfile(path, dtype="<f4").reshape(len(tokens), -1)
    names = [name for name, _ in use.parts]
    kinds = {case.kind for case in CASES[of] if case.name in names and case.kind}
    entry = dict(base=base, case=use.name, options=use.words, tolerance=RECIPES[base][3])
    if kinds:
        entry["kinds"] = sorted(kinds)
    if use.tokens:
        entry["tokens"] = use.tokens
    entry["adapters"] = [dict(adapter=f"adapters/{of}/{case}", scale=factor) for case, factor in use.parts]
    entry["logits"] = str(path.relative_to(out))
    entry["change"] = float(f"{relative(want, logits_of(make_base(base), tokens)):.3g}")
    print(f"{base:13s} {use.name:28s} change {entry['change']:.2f}", flush=True)
    return entry


def write_manifest(path, made):
    """What was made, and what an earlier manifest says about other bases."""
    old = json.loads(path.read_text()) if path.exists() else {}
    bases = [b["base"] for b in made["bases"]]
    for key in made:
        made[key] += [entry for entry in old.get(key, []) if entry["base"] not in bases and entry["base"] in CASES]
        made[key].sort(key=lambda entry: list(CASES).index(entry["base"]))
    versions = dict(torch=torch.__version__.split("+")[0], transformers=transformers.__version__, peft=peft.__version__)
    head = dict(made_with=versions, refused_for_ever=REFUSED_FOR_EVER, rows_only=ROWS_ONLY)
    path.write_text(json.dumps({**head, **made}, indent=1) + "\n")


def main():
    here = Path(__file__).resolve().parent
    args = argparse.ArgumentParser()
    args.add_argument("--out", type=Path, default=here / "golden")
    args.add_argument("--only", nargs="*", default=list(CASES), help="these bases only; the manifest keeps the others")
    args.add_argument("--bases-only", action="store_true")
    a = args.parse_args()
    out = a.out
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()

    def put(path, x):
        path.parent.mkdir(parents=True, exist_ok=True)
        np.ascontiguousarray(x, dtype="<f4").tofile(path)
        return str(path.relative_to(out))

    (out / "bases").mkdir(parents=True, exist_ok=True)
    bases, cases, combos = [], [], []
    for base in a.only:
        tokens = tokens_for(base)
        model = make_base(base)
        gguf_path = out / "bases" / f"{base}.gguf"
        write_base(base, model, gguf_path)
        base_logits = logits_of(model, tokens)
        bases.append(dict(
            base=base, gguf=f"bases/{base}.gguf", architecture=ARCH[base][0], words=RECIPES[base][2],
            tolerance=RECIPES[base][3], tokens=tokens, n_vocab=base_logits.shape[1],
            logits=put(out / "logits" / base / "base.f32", base_logits)))
        if base in ROW_ORDERS:
            bases[-1]["row_orders"] = ROW_ORDERS[base]
        if a.bases_only:
            continue
        shutil.rmtree(out / "adapters" / base, ignore_errors=True)
        for case in CASES[base]:
            folder = out / "adapters" / base / case.name
            folder.parent.mkdir(parents=True, exist_ok=True)
            want, change = make_adapter(base, case, folder, tokens, base_logits)
            entry = dict(base=base, case=case.name, adapter=f"adapters/{base}/{case.name}", options=case.words,
                         tolerance=RECIPES[base][3])
            if case.kind:
                entry["kinds"] = [case.kind]
            if want is not None:
                entry["logits"] = put(out / "logits" / base / f"{case.name}.f32", want)
                entry["change"] = float(f"{change:.3g}")
            cases.append(entry)
            print(f"{base:13s} {case.name:22s} change {change if change is None else f'{change:.2f}'}", flush=True)
        same = {entry["case"]: entry for entry in cases if entry["base"] == base}
        cases += [put_foreign(f, out, same[f.case]) for f in FOREIGN if f.base == base]
        combos += [put_use(use, base, tokens, out, put) for use in USES if use.base == base]
    if not a.bases_only:
        write_manifest(out / "manifest.json", dict(bases=bases, cases=cases, combinations=combos))
    return 0


if __name__ == "__main__":
    sys.exit(main())
