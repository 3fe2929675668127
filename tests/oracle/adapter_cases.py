"""Which adapters are made for which base.

A case is a LoraConfig (as keyword arguments) and how its file is written; `kind` names what is special about it.
"""
from dataclasses import dataclass, field, replace
from typing import Any, Optional

# Kinds that graft refuses on purpose, and the error that it gives. Serving one is right only if the logits are.
REFUSED_FOR_EVER = {
    "layer_replication": "unsupported_adapter",
    "pissa": "base_modified",
    "olora": "base_modified",
    "resized_vocabulary": "wrong_shape",
    "peft_type": "unsupported_adapter",
    "target_parameters": "unsupported_adapter",
}
# Kinds that adapters applied by libllama itself (--apply grouped) may be refused for, for good.
ROWS_ONLY = [
    "dora", "dora_embedding", "lora_bias", "bias", "lm_head", "embed_tokens", "ensure_weight_tying", "modules_to_save",
    "trainable_token_indices", "alora", "split", "fused", "gguf_embedding",
]

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
    kind: Optional[str] = None          # what is special about it: see REFUSED_FOR_EVER
    save: dict = field(default_factory=dict)
    family: str = "LORA"
    logits: bool = True
    strength: tuple = (0.35, 0.8)       # relative change of the logits that the random values aim at
    extra: Any = None
    model: Optional[str] = None         # the model it was trained on, if that is a variant (see tiny_models.VARIANTS)


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

DORA = Case("dora", "use_dora", cfg(use_dora=True), kind="dora")
LORA_BIAS = Case("lora-bias", "lora_bias: a bias on B", cfg(
    lora_bias=True, target_modules=["q_proj", "k_proj", "v_proj", "down_proj"]), kind="lora_bias")
LM_HEAD = Case("lm-head", "q_proj and lm_head", cfg(target_modules=["q_proj", "lm_head"]), kind="lm_head",
               save=dict(save_embedding_layers=False))
EMBED = Case("embed", "q_proj and embed_tokens", cfg(target_modules=["q_proj", "embed_tokens"]),
             kind="embed_tokens", save=dict(save_embedding_layers=False))
HEAD_EMBED = Case("lm-head-embed", "q_proj, lm_head and embed_tokens, with alpha_pattern", cfg(
    target_modules=["q_proj", "lm_head", "embed_tokens"], alpha_pattern={"embed_tokens": 3, "lm_head": 5}),
    kind="lm_head", save=dict(save_embedding_layers=False))
EMBED_COPY = Case("embed-copy", "embed_tokens, with the base's own embedding saved beside it as PEFT does by default",
                  cfg(target_modules=["q_proj", "embed_tokens"]), kind="embed_tokens")
TOKENS = Case("trainable-tokens", "trainable_token_indices 11 and 42", cfg(
    target_modules=QV, trainable_token_indices=[11, 42]), kind="trainable_token_indices")


def saved(name, *modules, **more):
    return Case("modules-to-save" + name, f"modules_to_save: {', '.join(modules)}", cfg(
        target_modules=QV, modules_to_save=list(modules), **more), kind="modules_to_save")


SAVED = [
    saved("-embed", "embed_tokens"),
    saved("-head-embed", "lm_head", "embed_tokens"),
    saved("-input-norm", "input_layernorm"),
]
# With ensure_weight_tying PEFT gives a tied head the embedding's adapter, and writes the head's tensors, too.
TIED = [
    Case("embed-tied", "embed_tokens with ensure_weight_tying: the tied head has the adapter, too", cfg(
        target_modules=["q_proj", "embed_tokens"], ensure_weight_tying=True), kind="ensure_weight_tying",
        save=dict(save_embedding_layers=False)),
    replace(saved("-embed-tied", "embed_tokens", ensure_weight_tying=True),
            words="modules_to_save: embed_tokens, with ensure_weight_tying: the tied head, too",
            kind="ensure_weight_tying"),
]
DORA_EMBED = Case("dora-embed", "use_dora on q_proj, lm_head and embed_tokens: an embedding's magnitudes go by feature",
                  cfg(use_dora=True, target_modules=["q_proj", "lm_head", "embed_tokens"]), kind="dora_embedding",
                  save=dict(save_embedding_layers=False))
BIAS_ONLY = Case("bias-lora-only", "bias=lora_only: the biases of the modules with an adapter are in the file", cfg(
    bias="lora_only", target_modules=["q_proj", "v_proj", "down_proj"]), kind="bias")
