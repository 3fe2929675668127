"""L: tensors against the base. The base is tests/oracle/golden/bases/llama.gguf: two layers, 64 wide, 2 heads' keys of 4, 264 tokens."""

import struct

from making import save
from table import add, dice


def spoil(row, variant, code, by_name=None):
    """For a change of the good adapter."""
    def take(change):
        def make(folder, good):
            change(good)
            return save(folder, good)
        add(row, variant, code, make, by_name=by_name)
        return change
    return take


def lora(good, module, n_in, n_out, rank=4):
    good.put(f"base_model.model.{module}.lora_A.weight", rank, n_in)
    good.put(f"base_model.model.{module}.lora_B.weight", n_out, rank)


# ---- L01, L02: pairs ------------------------------------------------------------------------------------------------------

for part, words in (("lora_B", "A without B"), ("lora_A", "B without A")):
    @spoil("L01", words, "missing_pair")
    def _(good, part=part):
        del good.tensors[good.first(f"{part}.weight")]

    @spoil("L01", f"{words}, everywhere", "missing_pair")
    def _(good, part=part):
        good.tensors = {n: t for n, t in good.tensors.items() if part not in n}


@spoil("L01", "A of one module, B of another", "missing_pair")
def _(good):
    del good.tensors[good.first("q_proj.lora_A.weight")], good.tensors[good.first("v_proj.lora_B.weight")]


for by in (-3, -1, 1, 60):
    @spoil("L02", f"B's rank is A's{by:+d}", "rank_mismatch")
    def _(good, by=by):
        good.reshape("q_proj.lora_B.weight", lambda d: [d[0], d[1] + by])

# ---- L03, L04, L05: shapes ------------------------------------------------------------------------------------------------

