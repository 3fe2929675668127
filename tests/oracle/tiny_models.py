"""Tiny random base models, one recipe for each architecture.

Every parameter is drawn by numpy from a seed made of the base's name and the parameter's name, so a base
does not change when another one is added, and does not depend on torch's generator. The values are larger
than a trained model's initialisation on purpose: attention is far from uniform, norms and biases are far
from one and zero, so that a wrongly permuted row or a forgotten bias shows in the logits.
"""
import zlib

import numpy as np
import torch
import transformers as tf

from quantise import quantised

N_VOCAB = 264
HIDDEN = 64
N_FF = 96
N_LAYER = 2
N_CTX = 512

ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def _common(**more):
    out = dict(
        vocab_size=N_VOCAB, hidden_size=HIDDEN, intermediate_size=N_FF, num_hidden_layers=N_LAYER,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=N_CTX,
        rope_parameters=dict(ROPE), bos_token_id=None, eos_token_id=None, pad_token_id=None,
        tie_word_embeddings=False)
    out.update(more)
    return out


def _small(**more):
    """Half as wide: enough to show an architecture's names and row orders."""
    return _common(**{**dict(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1),
                      **more})


# name: (configuration, model class, words for the manifest, tolerance class)
# "exact": every operation has the same arithmetic in ggml and torch, but for the order of sums.
# "gelu":  ggml reads GELU from a table in half precision.
RECIPES = {
    "llama": (lambda: tf.LlamaConfig(**_common(tie_word_embeddings=True)), tf.LlamaForCausalLM,
              "llama, grouped-query attention, tied embeddings", "exact"),
    "llama-untied": (lambda: tf.LlamaConfig(**_common()), tf.LlamaForCausalLM,
                     "llama, grouped-query attention, its own output head, byte-fallback vocabulary", "exact"),
    "mistral": (lambda: tf.MistralConfig(**_small(sliding_window=None)),
                tf.MistralForCausalLM, "mistral (a llama in GGUF), one key-value head", "exact"),
    "qwen2": (lambda: tf.Qwen2Config(**_common()), tf.Qwen2ForCausalLM,
              "qwen2, biases on q, k and v", "exact"),
    "qwen3": (lambda: tf.Qwen3Config(**_common(head_dim=32, tie_word_embeddings=True)), tf.Qwen3ForCausalLM,
              "qwen3, norms on q and k, head size 32 (q is wider than the hidden state), tied embeddings", "exact"),
    "gemma2": (lambda: tf.Gemma2Config(**_common(
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, query_pre_attn_scalar=32, sliding_window=8,
        tie_word_embeddings=True, attn_logit_softcapping=20.0, final_logit_softcapping=15.0)), tf.Gemma2ForCausalLM,
        "gemma2, norms before and after, soft caps, sliding window of 8 on layer 0, byte-fallback vocabulary", "gelu"),
    "gemma3": (lambda: tf.Gemma3TextConfig(**_common(
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, query_pre_attn_scalar=32, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"], tie_word_embeddings=True,
        rope_parameters={"sliding_attention": dict(ROPE),
                         "full_attention": {"rope_type": "default", "rope_theta": 1000000.0}})),
        tf.Gemma3ForCausalLM, "gemma3 (text), norms on q and k, sliding window of 8 on layer 0", "gelu"),
    "phi3": (lambda: tf.Phi3Config(**_common()), tf.Phi3ForCausalLM,
             "phi3, fused qkv_proj and gate_up_proj", "exact"),
    "gpt2": (lambda: tf.GPT2Config(
        vocab_size=N_VOCAB, n_embd=HIDDEN, n_inner=N_FF, n_layer=N_LAYER, n_head=4, n_positions=128,
        bos_token_id=None, eos_token_id=None), tf.GPT2LMHeadModel,
        "gpt2, Conv1D (transposed) weights, fused c_attn, tied", "gelu"),
    "granite": (lambda: tf.GraniteConfig(**_common(
        tie_word_embeddings=True, embedding_multiplier=2.0, residual_multiplier=0.6,
        attention_multiplier=0.2, logits_scaling=1.5)), tf.GraniteForCausalLM,
        "granite, a llama with multipliers, tied", "exact"),
    "starcoder2": (lambda: tf.Starcoder2Config(**_small(sliding_window=None, tie_word_embeddings=True)),
                   tf.Starcoder2ForCausalLM, "starcoder2, biases everywhere, tied", "gelu"),
    "olmo2": (lambda: tf.Olmo2Config(**_small()), tf.Olmo2ForCausalLM,
              "olmo2, norms after the blocks, norms over all of q and k", "exact"),
    "stablelm": (lambda: tf.StableLmConfig(**_small(
        use_qkv_bias=True, rope_parameters={**ROPE, "partial_rotary_factor": 0.25})),
        tf.StableLmForCausalLM, "stablelm, rotary on a quarter of each head, biases on q, k and v", "exact"),
    "command-r": (lambda: tf.CohereConfig(**_small(tie_word_embeddings=True, logit_scale=0.7)),
                  tf.CohereForCausalLM,
                  "command-r, attention and feed-forward in parallel, interleaved rotary, tied", "exact"),
    "gptneox": (lambda: tf.GPTNeoXConfig(**{
        k: v for k, v in _small(
            hidden_act="gelu_new", rope_parameters={**ROPE, "partial_rotary_factor": 0.5}).items()
        if k != "num_key_value_heads"}), tf.GPTNeoXForCausalLM,
        "gpt-neox, fused query_key_value whose rows GGUF stores in another order", "gelu"),
    "smollm3": (lambda: tf.SmolLM3Config(**_small(tie_word_embeddings=True)), tf.SmolLM3ForCausalLM,
                "smollm3, a llama under another GGUF name, tied", "exact"),
}


