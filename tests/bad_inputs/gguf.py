"""G: GGUF adapters."""

import os
import struct

from making import (ARRAY, BOOL, F32, F64, FORMS, I8, I16, I32, I64, STRING, TYPES, U8, U16, U32, U64, Gguf, Raw, numbers,
                    write_file)
from table import ANY, add, dice

TRUNCATED = "truncated"


def spoil(row, variant, code, change=None):
    """The good file with change(Gguf) applied; what it returns, if anything, is the file's bytes."""
    def take(change):
        def make(folder, good):
            g = Gguf(good)
            raw = change(g)
            return write_file(os.path.join(folder, "a.gguf"), raw if isinstance(raw, bytes) else g.file())
        add(row, variant, code, make)
        return change
    return take if change is None else take(change)


def attributes(row, variant, code, **values):
    spoil(row, variant, code, lambda g: g.__dict__.update(values))


# ---- G01, G02: head -----------------------------------------------------------------------------------------------------------

for magic in (b"GGUf", b"FUGG", b"GGML", b"ggjt", b"\0GGU", b"GGU\0"):
    attributes("G01", f"magic {magic!r}", "unsupported_format", magic=magic)
for version in (0, 1, 4, 5, 0x7fffffff, 0xffffffff, 0x02000000, 0x03000000, 3 << 16):
    attributes("G01", f"version {version:#x}", "gguf_version", version=version)
attributes("G24", "version 2", None, version=2)
MANY = (1 << 64) - 1, 1 << 63, (1 << 63) - 1, 1 << 62, 1 << 32, 1 << 31
for n in MANY + (100_000, 65_537):
    attributes("G02", f"{n:#x} keys", "gguf_counts", n_keys=n)
for n in MANY + (100_000,):
    attributes("G02", f"{n:#x} tensors", "gguf_counts", n_tensors=n)
attributes("G02", "no tensors", "no_tensors", n_tensors=0)
attributes("G02", "no keys", "not_an_adapter", n_keys=0)
attributes("G02", "one key too few: the last becomes a tensor", "gguf_shape", n_keys=4)
attributes("G02", "one key too many: the first tensor becomes one", "gguf_string", n_keys=6)
attributes("G02", "one tensor too few", "trailing_bytes", n_tensors=27)
attributes("G02", "one tensor too many", ANY, n_tensors=29)


@spoil("G02", "70,000 keys that are there", "gguf_counts")
def _(g):
    for i in range(70_000):
        g.keys.append([f"k{i}", U8, 0])


@spoil("G02", "70,000 tensors in a file that could hold them", "too_many_tensors")
def _(g):
    g.n_tensors = 70_000
    return g.file() + bytes(70_000 * 40)


# ---- G03: strings -------------------------------------------------------------------------------------------------------------

for n in ((1 << 64) - 1, 1 << 63, 1 << 32, 1 << 30, 65_537):
    spoil("G03", f"key of {n:#x} bytes", "gguf_string", lambda g, n=n: g.keys.insert(0, [Raw(struct.pack("<Q", n) + b"abcd"), U8, 0]))
    spoil("G03", f"value of {n:#x} bytes", "gguf_string", lambda g, n=n: g.set("general.name", STRING, Raw(struct.pack("<Q", n) + b"abcd")))
    spoil("G03", f"tensor name of {n:#x} bytes", "gguf_string", lambda g, n=n: setattr(g.tensors[0], "name", Raw(struct.pack("<Q", n) + b"abcd")))