for module in ("q_proj", "k_proj", "o_proj", "gate_proj", "down_proj"):
    @spoil("L03", f"{module}: A for a wider base", "wrong_shape")
    def _(good, module=module):
        good.reshape(f"{module}.lora_A.weight", lambda d: [d[0], d[1] * 2])

    @spoil("L03", f"{module}: B for a narrower base", "wrong_shape")
    def _(good, module=module):
        good.reshape(f"{module}.lora_B.weight", lambda d: [d[0] // 2, d[1]])


@spoil("L03", "A wider by one", "wrong_shape")
def _(good):
    good.reshape("q_proj.lora_A.weight", lambda d: [d[0], d[1] + 1])


@spoil("L03", "all of it for a base of 128", "wrong_shape")
def _(good):
    for name in list(good.tensors):
        _, dims, _ = good.tensors[name]
        good.put(name, *([dims[0], dims[1] * 2] if "lora_A" in name else [dims[0] * 2, dims[1]]))


@spoil("L03", "k_proj as large as q_proj: a base without grouped attention", "wrong_shape")
def _(good):
    good.reshape("k_proj.lora_B.weight", lambda d: [64, d[1]])


@spoil("L03", "matrix of 1 by 1", "wrong_shape")
def _(good):
    good.reshape("q_proj.lora_A.weight", lambda d: [1, 1])


for module in ("q_proj", "down_proj"):
    @spoil("L04", f"{module}: A and B transposed", "wrong_shape")
    def _(good, module=module):
        good.reshape(f"{module}.lora_A.weight", lambda d: d[::-1])
        good.reshape(f"{module}.lora_B.weight", lambda d: d[::-1])


@spoil("L04", "A alone transposed", "wrong_shape")
def _(good):
    good.reshape("q_proj.lora_A.weight", lambda d: d[::-1])


@spoil("L04", "A and B exchanged", "wrong_shape")
def _(good):
    a, b = good.first("down_proj.lora_A.weight"), good.first("down_proj.lora_B.weight")
    good.tensors[a], good.tensors[b] = good.tensors[b], good.tensors[a]


@spoil("L05", "square, so that a transpose cannot be seen: taken as PEFT declares it", None)
def _(good):
    for part in ("lora_A", "lora_B"):
        good.reshape(f"layers.0.self_attn.q_proj.{part}.weight", lambda d: [64, 64])
    good.config["rank_pattern"] = {"layers.0.self_attn.q_proj": 64}


# ---- L06, L07, L08: names -------------------------------------------------------------------------------------------------

for new in ("layers.2.", "layers.40.", "layers.-1.", "layers.+1.", "layers.007.", "layers.01.", "layers.1e1.", "layers.1.0.", "layers.0x1.", "layers.2147483648.",
            "layers.4294967297.", "layers.18446744073709551616.", "layers.18446744073709551617.", "layers..", "layers.x.", "layers.1x."):
    spoil("L06", f"layer {new}", "unknown_target")(lambda good, new=new: good.rename("layers.1.", new))
for new in ("qq_proj", "q_proj2", "Q_proj", "q_proj.q_proj", "q_pro", "qproj"):
    spoil("L06", f"module {new}", "unknown_target")(lambda good, new=new: good.rename("q_proj", new))
spoil("L06", "module of the other half of a layer", "unknown_target")(lambda good: good.rename("self_attn.q_proj", "mlp.q_proj"))
spoil("L06", "module path of 500 bytes", "unknown_target")(lambda good: good.rename("q_proj", "q_proj" + "x" * 400))
for norm in ("input_layernorm", "post_attention_layernorm"):
    spoil("L07", f"{norm} as target", "unsupported_target")(lambda good, norm=norm: good.rename("self_attn.q_proj", norm))
spoil("L07", "final norm as target", "unsupported_target")(lambda good: lora(good, "model.norm", 64, 64))
spoil("L07", "rotary embedding as target", "unsupported_target")(lambda good: lora(good, "model.rotary_emb", 64, 64))
PREFIX = "base_model.model.model."
for new, words in (("language_model.", "of an old multimodal model"), ("", "none"), ("base_model.", "half of it"), ("model.", "of the model alone"),
                   ("base_model.model.base_model.model.model.", "twice"), ("transformer.", "of GPT-2"), ("BASE_MODEL.MODEL.MODEL.", "in capitals")):
    spoil("L08", f"prefix everywhere: {words}", "zero_targets")(lambda good, new=new: good.rename(PREFIX, new))
spoil("L08", "another architecture's layers", "zero_targets")(lambda good: good.rename("model.model.layers", "model.transformer.h"))
spoil("L08", "wrong prefix in one layer", "unmapped_tensors")(lambda good: good.rename(PREFIX + "layers.1.", "language_model.layers.1."))


@spoil("L08", "one tensor too many, elsewhere", "unmapped_tensors")
def _(good):
    lora(good, "model.vision_tower.layers.0.q_proj", 64, 64)


# ---- L09, L10: one weight twice, fused weights --------------------------------------------------------------------------------

for twin in (".default.weight", ".default", ""):
    @spoil("L09", f"two names for one weight, the other ends in {twin or 'nothing'}", "duplicate_target")
    def _(good, twin=twin):
        for part in ("lora_A", "lora_B"):
            good.tensors[good.first(f"q_proj.{part}.weight").replace(".weight", twin)] = good.tensors[good.first(f"q_proj.{part}.weight")]


@spoil("L09", "the same layer under a multimodal model's name", "duplicate_target")
def _(good):
    for part in ("lora_A", "lora_B"):
        name = good.first(f"q_proj.{part}.weight")
        good.tensors[name.replace("model.model.layers", "model.model.language_model.layers")] = good.tensors[name]


for part in ("", ".weight", ".default", ".default.weight"):
    spoil("L09", f"all names end in lora_A{part}", None)(lambda good, part=part: (
        good.rename("lora_A.weight", "lora_A" + part), good.rename("lora_B.weight", "lora_B" + part)))
for end in (".weight.weight", ".other.weight", ".default.default.weight", ".weight2", ".WEIGHT"):
    spoil("L08", f"names end in lora_A{end}", "unexpected_tensor" if end.endswith(("2", "T")) else "unknown_target")(
        lambda good, end=end: (good.rename("lora_A.weight", "lora_A" + end), good.rename("lora_B.weight", "lora_B" + end)))

# ---- L11 to L15: numbers --------------------------------------------------------------------------------------------------------

F32 = (("NaN", 0x7fc00000), ("infinity", 0x7f800000), ("-infinity", 0xff800000), ("signalling NaN", 0xff800001))


def poison(variant, code, end, at, bits, dtype="F32"):
    @spoil("L11", variant, code)
    def _(good):
        name = good.first(end)
        if dtype != "F32":
            good.put(name, *good.tensors[name][1], dtype=dtype)
        _, dims, data = good.tensors[name]
        width = 4 if dtype == "F32" else 2
        begin = at * width if at >= 0 else len(data) + at * width
        good.tensors[name] = (dtype, dims, data[:begin] + bits.to_bytes(width, "little") + data[begin + width:])


for words, bits in F32:
    poison(words, "non_finite", "q_proj.lora_A.weight", 2, bits)
    poison(f"{words} as the last value of a B", "non_finite", "up_proj.lora_B.weight", -1, bits)
poison("NaN as the very first value", "non_finite", "down_proj.lora_A.weight", 0, 0x7fc00000)
for dtype, words, bits in (("F16", "NaN", 0x7e00), ("F16", "infinity", 0x7c00), ("BF16", "NaN", 0x7fc0), ("BF16", "-infinity", 0xff80)):
    poison(f"{words} in {dtype}", "non_finite", "q_proj.lora_A.weight", 5, bits, dtype)
poison("largest finite F16", None, "q_proj.lora_A.weight", 5, 0x7bff, "F16")
poison("largest finite F32, which float16 cannot hold", None, "q_proj.lora_A.weight", 5, 0x47800000)


def all_of(row, variant, code, part, bits, by_name=None):
    @spoil(row, variant, code, by_name)
    def _(good):
        good.tensors = {n: (t[0], t[1], struct.pack("<I", bits) * (len(t[2]) // 4)) if part in n else t for n, t in good.tensors.items()}


all_of("L12", "B all zero: loads, with a warning", None, "lora_B", 0)
all_of("L12", "A all zero: loads, with a warning", None, "lora_A", 0)
all_of("L12", "all minus zero: loads, with a warning", None, "lora", 0x80000000)
all_of("L14", "A all denormal", None, "lora_A", 1)
all_of("L15", "A all just above float16's range", None, "lora_A", 0x477fe100, "non_finite_output")
all_of("L13", "A all 1e38", None, "lora_A", 0x7e967699, "non_finite_output")
all_of("L13", "A and B all the largest float32", None, "lora", 0x7f7fffff, "non_finite_output")

# ---- L16, L17: ranks --------------------------------------------------------------------------------------------------------------

for rank, code in ((1025, "bad_rank"), (4096, "bad_rank"), (65536, "bad_rank"), (100, None), (1024, None)):  # 100: wasteful on 64 inputs, but exact
    @spoil("L16", f"rank {rank}", code)
    def _(good, rank=rank):
        good.reshape("layers.0.self_attn.q_proj.lora_A.weight", lambda d: [rank, d[1]])
        good.reshape("layers.0.self_attn.q_proj.lora_B.weight", lambda d: [d[0], rank])
        good.config["rank_pattern"] = {"layers.0.self_attn.q_proj": rank}


@spoil("L17", "ranks that differ by layer", None)
def _(good):
    good.reshape("layers.0.self_attn.q_proj.lora_A.weight", lambda d: [2, d[1]])
    good.reshape("layers.0.self_attn.q_proj.lora_B.weight", lambda d: [d[0], 2])
    good.config["rank_pattern"] = {"layers.0.self_attn.q_proj": 2}


@spoil("L17", "ranks that differ by layer, and nothing in the config says so", "rank_mismatch")
def _(good):
    good.reshape("layers.0.self_attn.q_proj.lora_A.weight", lambda d: [2, d[1]])
    good.reshape("layers.0.self_attn.q_proj.lora_B.weight", lambda d: [d[0], 2])


# ---- L20, L22, L25: what is no LoRA -------------------------------------------------------------------------------------------------

Q = "base_model.model.model.layers.0.self_attn.q_proj"
spoil("L20", "kohya's names", "unsupported_adapter")(lambda good: (good.rename(".lora_A.", ".lora_down."), good.rename(".lora_B.", ".lora_up.")))
for end, words in ((".lora_diag", "KaSA"), (".lora_E", "AdaLoRA"), (".ranknum", "AdaLoRA's rank"), (".vera_lambda_b", "VeRA"), (".ia3_l", "IA3"), (".hada_w1_a", "LoHa"),
                   (".lokr_w1", "LoKr"), (".oft_r", "OFT"), (".boft_R", "BOFT"), (".alpha", "kohya's alpha")):
    spoil("L20", f"a tensor of {words} among the others", "unsupported_adapter")(lambda good, end=end: good.put(Q + end, 4, 4))
spoil("L20", "a prompt", "unsupported_adapter")(lambda good: good.put("prompt_embeddings", 4, 64))
for name in ("x", "weight", "lora_A.weight", "base_model.model.model.layers.0.self_attn.q_proj", "base_model.model.score.lora_x"):
    spoil("L20", f"a tensor called {name}", "unexpected_tensor" if name != "lora_A.weight" else "unexpected_tensor")(lambda good, name=name: good.put(name, 4, 4))
for name in ("mlp.experts.0.up_proj", "mlp.experts", "mlp.experts.base_layer"):
    spoil("L22", f"experts of a mixture: {name}", "unsupported_adapter")(lambda good, name=name: lora(good, f"model.layers.0.{name}", 64, 96))
spoil("L25", "a copy of a base's matrix", "base_weights_included")(lambda good: good.put(f"{Q}.base_layer.weight", 64, 64))

# ---- changed at random -----------------------------------------------------------------------------------------------------------

for n in range(6):
    @spoil("L03", f"shapes changed at random, {n}", "wrong_shape")
    def _(good, n=n):
        d = dice("shapes", n)
        name = d.choice(sorted(t for t in good.tensors if "lora_A" in t))
        good.reshape(name, lambda dims: [dims[0], d.choice([1, 8, 63, 65, 96 if dims[1] == 64 else 64])])