# K-quants come in blocks of 256, so these are wider.
_WIDE = dict(hidden_size=256, intermediate_size=256, num_hidden_layers=1)
WIDE = {
    "llama-wide": (lambda: tf.LlamaConfig(**_common(tie_word_embeddings=True, **_WIDE)), tf.LlamaForCausalLM),
    "qwen3-wide": (lambda: tf.Qwen3Config(**_common(tie_word_embeddings=True, head_dim=64, **_WIDE)),
                   tf.Qwen3ForCausalLM),
}
# name: (whose weights, ggml's type for every matrix). The model has the weights that the blocks stand for.
QUANTISED = {
    "llama-q8_0": ("llama", "Q8_0"),
    "llama-q4_0": ("llama", "Q4_0"),
    "llama-q4_k": ("llama-wide", "Q4_K"),
    "qwen3-q8_0": ("qwen3", "Q8_0"),
    "qwen3-q4_0": ("qwen3", "Q4_0"),
    "qwen3-q4_k": ("qwen3-wide", "Q4_K"),
}
for _name, (_of, _type) in QUANTISED.items():
    RECIPES[_name] = (*(WIDE.get(_of) or RECIPES[_of][:2]), f"{_of}, all matrices in {_type}, tied embeddings", "quantised")


def seed_of(*words):
    return [zlib.crc32("/".join(words).encode())]


def make_base(name):
    """The base model as transformers runs it: float32, eager attention, always the same weights. Of a quantised
    one, model.quantised has the blocks by the parameter's name."""
    if name in QUANTISED:
        return quantised_base(*QUANTISED[name])
    config_of, model_class = WIDE.get(name) or RECIPES[name][:2]
    config = config_of()
    config._attn_implementation = "eager"
    config.use_cache = False
    model = model_class(config).to(torch.float32).eval()
    gemma = name.startswith("gemma")
    with torch.no_grad():
        for pname, p in model.named_parameters():
            rng = np.random.default_rng(seed_of(name, pname))
            x = rng.standard_normal(tuple(p.shape))
            if pname.endswith("bias"):
                x *= 0.1
            elif p.ndim == 1:
                x = 0.2 * x if gemma else 1 + 0.2 * x
            elif "embed" in pname or ".wte." in pname:
                x *= 0.125 if gemma else 0.5
            elif ".wpe." in pname:
                x *= 0.3
            elif "lm_head" in pname or "embed_out" in pname:
                x *= 0.5
            else:
                fan_in = p.shape[0] if name == "gpt2" else p.shape[1]
                x /= np.sqrt(fan_in)
            p.copy_(torch.from_numpy(x.astype(np.float32)))
    for p in model.parameters():
        p.requires_grad_(False)
    return model