BIAS_ALL = Case("bias-all", "bias=all: the base's own biases, trained, are in the file", cfg(bias="all"), kind="bias")
NORMS = saved("-norm", "norm")
HEAD = saved("", "lm_head")
TOKENS_BOTH = Case("trainable-tokens-head", "trainable_token_indices: 11 of embed_tokens, 42 and 11 of lm_head", cfg(
    target_modules=QV, trainable_token_indices={"embed_tokens": [11], "lm_head": [42, 11]}),
    kind="trainable_token_indices")
TARGET_PARAMETERS = Case("target-parameters", "target_parameters: up_proj.weight of all layers", cfg(
    target_modules=QV, target_parameters=["mlp.up_proj.weight"]), kind="target_parameters")
EXPERTS = Case("experts", "target_parameters: the experts of a mixture, all in one parameter", cfg(
    r=2, target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
    kind="target_parameters", model="qwen3-moe", logits=False)
ALORA = Case("alora", "alora_invocation_tokens 72, 105: active from there on", cfg(
    target_modules=["q_proj", "k_proj", "v_proj", "down_proj"], alora_invocation_tokens=[72, 105]), kind="alora")

LLAMA_OTHERS = [
    TARGET_PARAMETERS,
    DORA,
    Case("dora-rslora", "use_dora with use_rslora and alpha_pattern", cfg(
        use_dora=True, use_rslora=True, alpha_pattern={"k_proj": 3, "mlp.*": 2}), kind="dora"),
    LORA_BIAS,
    LM_HEAD,
    EMBED,
    HEAD_EMBED,
    DORA_EMBED,
    *TIED,
    *SAVED,
    EMBED_COPY,
    HEAD,
    NORMS,
    TOKENS,
    Case("layer-replication", "layer_replication: layer 1 twice", cfg(
        target_modules=QV, layer_replication=[[0, 2], [1, 2]]), kind="layer_replication"),
    ALORA,
    Case("pissa", "init_lora_weights=pissa, not converted: A and B belong to a changed base", cfg(
        target_modules=QV, init_lora_weights="pissa"), kind="pissa"),
    Case("olora", "init_lora_weights=olora, not converted: A and B belong to a changed base", cfg(
        target_modules=QV, init_lora_weights="olora"), kind="olora"),
    Case("new-tokens", "vocabulary grown by 8 tokens, whole embeddings saved", cfg(target_modules=QV),
         kind="resized_vocabulary", logits=False, extra="resize", save=dict(save_embedding_layers=True)),
    Case("ia3", "another method: IA3", dict(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
        kind="peft_type", family="IA3", strength=(0.0, 9.0)),
    Case("loha", "another method: LoHa", dict(r=4, alpha=8, target_modules=QV), kind="peft_type", family="LOHA"),
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
        target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True, use_dora=True), kind="dora"),
    Case("lora-bias", "lora_bias on Conv1D", cfg(
        target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True, lora_bias=True), kind="lora_bias"),
    Case("bias-all", "bias=all: all biases, those of the norms as well", cfg(
        target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, bias="all"), kind="bias"),
    Case("bias-lora-only", "bias=lora_only on Conv1D", cfg(
        target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True, bias="lora_only"), kind="bias"),
    Case("lm-head-embed", "c_attn, lm_head and wte", cfg(
        target_modules=["c_attn", "lm_head", "wte"], fan_in_fan_out=True), kind="lm_head",
        save=dict(save_embedding_layers=False)),
    Case("modules-to-save-norm", "modules_to_save: ln_f with its bias", cfg(
        target_modules=["c_attn"], fan_in_fan_out=True, modules_to_save=["ln_f", "ln_1"]), kind="modules_to_save"),
    Case("modules-to-save-embed", "modules_to_save: wte", cfg(
        target_modules=["c_attn"], fan_in_fan_out=True, modules_to_save=["wte"]), kind="modules_to_save"),
    Case("trainable-tokens", "trainable_token_indices 11 and 42 of wte", cfg(
        target_modules=["c_attn"], fan_in_fan_out=True, trainable_token_indices={"wte": [11, 42]}),
        kind="trainable_token_indices"),
]

# Modules of which the GGUF's weight is a slice, or which are slices of the GGUF's.
SPLIT = [replace(case, name="split-" + case.name, words="q, k, v, gate and up apart, their weights fused in the GGUF: "
                 + case.words, kind="split", model="phi3-split")
         for case in (PLAIN, Case("patterns", "alpha_pattern and rank_pattern", cfg(
             rank_pattern={"k_proj": 6, "up_proj": 2}, alpha_pattern={"v_proj": 3, "layers.1.mlp.gate_proj": 10})),
             Case("v", "v_proj and up_proj alone", cfg(r=8, target_modules=["v_proj", "up_proj"])), DORA)]
