"""Which adapters are made for which base.

A case is a LoraConfig (as keyword arguments) and how its file is written. `refused` names the kind of an
adapter that graft may answer with an error; if it serves it nevertheless, the logits must be right.
"""
from dataclasses import dataclass, field, replace
from typing import Any, Optional

QV = ["q_proj", "v_proj"]

# Keys that overlap: the first in file order decides. PEFT writes a configuration with sorted keys, so in a file
# by PEFT "layers.0..." comes before "q_proj"; OTHER_ORDER is the same content as a file by hand may have it.
RANKS = {"layers.0.self_attn.q_proj": 2, "q_proj": 6, r"layers\.[01]\.mlp\.(up|gate)_proj": 3}
ALPHAS = {"layers.0.self_attn.q_proj": 5, "q_proj": 16, r"layers\.1\.mlp\.\w+_proj": 2, "up_proj": 13, "v_proj": 9}
OTHER_ORDER = ["q_proj", "layers.0.self_attn.q_proj", "up_proj", r"layers\.1\.mlp\.\w+_proj", "v_proj"]


@dataclass
class Case:
    name: str
    words: str
    config: dict = field(default_factory=dict)
    dtype: str = "float32"              # of the tensors in the file
    alpha_order: Optional[list] = None  # rewrites alpha_pattern in the file in this order
    refused: Optional[str] = None       # kind of the adapter, if it may be refused
    save: dict = field(default_factory=dict)
    family: str = "LORA"
    logits: bool = True
    strength: tuple = (0.35, 0.8)       # relative change of the logits that the random values aim at
    extra: Any = None


def cfg(**kw):
    out = dict(r=4, lora_alpha=8, target_modules="all-linear")
    out.update(kw)
    return out


PLAIN = Case("plain", "all linear layers, rank 4, alpha 8", cfg())
RSLORA = Case("rslora", "use_rslora: alpha over the root of the rank", cfg(use_rslora=True, lora_alpha=3))

FULL = [
    PLAIN,
    RSLORA,
    Case("qv", "q_proj and v_proj only, rank 8, alpha 16", cfg(r=8, lora_alpha=16, target_modules=QV)),
    Case("patterns", "alpha_pattern and rank_pattern with overlapping keys and regular expressions",
         cfg(rank_pattern=RANKS, alpha_pattern=ALPHAS)),
    Case("patterns-order", "the same alpha_pattern in another file order, so that other keys decide",
         cfg(alpha_pattern=ALPHAS), alpha_order=OTHER_ORDER),
    Case("patterns-rslora", "alpha_pattern and rank_pattern together with use_rslora",
         cfg(use_rslora=True, rank_pattern=RANKS, alpha_pattern=ALPHAS)),
    Case("bf16", "file in bfloat16", cfg(), dtype="bfloat16"),
    Case("f16", "file in float16", cfg(), dtype="float16"),
    Case("one-layer", "layers_to_transform: layer 1 only", cfg(
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        layers_to_transform=[1])),
    Case("regex", "target_modules as a regular expression: o_proj of layer 0, down_proj and k_proj of all",
         cfg(target_modules=r".*\.(layers\.0\.self_attn\.o_proj|mlp\.down_proj|self_attn\.k_proj)")),
    Case("rank1", "rank 1, fractional alpha 1.5, q_proj and v_proj", cfg(r=1, lora_alpha=1.5, target_modules=QV)),
    Case("rank16", "rank 16, q_proj and up_proj", cfg(r=16, lora_alpha=16, target_modules=["q_proj", "up_proj"])),
]

DORA = Case("dora", "use_dora", cfg(use_dora=True), refused="dora")
LORA_BIAS = Case("lora-bias", "lora_bias: a bias on B", cfg(
    lora_bias=True, target_modules=["q_proj", "k_proj", "v_proj", "down_proj"]), refused="lora_bias")
LM_HEAD = Case("lm-head", "q_proj and lm_head", cfg(target_modules=["q_proj", "lm_head"]), refused="lm_head",
               save=dict(save_embedding_layers=False))
EMBED = Case("embed", "q_proj and embed_tokens", cfg(target_modules=["q_proj", "embed_tokens"]),
             refused="embed_tokens", save=dict(save_embedding_layers=False))