def quantised_base(name, type_name):
    model = make_base(name)
    model.quantised, model.quantised_type = {}, type_name
    with torch.no_grad():
        for pname, p in model.named_parameters():
            if p.ndim == 2:
                model.quantised[pname], x = quantised(p.numpy(), type_name)
                p.copy_(torch.from_numpy(x))
    return model


def tokens_for(name, n=16):
    """The fixed token sequence of a base. Bytes only, in both vocabularies, and it holds the pair 72, 105
    that the invocation test looks for and the ids 11 and 42 that the token tests train."""
    rng = np.random.default_rng(seed_of(name, "tokens"))
    t = rng.integers(3, 256, size=n).tolist()
    t[3], t[9] = 11, 42
    t[5], t[6] = 72, 105
    t[14] = 11
    return [int(v) for v in t]


def parts_of(base, layer):
    """q, k, v, gate and up of a llama-like layer, whatever it keeps fused."""
    c = base.config
    head = c.hidden_size // c.num_attention_heads
    if hasattr(layer.self_attn, "qkv_proj"):
        qkv = layer.self_attn.qkv_proj.weight.split(
            [c.num_attention_heads * head, c.num_key_value_heads * head, c.num_key_value_heads * head])
        return [*qkv, *layer.mlp.gate_up_proj.weight.chunk(2)]
    a, m = layer.self_attn, layer.mlp
    return [a.q_proj.weight, a.k_proj.weight, a.v_proj.weight, m.gate_proj.weight, m.up_proj.weight]


def regrouped(base_name, model_class, config):
    """The same model with its projections fused or split the other way."""
    base = make_base(base_name)
    config._attn_implementation = "eager"
    config.use_cache = False
    model = model_class(config).to(torch.float32).eval()
    weights = base.state_dict()
    for i, layer in enumerate(base.model.layers):
        q, k, v, gate, up = parts_of(base, layer)
        at = f"model.layers.{i}."
        weights |= {f"{at}self_attn.qkv_proj.weight": torch.cat([q, k, v]),
                    f"{at}mlp.gate_up_proj.weight": torch.cat([gate, up])}
        weights |= {f"{at}self_attn.{n}_proj.weight": x for n, x in zip("qkv", (q, k, v))}
        weights |= {f"{at}mlp.{n}_proj.weight": x for n, x in (("gate", gate), ("up", up))}
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    for p in model.parameters():
        p.requires_grad_(False)
    return model


def mixture():
    """A small mixture of experts, for adapters that are refused; no GGUF is made of it."""
    torch.manual_seed(0)
    model = tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(**_common(
        head_dim=32, tie_word_embeddings=True, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)))
    return model.to(torch.float32).eval()


# Models with a base's weights in other modules. An adapter trained on one is for the base's GGUF.
VARIANTS = {
    "qwen3-moe": mixture,
    "phi3-split": lambda: regrouped("phi3", tf.LlamaForCausalLM, tf.LlamaConfig(**_common(rms_norm_eps=1e-5))),
    "llama-untied-fused": lambda: regrouped("llama-untied", tf.Phi3ForCausalLM, tf.Phi3Config(
        **_common(rms_norm_eps=1e-6))),
}


def make_model(name):
    """A base or a variant of one."""
    return VARIANTS[name]() if name in VARIANTS else make_base(name)