spoil("G03", "empty key", "gguf_string", lambda g: g.keys.append(["", U8, 0]))
spoil("G03", "key not UTF-8", "gguf_string", lambda g: g.keys.append([b"a\xff", U8, 0]))
spoil("G03", "value not UTF-8", "gguf_string", lambda g: g.set("general.name", STRING, b"\xc0\xaf"))
spoil("G03", "value with half of a surrogate pair", "gguf_string", lambda g: g.set("general.name", STRING, b"\xed\xa0\x80"))
spoil("G03", "string in an array not UTF-8", "gguf_string", lambda g: g.set("x", ARRAY, (STRING, ["a", b"\xff"])))
spoil("G03", "string in an array of 2^40 bytes", "gguf_string", lambda g: g.set("x", ARRAY, (STRING, ["a", Raw(struct.pack("<Q", 1 << 40))])))
spoil("G03", "value of 65,536 bytes", None, lambda g: g.set("general.name", STRING, "a" * 65_536))
spoil("G03", "key with a NUL", None, lambda g: g.keys.append(["a\0b", U8, 0]))
spoil("G03", "key that is a known one up to its NUL", None, lambda g: g.keys.append(["general.type\0", U8, 0]))

# ---- G04: twice -----------------------------------------------------------------------------------------------------------------

for key in ("general.architecture", "general.type", "adapter.type", "adapter.lora.alpha", "general.name"):
    spoil("G04", f"{key} twice", "gguf_duplicate", lambda g, key=key: g.keys.append(list(g.key(key))))
spoil("G04", "alpha twice, with two values", "gguf_duplicate", lambda g: g.keys.append(["adapter.lora.alpha", F32, 1.0]))
spoil("G04", "tensor twice", "gguf_duplicate", lambda g: g.tensors.append(g.tensors[0]))
spoil("G04", "two tensors' names exchanged for one", "gguf_duplicate", lambda g: setattr(g.tensors[1], "name", g.tensors[0].name))

# ---- G05, G06: types ----------------------------------------------------------------------------------------------------------------

for kind in (13, 14, 255, 0x7fffffff, 0xffffffff):
    spoil("G05", f"value of type {kind:#x}", "gguf_type", lambda g, kind=kind: g.keys.append(["x", kind, Raw(bytes(8))]))
    spoil("G05", f"array of type {kind:#x}", "gguf_type", lambda g, kind=kind: g.keys.append(["x", ARRAY, Raw(struct.pack("<IQ", kind, 1) + bytes(8))]))
spoil("G05", "array of arrays", "gguf_type", lambda g: g.keys.append(["x", ARRAY, (ARRAY, [(U8, [1])])]))
for kind in (STRING, U8, F64):
    for n in ((1 << 64) - 1, 1 << 61, 1 << 30):
        spoil("G05", f"array of {n:#x} of {TYPES[kind]}", "gguf_type", lambda g, kind=kind, n=n: g.keys.append(["x", ARRAY, Raw(struct.pack("<IQ", kind, n))]))
spoil("G05", "array of 2^24 of u8, which are not there", TRUNCATED, lambda g: g.keys.append(["x", ARRAY, Raw(struct.pack("<IQ", U8, 1 << 24))]))
spoil("G05", "empty array", None, lambda g: g.keys.append(["x", ARRAY, (U32, [])]))
for kind in FORMS:
    spoil("G05", f"a key of type {TYPES[kind]} that nobody knows", None, lambda g, kind=kind: g.keys.append(["x", kind, 1]))
OTHERS = {U8: 8, I8: 8, U16: 8, I16: 8, U32: 8, I32: 8, BOOL: 1, STRING: "8", ARRAY: (F32, [8.0]), U64: 8, I64: 8, F64: 8.0}
for kind, v in OTHERS.items():
    spoil("G06", f"alpha as {TYPES[kind]}", "gguf_key_type", lambda g, kind=kind, v=v: g.set("adapter.lora.alpha", kind, v))
for key in ("general.type", "general.architecture", "adapter.type"):
    for kind, v in ((U32, 1), (F32, 1.0), (BOOL, 1), (ARRAY, (STRING, ["lora"])), (ARRAY, (U8, [1])), (U64, 8)):
        spoil("G06", f"{key} as {TYPES[kind]}", "gguf_key_type", lambda g, key=key, kind=kind, v=v: g.set(key, kind, v))
for kind, v in ((STRING, "2"), (ARRAY, (U32, [2])), (F32, 2.0), (BOOL, 1)):
    spoil("G06", f"split.count as {TYPES[kind]}", "gguf_key_type", lambda g, kind=kind, v=v: g.set("split.count", kind, v))