FUSED = [replace(case, name="fused-" + case.name, words="qkv_proj and gate_up_proj, their weights apart in the GGUF: "
                 + case.words, kind="fused", model="llama-untied-fused")
         for case in (PLAIN, Case("patterns", "alpha_pattern and rank_pattern", cfg(
             rank_pattern={"qkv_proj": 6}, alpha_pattern={"layers.0.mlp.gate_up_proj": 3, "qkv_proj": 10})), DORA)]

GPTNEOX = [replace(case, kind="gptneox") for case in (
    PLAIN, RSLORA, DORA, replace(LORA_BIAS, config=cfg(lora_bias=True, target_modules=["query_key_value", "dense"])),
    BIAS_ALL)]

CASES = {
    "llama": FULL + LLAMA_OTHERS,
    "qwen3": FULL + [
        DORA, LORA_BIAS, LM_HEAD, EMBED, HEAD_EMBED, DORA_EMBED, TOKENS, ALORA, TIED[0], SAVED[0], SAVED[2],
        HEAD, EXPERTS, saved("-qk-norm", "q_norm", "k_norm")],
    "gpt2": GPT2,
    "granite": [PLAIN, RSLORA, DORA, HEAD_EMBED],
    "starcoder2": [PLAIN, RSLORA, DORA, replace(LORA_BIAS, config=cfg(lora_bias=True)), BIAS_ALL, NORMS],
    "llama-untied": [PLAIN, RSLORA, LM_HEAD, EMBED, HEAD_EMBED, TOKENS, TOKENS_BOTH, HEAD, SAVED[1], *FUSED],
    "mistral": [PLAIN, RSLORA, DORA],
    "qwen2": [PLAIN, RSLORA, LORA_BIAS, DORA, BIAS_ALL, BIAS_ONLY, HEAD_EMBED],
    "gemma2": [PLAIN, RSLORA, DORA, HEAD_EMBED, NORMS, TOKENS],
    "gemma3": [PLAIN, RSLORA, DORA, EMBED, saved("-qk-norm", "q_norm", "k_norm"), saved("-embed", "embed_tokens")],
    "phi3": [PLAIN, RSLORA, Case(
        "patterns", "fused qkv_proj and gate_up_proj with alpha_pattern and rank_pattern", cfg(
            rank_pattern={"qkv_proj": 6}, alpha_pattern={"layers.0.mlp.gate_up_proj": 3, "qkv_proj": 10})),
        DORA, *SPLIT],
    "olmo2": [PLAIN, RSLORA, saved("-qk-norm", "q_norm", "k_norm")],
    "stablelm": [PLAIN, RSLORA, BIAS_ALL, NORMS],
    "command-r": [PLAIN, RSLORA, DORA, NORMS],
    "gptneox": GPTNEOX,
    "smollm3": [PLAIN, RSLORA],
    # The bases in Q8_0 and Q4_0 take the adapters of the float32 bases: see USES.
    "llama-q8_0": [],
    "llama-q4_0": [],
    "llama-q4_k": [PLAIN, DORA, HEAD_EMBED],
    "qwen3-q8_0": [],
    "qwen3-q4_0": [],
    "qwen3-q4_k": [PLAIN, DORA, HEAD_EMBED],
}


@dataclass
class Foreign:
    """A case in the format of others. `name` is the format's and the case's."""
    base: str
    format: str                         # mlx, gguf
    case: str
    kinds: tuple = ()

    @property
    def name(self):
        return f"{self.format}-{self.case}"


FOREIGN = [
    *(Foreign(base, "mlx", case, ("mlx",)) for base in ("llama", "qwen3", "gemma3") for case in ["plain"]),
    Foreign("qwen3", "mlx", "one-layer", ("mlx",)),
    *(Foreign(base, "mlx", "dora", ("mlx", "dora")) for base in ("llama", "qwen2")),
    Foreign("llama-untied", "mlx", "lm-head", ("mlx", "lm_head")),
    Foreign("llama-untied", "mlx", "embed", ("mlx", "embed_tokens")),
    *(Foreign("llama", "gguf", case) for case in ("plain", "rslora", "patterns", "f16")),
    *(Foreign(base, "gguf", "plain") for base in ("qwen3", "gpt2", "phi3")),
    Foreign("gptneox", "gguf", "plain", ("gptneox",)),
    *(Foreign(base, "gguf", "alora", ("alora",)) for base in ("llama", "qwen3")),
    Foreign("llama-untied", "gguf", "lm-head-embed", ("gguf_embedding",)),
    Foreign("llama", "gguf", "embed", ("gguf_embedding",)),
]


