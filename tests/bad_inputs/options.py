"""O: adapters of the kinds that change more than matrices, malformed."""

import json

from making import Good, container, header_of, numbers, save, write
from table import add, dice

ATTENTION = "base_model.model.model.layers.0.self_attn."
EMBED, HEAD = "base_model.model.model.embed_tokens", "base_model.model.lm_head"
VOCABULARY = 264


def spoil(row, golden, variant, code, change=lambda good: None):
    """The golden adapter of that name with change(good) applied."""
    def make(folder, _):
        good = Good(golden)
        change(good)
        return save(folder, good)
    add(row, variant, code, make)


def config(row, golden, variant, code, **changes):
    spoil(row, golden, variant, code, lambda good: good.config.update(changes))


def each(row, golden, code, key, *values):
    for value in values:
        shown = json.dumps(value)
        config(row, golden, f"{key} {shown if len(shown) < 60 else shown[:50] + '…'}", code, **{key: value})


def drop(good, end):
    del good.tensors[good.first(end)]


# ---- O01: DoRA --------------------------------------------------------------------------------------------------------

M = "q_proj.lora_magnitude_vector"
spoil("O01", "dora", "as PEFT writes it", None)
for change, words in ((lambda d: [d[0] * 2], "twice as long"), (lambda d: [d[0] + 1], "longer by one"), (lambda d: [1], "of one value"),
                      (lambda d: [d[0], 1], "as a matrix"), (lambda d: [1, d[0]], "as a row"), (lambda d: [8, d[0] // 8], "as another matrix")):
    spoil("O01", "dora", f"magnitudes {words}", "wrong_shape", lambda good, change=change: good.reshape(M, change))
spoil("O01", "dora", "one module without magnitudes", "missing_pair", lambda good: drop(good, M))
spoil("O01", "dora", "magnitudes without A and B", "missing_pair", lambda good: (drop(good, "0.self_attn.q_proj.lora_A.weight"),
                                                                               drop(good, "0.self_attn.q_proj.lora_B.weight")))
config("O01", "dora", "magnitudes, and use_dora off", "unexpected_tensor", use_dora=False)
config("O01", "plain", "use_dora, and no magnitudes", "missing_pair", use_dora=True)
spoil("O01", "dora", "magnitudes twice", "duplicate_target", lambda good: good.tensors.update(
    {good.first(M) + ".default": good.tensors[good.first(M)]}))
for bits, words in ((b"\0\0\xc0\x7f", "NaN"), (b"\0\0\x80\x7f", "infinity")):
    spoil("O01", "dora", f"magnitudes with {words}", "non_finite", lambda good, bits=bits: good.tensors.update(
        {good.first(M): (*good.tensors[good.first(M)][:2], bits + good.tensors[good.first(M)][2][4:])}))
each("O01", "dora", "bad_type", "use_dora", "true", 1, [], {})

# ---- O02: biases --------------------------------------------------------------------------------------------------------

B = "q_proj.lora_B.bias"
spoil("O02", "lora-bias", "as PEFT writes it", None)
config("O02", "lora-bias", "lora_B.bias, and lora_bias off", "unexpected_tensor", lora_bias=False)
config("O02", "plain", "lora_bias, and no bias", "missing_pair", lora_bias=True)
spoil("O02", "lora-bias", "one bias missing", "missing_pair", lambda good: drop(good, B))
for change, words in ((lambda d: [d[0] * 2], "twice as long"), (lambda d: [1], "of one value"), (lambda d: [1, d[0]], "as a row")):
    spoil("O02", "lora-bias", f"bias {words}", "wrong_shape", lambda good, change=change: good.reshape(B, change))
spoil("O02", "lora-bias", "bias without A and B", "missing_pair", lambda good: (drop(good, "0.self_attn.q_proj.lora_A.weight"),
                                                                            drop(good, "0.self_attn.q_proj.lora_B.weight")))
spoil("O02", "lora-bias", "bias on A", "unsupported_adapter", lambda good: good.put(ATTENTION + "q_proj.lora_A.bias", 4))
config("O02", "dora", "lora_bias with DoRA, which PEFT does not have", "unsupported_adapter", lora_bias=True)
each("O02", "lora-bias", "bad_type", "lora_bias", "true", 1, [])
spoil("O02", "plain", "a trained bias that the base does not have", "unknown_target", lambda good: good.put(ATTENTION + "q_proj.bias", 64))


# ---- O03: embeddings and heads ----------------------------------------------------------------------------------------------

spoil("O03", "embed", "embedding, as PEFT writes it", None)
spoil("O03", "lm-head", "head, as PEFT writes it", None)
A, BB = "lora_embedding_A", "lora_embedding_B"
for part, change, words in ((A, lambda d: [d[0], d[1] + 1], "one token more"), (A, lambda d: [d[0], d[1] // 2], "half the vocabulary"), (BB, lambda d: [d[0] * 2, d[1]], "a wider base"),
                            (BB, lambda d: [d[0], d[1]][::-1], "B transposed"), (A, lambda d: d[::-1], "A transposed")):
    spoil("O03", "embed", f"embedding for {words}", "wrong_shape", lambda good, part=part, change=change: good.reshape(part, change))
spoil("O03", "embed", "ranks of A and B differ", "rank_mismatch", lambda good: good.reshape(BB, lambda d: [d[0], d[1] + 1]))
for part in (A, BB):
    spoil("O03", "embed", f"no {part}", "missing_pair", lambda good, part=part: drop(good, part))
spoil("O03", "embed", "embedding matrices by the names of a linear layer", "unexpected_tensor", lambda good: (
    good.rename(A, "lora_A.weight"), good.rename(BB, "lora_B.weight")))
spoil("O03", "lm-head", "head by the names of an embedding", "unexpected_tensor", lambda good: (
    good.rename("lm_head.lora_A.weight", "lm_head." + A), good.rename("lm_head.lora_B.weight", "lm_head." + BB)))
for n in (VOCABULARY - 1, VOCABULARY + 1, VOCABULARY * 2):
    spoil("O03", "lm-head", f"head of {n} tokens", "wrong_shape", lambda good, n=n: good.reshape("lm_head.lora_B.weight", lambda d: [n, d[1]]))

# ---- O04: whole modules ---------------------------------------------------------------------------------------------------------

spoil("O04", "modules-to-save", "as PEFT writes it", None)
spoil("O04", "modules-to-save-norm", "norms, as PEFT writes them", None)
for n in (VOCABULARY - 1, VOCABULARY + 1, VOCABULARY + 64):
    spoil("O04", "modules-to-save", f"head of {n} tokens", "wrong_shape", lambda good, n=n: good.reshape("lm_head.weight", lambda d: [n, d[1]]))
spoil("O04", "modules-to-save", "head of another width", "wrong_shape", lambda good: good.reshape("lm_head.weight", lambda d: [d[0], d[1] * 2]))
spoil("O04", "modules-to-save", "head transposed", "wrong_shape", lambda good: good.reshape("lm_head.weight", lambda d: d[::-1]))
spoil("O04", "modules-to-save", "head that is not there", "pattern_unused", lambda good: drop(good, "lm_head.weight"))
spoil("O04", "modules-to-save", "head with NaN", "non_finite", lambda good: good.tensors.update(
    {good.first("lm_head.weight"): (*good.tensors[good.first("lm_head.weight")][:2], b"\xff" * len(good.tensors[good.first("lm_head.weight")][2]))}))
config("O04", "modules-to-save", "head, and the config names none", "base_weights_included", modules_to_save=None)
config("O04", "plain", "names a module that no model has", "pattern_unused", modules_to_save=["lm_haed"])
each("O04", "modules-to-save", "bad_type", "modules_to_save", "lm_head", 1, True, {"lm_head": 1}, [1], [None], [["lm_head"]])
for change, words in ((lambda d: [d[0] + 1], "longer by one"), (lambda d: [1], "of one value"), (lambda d: [1, d[0]], "as a row")):
    spoil("O04", "modules-to-save-norm", f"norm {words}", "wrong_shape", lambda good, change=change: good.reshape("norm.weight", change))

# ---- O05: trained tokens ------------------------------------------------------------------------------------------------------------

DELTA = "trainable_tokens_delta"
spoil("O05", "trainable-tokens", "as PEFT writes it", None)
for by in (-1, 1):
    spoil("O05", "trainable-tokens", f"{by:+d} row of tokens", "wrong_shape", lambda good, by=by: good.reshape(DELTA, lambda d: [d[0] + by, d[1]]))
spoil("O05", "trainable-tokens", "tokens of another width", "wrong_shape", lambda good: good.reshape(DELTA, lambda d: [d[0], d[1] * 2]))
spoil("O05", "trainable-tokens", "tokens that are not there", "missing_pair", lambda good: drop(good, DELTA))


def tokens(variant, code, change):
    def apply(good):
        now = good.config["trainable_token_indices"]
        lists = now if isinstance(now, dict) else {"": now}
        for ids in lists.values():
            ids[:] = change(ids)
    spoil("O05", "trainable-tokens", variant, code, apply)


for bad in (VOCABULARY, VOCABULARY + 1, -1, 1 << 31, (1 << 31) - 1, 1 << 40):
    tokens(f"token {bad}", "out_of_range", lambda ids, bad=bad: [*ids[:-1], bad])
for bad in ("5", 5.0, None, True, [5]):
    tokens(f"token {json.dumps(bad)}", "bad_type", lambda ids, bad=bad: [*ids[:-1], bad])
tokens("one token twice", "duplicate_target", lambda ids: [*ids[:-1], ids[0]])
tokens("one token fewer than rows", "wrong_shape", lambda ids: ids[:-1])
each("O05", "trainable-tokens", "bad_type", "trainable_token_indices", "5", 5, True, {"embed_tokens": 5}, {"embed_tokens": "5"})
config("O05", "trainable-tokens", "tokens, and the config names none", "unexpected_tensor", trainable_token_indices=None)

# ---- O06: aLoRA ----------------------------------------------------------------------------------------------------------------------

spoil("O06", "alora", "as PEFT writes it", None)
each("O06", "alora", "out_of_range", "alora_invocation_tokens", [VOCABULARY], [-1], [72, 1 << 31], [(1 << 31) - 1])
each("O06", "alora", "bad_type", "alora_invocation_tokens", "Hi", 72, True, ["72"], [72.0], [None], [[72]], {"72": 1})
config("O06", "alora", "no tokens at all", "out_of_range", alora_invocation_tokens=[])
config("O06", "alora", "100,000 tokens", "out_of_range", alora_invocation_tokens=[72] * 100_000)

# ---- O07: mlx-lm's folders --------------------------------------------------------------------------------------------------------------


class Mlx:
    def __init__(self):
        self.config = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": {"rank": 4, "scale": 2.0, "dropout": 0.0}}
        self.tensors = {}
        for layer in (0, 1):
            for module, n_out in (("q_proj", 64), ("v_proj", 32)):
                self.put(f"model.layers.{layer}.self_attn.{module}.lora_a", 64, 4)
                self.put(f"model.layers.{layer}.self_attn.{module}.lora_b", 4, n_out)

    def put(self, name, *shape):
        self.tensors[name] = ("F32", list(shape), numbers(shape))

    def drop(self, end):
        self.tensors = {n: t for n, t in self.tensors.items() if not n.endswith(end)}

    def parameters(self, **changes):
        for key, value in changes.items():
            if value is ...:
                del self.config["lora_parameters"][key]
            else:
                self.config["lora_parameters"][key] = value


def mlx(variant, code, change=lambda m: None, raw=lambda raw: raw):
    def make(folder, _):
        m = Mlx()
        change(m)
        return write(folder, raw(container(*header_of(m.tensors))), m.config, "adapters.safetensors")
    add("O07", f"mlx: {variant}", code, make)


Q = "model.layers.0.self_attn.q_proj"
mlx("as mlx-lm writes it", None)
mlx("rank that the tensors do not have", "rank_mismatch", lambda m: m.parameters(rank=8))
for bad in (..., 0, -4, "4", 4.0, None, True, [4], 1 << 31):
    mlx(f"rank {'missing' if bad is ... else json.dumps(bad)}", "bad_rank", lambda m, bad=bad: m.parameters(rank=bad))
for bad in (..., 0, "2", None, True, [2.0], 1e30):
    mlx(f"scale {'missing' if bad is ... else json.dumps(bad)}", "bad_alpha", lambda m, bad=bad: m.parameters(scale=bad))
mlx("no lora_parameters", "missing_field", lambda m: m.config.pop("lora_parameters"))
for bad in (4, "x", [4], True):
    mlx(f"lora_parameters {json.dumps(bad)}", "bad_type", lambda m, bad=bad: m.config.update(lora_parameters=bad))
mlx("an option of lora_parameters that nobody knows", "unknown_option", lambda m: m.parameters(magic=True))
for kind in ("full", "qlora", "LORA", ""):
    mlx(f"fine_tune_type {json.dumps(kind)}", "unsupported_adapter", lambda m, kind=kind: m.config.update(fine_tune_type=kind))
mlx("fine_tune_type a number", "bad_type", lambda m: m.config.update(fine_tune_type=1))
mlx("lora_a without lora_b", "missing_pair", lambda m: m.drop("0.self_attn.q_proj.lora_b"))
mlx("lora_b without lora_a", "missing_pair", lambda m: m.drop("0.self_attn.q_proj.lora_a"))
mlx("a and b as PEFT has them", "wrong_shape", lambda m: (m.put(f"{Q}.lora_a", 4, 64), m.put(f"{Q}.lora_b", 64, 4)))
mlx("a for a wider base", "wrong_shape", lambda m: m.put(f"{Q}.lora_a", 128, 4))
mlx("b for a narrower base", "wrong_shape", lambda m: m.put(f"{Q}.lora_b", 4, 32))
mlx("ranks of a and b differ", "rank_mismatch", lambda m: m.put(f"{Q}.lora_b", 5, 64))
mlx("a of three dimensions", "bad_rank", lambda m: m.put(f"{Q}.lora_a", 1, 64, 4))
mlx("layer that is not there", "unknown_target", lambda m: (m.put("model.layers.7.self_attn.q_proj.lora_a", 64, 4),
                                                          m.put("model.layers.7.self_attn.q_proj.lora_b", 4, 64)))
mlx("PEFT's peft_type", "unsupported_adapter", lambda m: m.config.update(peft_type="LORA", r=4, lora_alpha=8))
mlx("DoRA without magnitudes", "missing_pair", lambda m: m.config.update(fine_tune_type="dora"))
mlx("magnitudes without DoRA", "unexpected_tensor", lambda m: m.put(f"{Q}.m", 64))
for bad in ("16", 1.5, True, [16]):
    mlx(f"num_layers {json.dumps(bad)}", "bad_type", lambda m, bad=bad: m.config.update(num_layers=bad))
for bad in (0, -2, 1 << 40):
    mlx(f"num_layers {bad}", "out_of_range", lambda m, bad=bad: m.config.update(num_layers=bad))
mlx("no tensors", "no_tensors", lambda m: m.tensors.clear())
mlx("weights short by one byte", "truncated", raw=lambda raw: raw[:-1])
mlx("weights of 0 bytes", "header_too_small", raw=lambda raw: b"")
for n in range(8):
    mlx(f"cut off at a random byte of the data, {n}", "truncated", raw=lambda raw, n=n: raw[:dice("mlx", n).randrange(len(raw) - 4000, len(raw))])
add("O07", "mlx: config is missing", "config_missing", lambda folder, _: write(folder, container(*header_of(Mlx().tensors)), None, "adapters.safetensors"))
add("O07", "mlx: PEFT's weights beside mlx-lm's, and PEFT's config", None, lambda folder, good: write(
    save(folder, good), b"", None, "adapters.safetensors"))