# ---- G07, G08, G09: what it is -----------------------------------------------------------------------------------------------------------

for kind in ("model", "", "Adapter", "adapter ", "imatrix", "\x1b[2J"):
    spoil("G07", f"general.type {kind!r}", "not_an_adapter", lambda g, kind=kind: g.set("general.type", STRING, kind))
for kind in ("control_vector", "", "LORA", "lora2"):
    spoil("G07", f"adapter.type {kind!r}", "not_an_adapter", lambda g, kind=kind: g.set("adapter.type", STRING, kind))
spoil("G07", "adapter.type missing", "not_an_adapter", lambda g: g.drop("adapter.type"))
for arch in ("qwen3", "Llama", "llama2", "\x1b[2J", "x" * 1000):
    spoil("G08", f"architecture {arch[:10]!r}", "wrong_base", lambda g, arch=arch: g.set("general.architecture", STRING, arch))
spoil("G08", "architecture empty", "missing_field", lambda g: g.set("general.architecture", STRING, ""))
spoil("G08", "architecture missing", "missing_field", lambda g: g.drop("general.architecture"))
spoil("G09", "alpha missing", "alpha_missing", lambda g: g.drop("adapter.lora.alpha"))
for bits, words in ((0, "0"), (0x80000000, "-0"), (0x7fc00000, "NaN"), (0x7f800000, "infinity"), (0xff800000, "-infinity"), (0x7f800001, "signalling NaN")):
    spoil("G09", f"alpha {words}", "bad_alpha", lambda g, bits=bits: g.set("adapter.lora.alpha", F32, Raw(struct.pack("<I", bits))))
spoil("G09", "alpha negative", None, lambda g: g.set("adapter.lora.alpha", F32, -8.0))
spoil("G09", "alpha so small that the scale is 0", "bad_alpha", lambda g: g.set("adapter.lora.alpha", F32, Raw(struct.pack("<I", 1))))

# ---- G10: alignment -------------------------------------------------------------------------------------------------------------------------

for n in (0, 1, 2, 3, 4, 7, 24, 33, 65_537, 131_072, 1 << 31, 0xffffffff):
    spoil("G10", f"alignment {n:#x}", "gguf_alignment", lambda g, n=n: g.set("general.alignment", U32, n))
for kind, v in ((U64, 32), (I32, 32), (F32, 32.0), (STRING, "32"), (U8, 32), (ARRAY, (U32, [32]))):
    spoil("G10", f"alignment as {TYPES[kind]}", "gguf_alignment", lambda g, kind=kind, v=v: g.set("general.alignment", kind, v))
spoil("G10", "alignment that the tensors do not have", "gguf_offset", lambda g: (
    g.set("general.alignment", U32, 4096)))
for n in (8, 64, 4096, 65_536):
    def aligned(g, n=n):
        g.set("general.alignment", U32, n)
        g.alignment = n
    spoil("G10", f"alignment {n}, kept", None, aligned)

# ---- G11, G12, G13, G15: shapes and types ------------------------------------------------------------------------------------------------------


def row(row, variant, code, end="attn_q.weight.lora_a", **values):
    """Changes one tensor's entry."""
    spoil(row, variant, code, lambda g: g.tensor(end).__dict__.update(values))


for n in (0, 5, 255, 1 << 31, 0xffffffff):
    row("G11", f"{n:#x} dimensions", "gguf_shape", n_dims=n)
for ne in ([0, 4], [64, 0], [-1, 4], [64, -4], [1 << 63, 1], [(1 << 64) - 1, 1], [-64, -4]):
    row("G11", f"dimensions {ne}", "gguf_shape", ne=ne)
for ne in ([4, (1 << 30) - 1, (1 << 30) + 1], [1 << 62, 4], [1 << 32, 1 << 32], [(1 << 63) - 1, 1], [(1 << 61) - 1, 1], [1 << 31, 1 << 31, 2]):
    row("G12", f"dimensions {ne}", "gguf_overflow", ne=ne)