@dataclass
class Use:
    """Adapters at work: one or several of the cases, each with a factor on top of its scale."""
    base: str
    name: str
    words: str
    parts: list                         # of (case, factor)
    tokens: Optional[list] = None       # other tokens than the base's
    of: Optional[str] = None            # whose adapters, if not the base's own
    same: Optional[str] = None          # the use whose logits are wanted, this one only differing in its order


def quantised(of):
    return [Use(f"{of}-{kind}", case, f"{case} of {of} on this base", [(case, 1)], of=of)
            for kind in ("q8_0", "q4_0")
            for case in ("plain", "dora", "lm-head-embed", "modules-to-save-input-norm")]


def factors(base, *cases, of=(("half", 0.5), ("negative", -0.75))):
    return [Use(base, f"{case}-{word}", f"{case} with a factor of {factor}", [(case, factor)])
            for case in cases for word, factor in of]


HALF, NEGATIVE = [("half", 0.5)], [("negative", -0.75)]


# 72, 105 is the invocation. Ids stay below 256 and the text below 16 tokens, so that logits stay few.
ALORA_TOKENS = {
    "start": ("at the start", [72, 105, 200, 30, 77, 8]),
    "twice": ("twice: the last one counts", [31, 72, 105, 90, 72, 105, 14, 99]),
    "absent": ("absent: the base's logits", [31, 72, 90, 105, 72, 14]),
    "end": ("at the very end", [31, 14, 90, 200, 72, 105]),
    "cut": ("cut off at the end, whole before", [31, 72, 105, 90, 33, 72]),
}


def invocations(base):
    return [Use(base, f"alora-{name}", f"alora, the invocation {words}", [("alora", 1)], tokens=tokens)
            for name, (words, tokens) in ALORA_TOKENS.items()]


USES = [
    *quantised("llama"),
    *quantised("qwen3"),
    Use("llama", "combination-half", "one adapter at half strength", [("plain", 0.5)]),
    Use("llama", "combination-negative", "one adapter subtracted", [("qv", -0.75)]),
    Use("llama", "combination-two", "two adapters of different rank and scale", [("plain", 0.5), ("rslora", 0.75)]),
    Use("llama", "combination-three", "three adapters, one of them subtracted",
        [("patterns", 0.6), ("one-layer", 0.5), ("qv", -0.5)]),
    Use("llama", "combination-three-reversed", "the same three in another order",
        [("qv", -0.5), ("one-layer", 0.5), ("patterns", 0.6)], same="combination-three"),
    Use("qwen3", "combination-two", "two adapters", [("qv", 1.0), ("regex", 0.5)]),
    Use("qwen3", "combination-two-reversed", "the same two in another order", [("regex", 0.5), ("qv", 1.0)],
        same="combination-two"),
    *(use for base in ("llama", "qwen3") for use in [
        *factors(base, "dora", "lm-head-embed"),
        *factors(base, "lora-bias", "modules-to-save", "modules-to-save-embed", "modules-to-save-input-norm",
                 "trainable-tokens", "alora", of=HALF if base == "qwen3" else NEGATIVE),
        Use(base, "dora-and-plain", "DoRA first, then a plain adapter", [("dora", 1), ("plain", 0.5)]),
        Use(base, "plain-and-dora", "the same in the other order", [("plain", 0.5), ("dora", 1)], same="dora-and-plain"),
        Use(base, "dora-and-two", "DoRA and two others, each with a factor",
            [("dora", 0.5), ("plain", 0.5), ("qv", -0.75)]),
        Use(base, "two-around-dora", "the same in another order",
            [("qv", -0.75), ("dora", 0.5), ("plain", 0.5)], same="dora-and-two"),
        Use(base, "head-and-saved-norm", "embeddings and head of one adapter, a norm of another",
            [("lm-head-embed", 0.75), ("modules-to-save-input-norm", 0.5)]),
        *invocations(base),
    ]),
    *factors("llama", "embed-tied", "dora-embed", of=HALF),
    *factors("llama", "modules-to-save-norm", of=HALF),
    *factors("qwen3", "modules-to-save-qk-norm", of=NEGATIVE),
    *factors("gpt2", "dora"),
    *factors("gpt2", "bias-all", "modules-to-save-norm", of=HALF),
    Use("gpt2", "dora-and-plain", "DoRA first, then a plain adapter", [("dora", 1), ("plain", 0.5)]),
    *factors("qwen2", "bias-all", of=NEGATIVE),
    *factors("qwen2", "bias-lora-only", of=HALF),
    *factors("llama-untied", "trainable-tokens-head", of=HALF),
    *factors("gemma2", "modules-to-save-norm", of=NEGATIVE),
]
