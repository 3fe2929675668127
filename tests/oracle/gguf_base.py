"""Writes a tiny base model as a GGUF file in float32, with a vocabulary small enough to commit.

Names, row orders and metadata follow what libllama 0.5.0 loads; that they are right is shown by the base's
own logits, which agree with transformers (see README.md).
"""
import re

import gguf
import numpy as np

from tiny_models import QUANTISED

LLAMA_NAMES = [
    (r"model\.embed_tokens", "token_embd"),
    (r"model\.norm", "output_norm"),
    (r"lm_head", "output"),
    (r"model\.layers\.(\d+)\.input_layernorm", r"blk.\1.attn_norm"),
    (r"model\.layers\.(\d+)\.self_attn\.([qkv])_proj", r"blk.\1.attn_\2"),
    (r"model\.layers\.(\d+)\.self_attn\.o_proj", r"blk.\1.attn_output"),
    (r"model\.layers\.(\d+)\.self_attn\.([qk])_norm", r"blk.\1.attn_\2_norm"),
    (r"model\.layers\.(\d+)\.post_attention_layernorm", r"blk.\1.ffn_norm"),
    (r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj", r"blk.\1.ffn_\2"),
]
# Where the norms stand after a block, transformers uses the same word for another place.
POST_NORM_NAMES = [
    (r"model\.layers\.(\d+)\.post_attention_layernorm", r"blk.\1.post_attention_norm"),
    (r"model\.layers\.(\d+)\.pre_feedforward_layernorm", r"blk.\1.ffn_norm"),
    (r"model\.layers\.(\d+)\.post_feedforward_layernorm", r"blk.\1.post_ffw_norm"),
] + LLAMA_NAMES
PHI3_NAMES = [
    (r"model\.layers\.(\d+)\.self_attn\.qkv_proj", r"blk.\1.attn_qkv"),
    (r"model\.layers\.(\d+)\.mlp\.gate_up_proj", r"blk.\1.ffn_up"),
] + LLAMA_NAMES
STARCODER2_NAMES = [
    (r"model\.layers\.(\d+)\.mlp\.c_fc", r"blk.\1.ffn_up"),
    (r"model\.layers\.(\d+)\.mlp\.c_proj", r"blk.\1.ffn_down"),
] + LLAMA_NAMES
GPT2_NAMES = [
    (r"transformer\.wte", "token_embd"),
    (r"transformer\.wpe", "position_embd"),
    (r"transformer\.ln_f", "output_norm"),
    (r"lm_head", "output"),
    (r"transformer\.h\.(\d+)\.ln_1", r"blk.\1.attn_norm"),
    (r"transformer\.h\.(\d+)\.ln_2", r"blk.\1.ffn_norm"),
    (r"transformer\.h\.(\d+)\.attn\.c_attn", r"blk.\1.attn_qkv"),
    (r"transformer\.h\.(\d+)\.attn\.c_proj", r"blk.\1.attn_output"),
    (r"transformer\.h\.(\d+)\.mlp\.c_fc", r"blk.\1.ffn_up"),
    (r"transformer\.h\.(\d+)\.mlp\.c_proj", r"blk.\1.ffn_down"),
]
GPTNEOX_NAMES = [
    (r"gpt_neox\.embed_in", "token_embd"),
    (r"gpt_neox\.final_layer_norm", "output_norm"),
    (r"lm_head|embed_out", "output"),
    (r"gpt_neox\.layers\.(\d+)\.input_layernorm", r"blk.\1.attn_norm"),
    (r"gpt_neox\.layers\.(\d+)\.post_attention_layernorm", r"blk.\1.ffn_norm"),
    (r"gpt_neox\.layers\.(\d+)\.attention\.query_key_value", r"blk.\1.attn_qkv"),
    (r"gpt_neox\.layers\.(\d+)\.attention\.dense", r"blk.\1.attn_output"),
    (r"gpt_neox\.layers\.(\d+)\.mlp\.dense_h_to_4h", r"blk.\1.ffn_up"),
    (r"gpt_neox\.layers\.(\d+)\.mlp\.dense_4h_to_h", r"blk.\1.ffn_down"),
]

# base: (GGUF architecture, names, are q and k rows interleaved, "rms" or "layer" norm)
ARCH = {
    "llama": ("llama", LLAMA_NAMES, True, "rms"),
    "llama-untied": ("llama", LLAMA_NAMES, True, "rms"),
    "mistral": ("llama", LLAMA_NAMES, True, "rms"),
    "granite": ("granite", LLAMA_NAMES, True, "rms"),
    "smollm3": ("smollm3", LLAMA_NAMES, True, "rms"),
    "qwen2": ("qwen2", LLAMA_NAMES, False, "rms"),
    "qwen3": ("qwen3", LLAMA_NAMES, False, "rms"),
    "gemma2": ("gemma2", POST_NORM_NAMES, False, "rms"),
    "gemma3": ("gemma3", POST_NORM_NAMES, False, "rms"),
    "olmo2": ("olmo2", POST_NORM_NAMES, False, "rms"),
    "phi3": ("phi3", PHI3_NAMES, False, "rms"),
    "stablelm": ("stablelm", LLAMA_NAMES, False, "layer"),
    "command-r": ("command-r", LLAMA_NAMES, False, "layer"),
    "starcoder2": ("starcoder2", STARCODER2_NAMES, False, "layer"),
    "gpt2": ("gpt2", GPT2_NAMES, False, "layer"),
    "gptneox": ("gptneox", GPTNEOX_NAMES, False, "layer"),
}

ARCH |= {name: ARCH[name[:5]] for name in QUANTISED}

# Row orders that are not as in the checkpoint, for the manifest: module, shape of the rows there and in the GGUF.
ROPE_PAIRS = {"self_attn.q_proj": "(heads, 2, half) in the checkpoint, (heads, half, 2) in the GGUF",
              "self_attn.k_proj": "(key-value heads, 2, half) in the checkpoint, (key-value heads, half, 2) in the GGUF"}
ROW_ORDERS = {
    **{base: ROPE_PAIRS for base, (_, _, interleaved, _) in ARCH.items() if interleaved},
    "gptneox": {"attention.query_key_value":
                "(heads, 3, head size) in the checkpoint, (3, heads, head size) in the GGUF; the bias likewise"},
}

# These carry a vocabulary with byte fallback, as SentencePiece models do; the others a byte-level one.
BYTE_FALLBACK = {"llama-untied", "gemma2"}

CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}"
          "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