row("G12", "size only padding brings over the end", "gguf_overflow", ne=[(1 << 61) - 1])
for kind in (4, 5, 31, 32, 33, 36, 37, 38, 43, 100, 0x7fffffff, -1, -2):
    row("G13", f"type {kind}", "gguf_tensor_type", kind=kind)
for kind, words in ((2, "Q4_0"), (3, "Q4_1"), (6, "Q5_0"), (8, "Q8_0"), (9, "Q8_1"), (10, "Q2_K"), (12, "Q4_K"), (14, "Q6_K"), (15, "Q8_K"), (16, "IQ2_XXS"), (24, "I8"),
                    (25, "I16"), (26, "I32"), (27, "I64"), (28, "F64"), (34, "TQ1_0"), (39, "MXFP4")):
    row("G14", f"type {words}", "unsupported_dtype", kind=kind)
row("G15", "Q4_K with a row that is no whole block", "unsupported_dtype", kind=12, ne=[63, 4])

# ---- G16, G17, G18: places -------------------------------------------------------------------------------------------------------------------------

for at, words in (((1 << 64) - 1, "-1"), (1 << 63, "2^63"), (1, "1: not aligned"), (31, "31"), (32, "32: a hole before the first"), (1 << 40, "2^40: beyond the file")):
    spoil("G16", f"offset of the first tensor {words}", "gguf_offset", lambda g, at=at: setattr(g.tensors[0], "offset", at))
for at, words in ((0, "the first one's"), (32, "within the first"), (1 << 63, "2^63"), ((1 << 64) - 32, "2^64 - 32")):
    spoil("G16", f"offset of the second tensor {words}", "gguf_offset", lambda g, at=at: setattr(g.tensors[1], "offset", at))


@spoil("G16", "all tensors on one place", "gguf_offset")
def _(g):
    for t in g.tensors:
        t.offset = 0


@spoil("G16", "tensors out of order", "gguf_offset")
def _(g):
    at = 0
    for t in g.tensors:
        t.offset = at
        at += len(t.data) + -len(t.data) % 32
    g.tensors.reverse()


@spoil("G16", "a hole of one alignment", "gguf_offset")
def _(g):
    g.tensors[0].data += bytes(32)


for n in (1, 31, 32, 33, 1000):
    spoil("G17", f"{n} bytes short", TRUNCATED, lambda g, n=n: g.file()[:-n])
spoil("G17", "no data at all", TRUNCATED, lambda g: b"".join(g.parts()[:4]))
spoil("G17", "no padding and no data", TRUNCATED, lambda g: b"".join(g.parts()[:3]))
spoil("G17", "head only", "gguf_counts", lambda g: g.parts()[0])
spoil("G17", "head and keys only", "gguf_counts", lambda g: b"".join(g.parts()[:2]))
spoil("G17", "tensor table short by one byte", TRUNCATED, lambda g: b"".join(g.parts()[:3])[:-1])
spoil("G17", "a tensor larger than the file", "gguf_offset", lambda g: setattr(g.tensors[0], "ne", [64, 4 << 20]))
spoil("G17", "the last tensor larger than the file", TRUNCATED, lambda g: setattr(g.tensors[-1], "ne", [64, 4 << 20]))
for n in (8, 16, 23):
    spoil("G17", f"cut off after {n} bytes", TRUNCATED, lambda g, n=n: g.file()[:n])
for n in range(8):
    spoil("G17", f"cut off at a random byte of the keys, {n}", ANY, lambda g, n=n: g.file()[:dice("key", n).randrange(24, len(b"".join(g.parts()[:2])))])
    spoil("G17", f"cut off at a random byte of the tensor table, {n}", TRUNCATED, lambda g, n=n: g.file()[:dice("row", n).randrange(
        len(b"".join(g.parts()[:2])) + 28 * 41, len(b"".join(g.parts()[:3])))])
    spoil("G17", f"cut off at a random byte of the data, {n}", TRUNCATED, lambda g, n=n: g.file()[:dice("data", n).randrange(
        len(b"".join(g.parts()[:4])), len(g.file()))])