LLAMA_OTHERS = [
    DORA,
    Case("dora-rslora", "use_dora with use_rslora and alpha_pattern", cfg(
        use_dora=True, use_rslora=True, alpha_pattern={"k_proj": 3, "mlp.*": 2}), refused="dora"),
    LORA_BIAS,
    LM_HEAD,
    EMBED,
    Case("embed-copy", "embed_tokens, with the base's own embedding saved beside it as PEFT does by default",
         cfg(target_modules=["q_proj", "embed_tokens"]), refused="embed_tokens"),
    Case("modules-to-save", "modules_to_save: a whole lm_head", cfg(
        target_modules=QV, modules_to_save=["lm_head"]), refused="modules_to_save"),
    Case("modules-to-save-norm", "modules_to_save: norm", cfg(
        target_modules=QV, modules_to_save=["norm"]), refused="modules_to_save"),
    Case("trainable-tokens", "trainable_token_indices 11 and 42", cfg(
        target_modules=QV, trainable_token_indices=[11, 42]), refused="trainable_token_indices"),
    Case("layer-replication", "layer_replication: layer 1 twice", cfg(
        target_modules=QV, layer_replication=[[0, 2], [1, 2]]), refused="layer_replication"),
    Case("alora", "alora_invocation_tokens 72, 105: active from there on", cfg(
        target_modules=["q_proj", "k_proj", "v_proj", "down_proj"], alora_invocation_tokens=[72, 105]),
        refused="alora"),
    Case("pissa", "init_lora_weights=pissa, not converted: A and B belong to a changed base", cfg(
        target_modules=QV, init_lora_weights="pissa"), refused="pissa"),
    Case("olora", "init_lora_weights=olora, not converted: A and B belong to a changed base", cfg(
        target_modules=QV, init_lora_weights="olora"), refused="olora"),
    Case("new-tokens", "vocabulary grown by 8 tokens, whole embeddings saved", cfg(target_modules=QV),
         refused="resized_vocabulary", logits=False, extra="resize", save=dict(save_embedding_layers=True)),
    Case("ia3", "another method: IA3", dict(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
        refused="peft_type", family="IA3", strength=(0.0, 9.0)),
    Case("loha", "another method: LoHa", dict(r=4, alpha=8, target_modules=QV), refused="peft_type", family="LOHA"),
]

GPT2 = [
    Case("plain", "Conv1D: c_attn, both c_proj and c_fc, fan_in_fan_out", cfg(
        target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)),
    Case("rslora", "Conv1D with use_rslora", cfg(
        target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True, use_rslora=True, lora_alpha=3)),
    Case("c-attn", "c_attn only, rank 8", cfg(r=8, lora_alpha=16, target_modules=["c_attn"], fan_in_fan_out=True)),
    Case("f16-attn-proj", "attn.c_proj and mlp.c_proj told apart, file in float16", cfg(
        target_modules=["attn.c_proj", "mlp.c_proj"], fan_in_fan_out=True,
        alpha_pattern={"attn.c_proj": 4, "mlp.c_proj": 12}), dtype="float16"),
    Case("dora", "use_dora on Conv1D", cfg(
        target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True, use_dora=True), refused="dora"),
]

CASES = {
    "llama": FULL + LLAMA_OTHERS,
    "qwen3": FULL + [DORA, LM_HEAD],
    "gpt2": GPT2,
    "granite": [PLAIN, RSLORA, DORA],
    "starcoder2": [PLAIN, RSLORA],
    "llama-untied": [PLAIN, RSLORA, LM_HEAD, EMBED],
    "mistral": [PLAIN, RSLORA],
    "qwen2": [PLAIN, RSLORA, LORA_BIAS, DORA, Case(
        "bias-all", "bias=all: the base's own biases, trained, are in the file", cfg(bias="all"), refused="bias")],
    "gemma2": [PLAIN, RSLORA],
    "gemma3": [PLAIN, RSLORA],
    "phi3": [PLAIN, RSLORA, Case(
        "patterns", "fused qkv_proj and gate_up_proj with alpha_pattern and rank_pattern", cfg(
            rank_pattern={"qkv_proj": 6}, alpha_pattern={"layers.0.mlp.gate_up_proj": 3, "qkv_proj": 10}))],
    "olmo2": [PLAIN, RSLORA],
    "stablelm": [PLAIN, RSLORA],
    "command-r": [PLAIN, RSLORA],
    # gptneox interleaves q, k and v by head, a row order that graft does not have yet.
    "gptneox": [replace(case, refused="architecture") for case in (PLAIN, RSLORA)],
    "smollm3": [PLAIN, RSLORA],
}

# Several adapters on one sequence, each with its own factor on top of its scale.
COMBINATIONS = [
    ("llama", "half", "one adapter at half strength", [("plain", 0.5)]),
    ("llama", "negative", "one adapter subtracted", [("qv", -0.75)]),
    ("llama", "two", "two adapters of different rank and scale", [("plain", 0.5), ("rslora", 0.75)]),
    ("llama", "three", "three adapters, one of them subtracted", [("patterns", 0.6), ("one-layer", 0.5), ("qv", -0.5)]),
    ("qwen3", "two", "two adapters", [("qv", 1.0), ("regex", 0.5)]),
]