def gguf_name(base, name):
    """model.layers.0.mlp.up_proj.weight -> blk.0.ffn_up.weight"""
    stem, suffix = name.rsplit(".", 1)
    for pattern, to in ARCH[base][1]:
        m = re.fullmatch(pattern, stem)
        if m:
            return m.expand(to) + "." + suffix
    raise KeyError(f"{base}: no GGUF name for {name}")


def interleave(x, n_head):
    """Rows of q and k as the llama family stores them: each head's two halves become pairs."""
    return x.reshape(n_head, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def to_gguf(base, config, name, x):
    """One tensor of transformers in GGUF's row order."""
    _, _, interleaved, _ = ARCH[base]
    if interleaved and ".q_proj." in name:
        return interleave(x, config.num_attention_heads)
    if interleaved and ".k_proj." in name:
        return interleave(x, config.num_key_value_heads)
    if base.startswith("gemma") and name.endswith("norm.weight"):
        return x + 1
    if base == "gpt2" and re.search(r"\.c_(attn|proj|fc)\.weight$", name):
        return x.T
    if base == "gptneox" and ".query_key_value." in name:
        return x.reshape(config.num_attention_heads, 3, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)
    return x


def byte_level_alphabet():
    """GPT-2's printable stand-in for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    out, extra = {}, 0
    for b in range(256):
        if b in plain:
            out[b] = chr(b)
        else:
            out[b] = chr(256 + extra)
            extra += 1
    return out


def add_vocabulary(w, base, n_vocab):
    T = gguf.TokenType
    if base in BYTE_FALLBACK:
        # ids 0..2 special, 3..258 the bytes, then five pieces
        tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
        types = [T.UNKNOWN, T.CONTROL, T.CONTROL] + [T.BYTE] * 256
        scores = [0.0] * 259
        tokens += ["\u2581", "th", "\u2581th", "<|im_start|>", "<|im_end|>"]
        types += [T.NORMAL, T.NORMAL, T.NORMAL, T.CONTROL, T.CONTROL]
        scores += [-3.0, -1.0, -2.0, 0.0, 0.0]
        w.add_tokenizer_model("llama")
        bos, eos, unk, pad = 1, 2, 0, None
    else:
        # ids 0..255 the bytes, then four merged pieces and four special tokens
        a = byte_level_alphabet()
        merges = [("t", "h"), ("h", "e"), (a[32], "t"), (a[32], "a")]
        tokens = [a[b] for b in range(256)] + [x + y for x, y in merges]
        types = [T.NORMAL] * 260
        tokens += ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
        types += [T.CONTROL] * 4
        scores = None
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("gpt-2")
        w.add_token_merges([f"{x} {y}" for x, y in merges])
        bos, eos, unk, pad = 260, 262, None, 263
    assert len(tokens) == len(types) == n_vocab == len(set(tokens))
    w.add_token_list(tokens)
    w.add_token_types([int(t) for t in types])
    if scores is not None:
        w.add_token_scores(scores)
        w.add_unk_token_id(unk)
    w.add_bos_token_id(bos)
    w.add_eos_token_id(eos)
    if pad is not None:
        w.add_pad_token_id(pad)
    w.add_add_bos_token(base in BYTE_FALLBACK)
    w.add_chat_template(CHATML)


def write_base(base, model, path):
    arch, _, _, norm = ARCH[base]
    c = model.config
    w = gguf.GGUFWriter(path, arch)
    w.add_type("model")
    # libllama looks into the name: with "phi3" in it, it wants Phi-3's own special tokens.
    w.add_name("tiny-fused" if base == "phi3" else f"tiny-{base}")
    kind = getattr(model, "quantised_type", None)
    w.add_file_type({None: gguf.LlamaFileType.ALL_F32, "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
                     "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0, "Q4_K": gguf.LlamaFileType.MOSTLY_Q4_K_S}[kind])
    if kind:
        w.add_quantization_version(gguf.GGML_QUANT_VERSION)

    n_head = c.num_attention_heads
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // n_head
    w.add_vocab_size(c.vocab_size)
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(c.n_inner if base == "gpt2" else c.intermediate_size)
    w.add_head_count(n_head)
    if base not in ("gpt2", "gptneox"):
        w.add_head_count_kv(c.num_key_value_heads)
    if head_dim * n_head != c.hidden_size:
        w.add_key_length(head_dim)
        w.add_value_length(head_dim)
    if norm == "rms":
        w.add_layer_norm_rms_eps(c.rms_norm_eps)
    else:
        w.add_layer_norm_eps(next(getattr(c, k) for k in ("layer_norm_eps", "norm_epsilon", "layer_norm_epsilon")
                                  if hasattr(c, k)))

    rope = getattr(c, "rope_parameters", None)
    if rope:
        whole = rope.get("full_attention", rope)
        w.add_rope_freq_base(whole["rope_theta"])
        w.add_rope_dimension_count(int(head_dim * whole.get("partial_rotary_factor", 1.0)))
        if "sliding_attention" in rope:
            w.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    if base.startswith("gemma"):
        w.add_sliding_window(c.sliding_window)
        w.add_sliding_window_pattern([t == "sliding_attention" for t in c.layer_types])
    if base == "gemma2":
        w.add_attn_logit_softcapping(c.attn_logit_softcapping)
        w.add_final_logit_softcapping(c.final_logit_softcapping)
    if base == "granite":
        w.add_attention_scale(c.attention_multiplier)
        w.add_embedding_scale(c.embedding_multiplier)
        w.add_residual_scale(c.residual_multiplier)
        w.add_logit_scale(c.logits_scaling)
    if base == "command-r":
        w.add_logit_scale(c.logit_scale)
    if base in ("stablelm", "gptneox"):
        w.add_parallel_residual(c.use_parallel_residual)
    if base == "phi3":
        w.add_rope_scaling_orig_ctx_len(c.max_position_embeddings)
        w.add_sliding_window(0)

    add_vocabulary(w, base, c.vocab_size)

    for name, p in model.named_parameters():
        blocks = getattr(model, "quantised", {}).get(name)
        if blocks is None:
            x = to_gguf(base, c, name, p.detach().numpy())
            w.add_tensor(gguf_name(base, name), np.ascontiguousarray(x, dtype=np.float32))
        else:   # orders go by rows, and a row is whole blocks
            w.add_tensor(gguf_name(base, name), np.ascontiguousarray(to_gguf(base, c, name, blocks)),
                         raw_dtype=gguf.GGMLQuantizationType[model.quantised_type])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