spoil("G18", "32 bytes after the last tensor", "trailing_bytes", lambda g: g.file() + bytes(32))
spoil("G18", "one byte after the last tensor", "trailing_bytes", lambda g: g.file() + b"x")
spoil("G18", "the whole file twice", "trailing_bytes", lambda g: g.file() * 2)

# ---- G19, G20, G21: names -------------------------------------------------------------------------------------------------------------------------------


def rename(row, variant, code, old, new, times=-1):
    def change(g):
        for t in g.tensors[:times] if times > 0 else g.tensors:
            t.name = t.name.replace(old, new)
    spoil(row, variant, code, change)


UNEXPECTED = "unexpected_tensor"
for new in ("", ".lora_c", ".lora_A", ".lora", ".lora_a.weight", ".LORA_A"):
    rename("G19", f"names end in {new or 'weight'} in place of .lora_a", UNEXPECTED, ".lora_a", new)
rename("G19", "a second suffix inside", UNEXPECTED, ".weight.lora_a", ".lora_a.lora_b")
rename("G19", "a second suffix inside, the same", UNEXPECTED, ".weight.lora_a", ".weight.lora_a.lora_a")
rename("G19", "suffix only", UNEXPECTED, "blk.0.attn_q.weight", "")
for new in ("attn_norm", "ffn_norm"):
    rename("G19", f"blk.0.{new}.weight", "unsupported_target", "attn_q", new)
for new in ("output_norm", "rope_freqs"):
    rename("G19", f"{new}.weight", "unsupported_target", "blk.0.attn_q", new)
for new in ("blk.2.", "blk.40.", "blk.-1.", "blk.01.", "blk.1e0.", "blk.x.", "blk..", "blk.4294967296.", "BLK.1."):
    rename("G19", f"layer {new}", "unmapped_tensors" if new == "BLK.1." else "unknown_target", "blk.1.", new)
rename("G19", "weight that no layer has", "unknown_target", "attn_q", "attn_w")
rename("G19", "PEFT's names", UNEXPECTED, "lora_a", "lora_A.weight")
rename("G19", "no layer at all", "zero_targets", "blk.", "model.layers.")
rename("G20", "name of 64 bytes", "gguf_name", "blk.0.attn_q.weight", "x" * 57)
rename("G20", "name of 1,000 bytes", "gguf_name", "blk.0.attn_q.weight", "x" * 1000)
rename("G20", "name with an escape sequence", "bad_tensor_name", "attn_q", "a\x1b[2J")
rename("G20", "name with a NUL", "bad_tensor_name", "attn_q", "attn_q\0")
rename("G20", "name with a slash", "bad_tensor_name", "blk.0", "../blk.0")
rename("G20", "name beyond ASCII", "bad_tensor_name", "attn_q", "attn_\u0451")
spoil("G20", "empty name", "bad_tensor_name", lambda g: setattr(g.tensors[0], "name", ""))
for ne in ([64, 2, 2], [64, 1, 4], [64, 4, 1], [64, 4, 1, 1], [256]):
    row("G21", f"A of dimensions {ne}", "wrong_shape", ne=ne)
for ne in ([4, 32, 2], [256]):
    row("G21", f"B of dimensions {ne}", "wrong_shape", "attn_q.weight.lora_b", ne=ne)
for end, ne, words in (("attn_q.weight.lora_a", [128, 2], "A for a wider base"), ("attn_q.weight.lora_a", [4, 64], "A transposed"), ("attn_q.weight.lora_a", [32, 8], "A for a narrower base"),
                       ("attn_q.weight.lora_b", [2, 128], "B for a wider base"), ("attn_q.weight.lora_b", [64, 4], "B transposed"), ("attn_q.weight.lora_b", [8, 32], "B for a narrower base")):
    row("G21", words, "wrong_shape", end, ne=ne)


@spoil("G21", "ranks of A and B differ", "rank_mismatch")
def _(g):
    t = g.tensor("attn_q.weight.lora_b")
    t.ne, t.data = [8, 64], t.data * 2


