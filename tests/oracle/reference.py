"""What several adapters with factors make of a base.

PEFT can multiply the scale of a LoRA, and add several up. It has no factor for what is saved as a whole (modules_to_save,
trainable tokens, biases), and allows one adapter at a time that has such weights. graft's factor f moves those weights
the fraction f of their way: W + f (W_saved - W), the sum of all adapters' moves. That is done here by hand on the
base's own weights, untied first where they are tied; what is LoRA is left to PEFT.
"""
import json
import tempfile
from pathlib import Path

import numpy as np
import peft
import torch
from safetensors.torch import load_file, save_file

from tiny_models import make_base

PREFIX = "base_model.model."


def logits_of(model, tokens):
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens])).logits[0].float().numpy().copy()


def relative(got, want):
    return float(np.linalg.norm((got - want).astype(np.float64)) / np.linalg.norm(want.astype(np.float64)))


def untie(model):
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        return True
    return False


def read(folder):
    """The config, the LoRA tensors, and the others with the name of the parameter that they replace."""
    config = json.loads((folder / "adapter_config.json").read_text())
    lora, whole = {}, {}
    for name, x in load_file(folder / "adapter_model.safetensors").items():
        if ".lora_" in name:
            lora[name] = x
        elif not name.endswith(".base_layer.weight"):   # a copy of the base's own embedding
            whole[name.removeprefix(PREFIX).replace(".base_layer.", ".")] = x
    return config, lora, whole


def token_rows(model, config, name, x, tied):
    """Trainable tokens: (parameter, value) with these rows replaced, of a tied head as well."""
    stem = name.removesuffix(".token_adapter.trainable_tokens_delta")
    rows = config["trainable_token_indices"]
    rows = rows[stem.rsplit(".", 1)[-1]] if isinstance(rows, dict) else rows
    for path in {stem, "lm_head"} if tied else {stem}:
        value = model.get_parameter(path + ".weight").detach().clone()
        value[rows] = x
        yield path + ".weight", value


def move_weights(model, original, parts, tied):
    """Moves the base's own weights as the adapters' whole tensors and factors say."""
    with torch.no_grad():
        for (config, _, whole), factor in parts:
            values = []
            for name, x in whole.items():
                if name.endswith("trainable_tokens_delta"):
                    values += token_rows(original, config, name, x, tied)
                else:
                    values.append((name, x))
            for name, x in values:
                model.get_parameter(name).add_(factor * (x - original.get_parameter(name)))


def only_lora(folder, config, lora):
    """The same adapter without what is not LoRA."""
    config = {**config, "modules_to_save": None, "trainable_token_indices": None, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(lora, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def combined_logits(base, parts, tokens):
    """Logits of the base with [(folder, factor)] applied, in this order."""
    read_parts = [(read(folder), factor) for folder, factor in parts]
    model, original = make_base(base), make_base(base)
    if any(whole for (_, _, whole), _ in read_parts):
        tied = untie(model)
        untie(original)
        move_weights(model, original, read_parts, tied)
    names = []
    with tempfile.TemporaryDirectory() as tmp:
        for i, ((config, lora, _), _) in enumerate(read_parts):
            folder, name = Path(tmp) / str(i), f"a{i}"
            folder.mkdir()
            only_lora(folder, config, lora)
            if i == 0:
                model = peft.PeftModel.from_pretrained(model, folder, adapter_name=name)
            else:
                model.load_adapter(folder, adapter_name=name)
            names.append(name)
    model.eval()
    if len(names) > 1:
        model.base_model.set_adapter(names)
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            for name, (_, factor) in zip(names, parts):
                if name in module.scaling:
                    module.scaling[name] *= factor
    return logits_of(model, tokens)