@spoil("G21", "rank 1,025", "bad_rank")
def _(g):
    for part, ne in (("lora_a", [64, 1025]), ("lora_b", [1025, 64])):
        t = g.tensor(f"attn_q.weight.{part}")
        t.ne, t.data = ne, numbers(ne)


for part in ("lora_a", "lora_b"):
    spoil("G21", f"no {part}", "missing_pair", lambda g, part=part: g.tensors.remove(g.tensor(part)))
for kind, one, words in ((1, b"\x00\x7e", "NaN in F16"), (0, struct.pack("<I", 0x7fc00000), "NaN in F32"), (30, b"\x80\x7f", "infinity in BF16")):
    def poisoned(g, kind=kind, one=one):
        t = g.tensor("attn_q.weight.lora_a")
        t.kind = kind
        t.data = numbers(t.ne, {0: "F32", 1: "F16", 30: "BF16"}[kind])
        t.data = t.data[:8] + one + t.data[8 + len(one):]
    spoil("G21", words, "non_finite", poisoned)

# ---- G22 to G26 ------------------------------------------------------------------------------------------------------------------------------------------------

TOKENS = "adapter.alora.invocation_tokens"
spoil("G22", "no tokens", "gguf_alora", lambda g: g.set(TOKENS, ARRAY, (U32, [])))
spoil("G22", "10 million tokens that are not there", "gguf_alora", lambda g: g.set(TOKENS, ARRAY, Raw(struct.pack("<IQ", U32, 10_000_000))))
spoil("G22", "2^62 tokens", "gguf_alora", lambda g: g.set(TOKENS, ARRAY, Raw(struct.pack("<IQ", U32, 1 << 62))))
spoil("G22", "65,537 tokens", "gguf_alora", lambda g: g.set(TOKENS, ARRAY, (U32, [1] * 65_537)))
for kind, v in ((I32, 72), (U64, 72), (U8, 72), (F32, 72.0), (STRING, "Hi")):
    spoil("G22", f"tokens of type {TYPES[kind]}", "gguf_alora", lambda g, kind=kind, v=v: g.set(TOKENS, ARRAY, (kind, [v])))
for kind, v in ((U32, 72), (STRING, "72"), (F32, 72.0)):
    spoil("G22", f"tokens as {TYPES[kind]}, not an array", "gguf_key_type", lambda g, kind=kind, v=v: g.set(TOKENS, kind, v))
spoil("G23", "terminal escapes in values", None, lambda g: (g.set("general.name", STRING, "\x1b[2J\x1b]0;x\x07"), g.set("adapter.lora.task_name", STRING, "\x9b31m\n\r")))
spoil("G23", "terminal escapes in a key of unknown type", "gguf_type", lambda g: g.keys.append(["\x1b[2J", 99, Raw(b"")]))
for kind, v in ((U16, 2), (U32, 3), (U64, 1 << 40), (U8, 255)):
    spoil("G25", f"split.count {v} as {TYPES[kind]}", "sharded_unsupported", lambda g, kind=kind, v=v: g.set("split.count", kind, v))
for v in (0, 1):
    spoil("G25", f"split.count {v}", None, lambda g, v=v: g.set("split.count", U16, v))
spoil("G26", "a tokenizer and a chat template, never used", None, lambda g: (
    g.set("tokenizer.chat_template", STRING, "{{ x }}"), g.set("tokenizer.ggml.tokens", ARRAY, (STRING, ["a", "b"]))))

# ---- flipped bits, as S32 ----------------------------------------------------------------------------------------------------------------------------------------


def flip(variant, code, n, low, high):
    def change(g):
        raw = bytearray(g.file())
        d = dice("gguf flip", n, variant[:30])
        raw[d.randrange(low(g), high(g))] ^= 1 << d.randrange(8)
        return bytes(raw)
    spoil("G27", variant, code, change)


for n in range(24):
    flip(f"a random bit of head and keys, {n}", ANY, n, lambda g: 0, lambda g: len(b"".join(g.parts()[:2])))
    flip(f"a random bit of the tensor table, {n}", ANY, n, lambda g: len(b"".join(g.parts()[:2])), lambda g: len(b"".join(g.parts()[:3])))
