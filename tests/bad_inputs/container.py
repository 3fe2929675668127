"""S: the safetensors container."""

import copy
import json
import os
import struct

from making import WEIGHTS, container, header_of, save, write
from table import ANY, add, case, dice


def put(row, variant, code, maker):
    add(row, variant, code, maker)


def with_header(folder, good, change):
    """The good file with `change(header)` applied to its header, data as it was."""
    header, data = header_of(good.tensors)
    changed = change(header)
    return write(folder, container(header if changed is None else changed, data), good.config)


# ---- S01, S02, S03, S30: the length that comes first ----------------------------------------------------------------------

def length(row, variant, code, n, rest=b"{}", size=None, big_endian=False):
    def make(folder, good):
        write(folder, struct.pack(">Q" if big_endian else "<Q", n) + rest, good.config)
        if size:
            os.truncate(os.path.join(folder, WEIGHTS), size)
        return folder
    put(row, variant, code, make)


length("S01", "header longer than the file", "header_length", 100)
length("S01", "header longer than the file by one", "header_length", 3)
for n, words in ((1 << 31, "2^31"), (1 << 32, "2^32"), ((1 << 32) + 2, "2^32 + 2: right if cut to 32 bits"), (1 << 62, "2^62"), ((1 << 63) - 1, "2^63 - 1"),
                 (1 << 63, "2^63"), ((1 << 63) + 2, "2^63 + 2: right without its sign"), ((1 << 64) - 1, "2^64 - 1: wraps when 8 is added"),
                 ((1 << 64) - 8, "2^64 - 8: 0 when 8 is added"), ((1 << 64) - 6, "2^64 - 6: 2 when 8 is added")):
    length("S01", words, "header_length", n)
length("S02", "100,000,001", "header_too_large", 100_000_001, size=100_000_100)
length("S02", "100,000,000, which the reference takes", "header_too_large", 100_000_000, size=100_000_100)
length("S02", "one over graft's own limit", "header_too_large", (16 << 20) + 1, size=(16 << 20) + 100)
length("S02", "at the limit, and blank", "json_syntax", 16 << 20, b" " * (16 << 20))
length("S03", "length 0", "header_invalid", 0)
length("S03", "length 0 and nothing behind it", "header_invalid", 0, b"")
length("S03", "length 1", "json_syntax", 1)
length("S03", "half of {}", "json_syntax", 1, b"{")
length("S03", "no tensors", "no_tensors", 2)
length("S03", "no tensors, but data", "no_tensors", 2, b"{}" + bytes(64))
length("S03", "metadata only", "no_tensors", 19, b'{"__metadata__":{}}')
length("S30", "big-endian", "header_length", 2, big_endian=True)


@case("S30", "big-endian length of a good file", "header_length")
def _(folder, good):
    header, data = header_of(good.tensors)
    raw = json.dumps(header).encode()
    return write(folder, struct.pack(">Q", len(raw)) + raw + data, good.config)


# ---- S04, S05, S06, S07: the header as text ----------------------------------------------------------------------------------

length("S04", "not UTF-8", "json_encoding", 7, b'{"\xff":1}'[:7])
length("S04", "UTF-16", "json_encoding", 6, b"\xff\xfe{\0}\0")
length("S04", "half of a surrogate pair as a name", "json_encoding", 12, b'{"\\ud800":1}')
length("S04", "byte order mark", "json_syntax", 5, b"\xef\xbb\xbf{}")


def around(variant, code, before, after):
    put("S05", variant, code, lambda folder, good: with_header(folder, good, lambda h: before + json.dumps(h).encode() + after))


around("leading blanks", None, b" \n\t\r", b"")
around("leading page of blanks", None, b" " * 4096, b"")
around("trailing blanks", None, b"", b" \n\t\r" * 5)
for tail, words in ((b"\0", "one trailing NUL"), (b"\0\0", "trailing NULs"), (b"x", "trailing text"), (b"{}", "a second object"), (b"\x0b", "trailing vertical tab"),
                    (b"\xc2\xa0", "trailing no-break space"), (b"//", "trailing comment"), (b"}", "one brace too many")):
    around(words, "json_syntax", b"", tail)
around("NUL in front", "json_syntax", b"\0", b"")
for raw in (b"[]", b'"x"', b"null", b"12", b"true", b"[{}]"):
    put("S06", f"top level {raw.decode()}", "header_invalid", lambda folder, good, raw=raw: write(folder, container(raw, b""), good.config))


def duplicated(variant, spell):
    def make(folder, good):
        header, data = header_of(good.tensors)
        name = next(iter(header))
        rest = json.dumps(header)
        return write(folder, container(f'{{"{spell(name)}": {json.dumps(header[name])}, {rest[1:]}'.encode(), data), good.config)
    put("S07", variant, "duplicate_tensor", make)


duplicated("name twice", lambda name: name)
duplicated("name twice by escape", lambda name: name.replace("l", "\\u006c", 1))
duplicated("name twice, all of it escaped", lambda name: "".join(f"\\u{ord(c):04x}" for c in name))


@case("S07", "every name twice, the second with other offsets", "duplicate_tensor")
def _(folder, good):
    header, data = header_of(good.tensors)
    once = json.dumps(header)
    return write(folder, container((once[:-1] + "," + once[1:]).encode(), data), good.config)


# ---- S08 to S14: offsets ---------------------------------------------------------------------------------------------------

def entry(row, variant, code, change, index=0):
    """Changes one tensor's entry."""
    def apply(header):
        change(header[list(header)[index]])
    put(row, variant, code, lambda folder, good: with_header(folder, good, apply))


def neighbours(row, variant, code, change):
    def apply(header):
        names = list(header)
        change(header[names[0]], header[names[1]])
    put(row, variant, code, lambda folder, good: with_header(folder, good, apply))


for by in (1, 4, 512):
    neighbours("S08", f"overlapping by {by} bytes", "overlap", lambda a, b, by=by: b.update(data_offsets=[o - by for o in b["data_offsets"]]))
neighbours("S08", "identical ranges", "overlap", lambda a, b: b.update(copy.deepcopy(a)))


@case("S08", "20,000 tensors on one range: much memory from a small file", "overlap")
def _(folder, good):
    name = good.first("q_proj.lora_A.weight")
    one = {"dtype": "F32", "shape": good.tensors[name][1], "data_offsets": [0, len(good.tensors[name][2])]}
    return write(folder, container({name.replace("layers.0", f"layers.{i}"): one for i in range(20_000)}, good.tensors[name][2]), good.config)


def shifted(row, variant, code, by, since=0, data_too=True):
    """Tensors from the `since`-th on moved by some bytes, and a gap made in the data."""
    def make(folder, good):
        header, data = header_of(good.tensors)
        names = list(header)
        begin = header[names[since]]["data_offsets"][0]
        for name in names[since:]:
            header[name]["data_offsets"] = [o + by for o in header[name]["data_offsets"]]
        return write(folder, container(header, data[:begin] + bytes(by if data_too else 0) + data[begin:]), good.config)
    put(row, variant, code, make)


shifted("S09", "hole of 8 bytes", "hole", 8, 1)
shifted("S09", "hole of 1 byte", "hole", 1, 5)
shifted("S09", "hole before the first", "hole", 8)
shifted("S09", "hole before the last", "hole", 64, -1)
shifted("S09", "hole that only the header has", "hole", 8, 1, data_too=False)


def tail(row, variant, code, change):
    put(row, variant, code, lambda folder, good: write(folder, change(good.file()), good.config))


for more, words in ((b"\0", "one byte"), (bytes(7), "7 bytes"), (b"PK\x03\x04" + bytes(18), "a zip archive"), (bytes(1 << 20), "1 MiB")):
    tail("S10", f"{words} after the last tensor", "trailing_bytes", lambda raw, more=more: raw + more)
tail("S10", "the whole file twice", "trailing_bytes", lambda raw: raw + raw)
for n in (1, 2, 4, 100, 1000):
    tail("S11", f"{n} bytes short", "truncated", lambda raw, n=n: raw[:-n])
tail("S11", "no data at all", "truncated", lambda raw: raw[:8 + struct.unpack("<Q", raw[:8])[0]])
for part in (1, 2, 3):
    tail("S11", f"{part} quarters of the header", "header_length", lambda raw, part=part: raw[:8 + struct.unpack("<Q", raw[:8])[0] * part // 4])
tail("S11", "the length only", "header_length", lambda raw: raw[:8])
tail("S11", "header short by one byte", "header_length", lambda raw: raw[:8 + struct.unpack("<Q", raw[:8])[0] - 1])
for n in range(6):
    tail("S11", f"cut off at a random byte of the data, {n}", "truncated",
         lambda raw, n=n: raw[:dice("cut", n).randrange(8 + struct.unpack("<Q", raw[:8])[0], len(raw))])


def offsets(row, variant, code, *values):
    entry(row, variant, code, lambda t: t.update(data_offsets=list(values)))


offsets("S12", "ends before it begins", "bad_offsets", 64, 0)
offsets("S12", "ends before it begins by one", "bad_offsets", 1024, 1023)
offsets("S12", "negative begin", "bad_offsets", -8, 8)
offsets("S12", "both negative", "bad_offsets", -16, -8)
offsets("S12", "-2^63", "bad_offsets", -(1 << 63), 0)
offsets("S12", "empty range, full shape", "bad_offsets", 0, 0)
offsets("S12", "range of another size", "size_mismatch", 0, 1)
offsets("S13", "2^63 - 1 bytes", "size_mismatch", 0, (1 << 63) - 1)
offsets("S13", "begin near 2^64", "overflow", (1 << 64) - 1024, (1 << 64) - 1)
offsets("S13", "end is 2^63", "overflow", 0, 1 << 63)
offsets("S13", "end is 2^64: 0 if it wrapped", "overflow", 0, 1 << 64)


@case("S13", "near 2^63, right length", "hole")
def _(folder, good):
    header, data = header_of(good.tensors)
    last = header[list(header)[-1]]
    begin, end = last["data_offsets"]
    last["data_offsets"] = [(1 << 63) - 1 - (end - begin), (1 << 63) - 1]
    return write(folder, container(header, data), good.config)


for bad in ([], [0], [0, 1, 2], ["0", "1"], [0.0, 64.0], [0, 64.5], [None, None], [True, False], [[0, 64]], None, {"b": 0}, "0,64", 64, True, 1e300):
    entry("S14", f"data_offsets {json.dumps(bad)}", "bad_type", lambda t, bad=bad: t.update(data_offsets=bad))

# ---- S15 to S18: shapes ------------------------------------------------------------------------------------------------------


def shape(row, variant, code, *values):
    entry(row, variant, code, lambda t: t.update(shape=list(values)))


shape("S15", "product wraps", "overflow", 1 << 33, 1 << 33)
shape("S15", "product wraps to 0", "overflow", 1 << 32, 1 << 32)
shape("S15", "product wraps to the right number", "overflow", (1 << 62) + 64, 4)
shape("S15", "bytes wrap", "overflow", 2, (1 << 63) - 1)
shape("S15", "dimension of 2^63", "overflow", 1 << 63, 1)
shape("S15", "dimension of 2^64", "overflow", 1 << 64, 1)
shape("S16", "0 first, then huge", "bad_rank", 0, (1 << 63) - 1, (1 << 63) - 1)
shape("S16", "huge, then 0", "bad_rank", (1 << 63) - 1, (1 << 63) - 1, 0)
shape("S17", "dimension 0", "bad_rank", 0, 64)
shape("S17", "second dimension 0", "bad_rank", 4, 0)
shape("S17", "negative dimension", "bad_rank", -4, 64)
shape("S17", "two negative dimensions, whose product is right", "bad_rank", -4, -64)
shape("S17", "no dimensions", "bad_rank")
shape("S17", "five dimensions", "bad_rank", 1, 1, 1, 4, 64)
shape("S17", "100,000 dimensions", "bad_rank", *[1] * 100_000)


def again(variant, code, change, end="lora_A.weight"):
    """The same bytes in another shape."""
    def make(folder, good):
        name = good.first(end)
        dtype, dims, data = good.tensors[name]
        good.tensors[name] = (dtype, change(dims), data)
        return save(folder, good)
    put("S17", variant, code, make)


for end in ("lora_A.weight", "lora_B.weight"):
    again(f"{end} of one dimension", "bad_rank", lambda d: [d[0] * d[1]], end)
    again(f"{end} of three dimensions", "bad_rank", lambda d: [1] + d, end)
    again(f"{end} of three dimensions, the last 1", "bad_rank", lambda d: d + [1], end)
    again(f"{end} of four dimensions", "bad_rank", lambda d: [1, 1] + d, end)
for bad in ("4x64", 256, None, {"0": 4}, True, 4.5):
    entry("S17", f"shape {json.dumps(bad)}", "bad_type", lambda t, bad=bad: t.update(shape=bad))
for bad in (["4", "64"], [4.0, 64.0], [None, 64], [[4], [64]], [True, 64], [4, 6.4e1]):
    entry("S17", f"shape {json.dumps(bad)}", "bad_type", lambda t, bad=bad: t.update(shape=bad))
entry("S18", "shape larger than the bytes", "size_mismatch", lambda t: t["shape"].__setitem__(0, t["shape"][0] * 2))
entry("S18", "shape smaller than the bytes", "size_mismatch", lambda t: t["shape"].__setitem__(0, 1))
entry("S18", "dtype of half the size", "size_mismatch", lambda t: t.update(dtype="F16"))
entry("S18", "the last tensor's", "size_mismatch", lambda t: t["shape"].append(2), -1)

# ---- S19 to S22: element types --------------------------------------------------------------------------------------------------

for bad in ("F128", "f16", "f32", "", "F32 ", " F32", "float32", "F32\\u0000", "F", "BF32", "Q8_0", "NaN", "F32" * 1000, "\x1b[2J"):
    entry("S19", f"dtype {bad[:20]!r}" + (f" and so on, {len(bad)} bytes" if len(bad) > 20 else ""), "unknown_dtype",
          lambda t, bad=bad: t.update(dtype=bad))
for bad in (7, None, ["F32"], {"F": 32}, True, 1.5):
    entry("S19", f"dtype {json.dumps(bad)}", "unknown_dtype", lambda t, bad=bad: t.update(dtype=bad))
for known in ("BOOL", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "C64"):
    entry("S20", f"dtype {known}", "unsupported_dtype", lambda t, known=known: t.update(dtype=known))
for known in ("F4", "F6_E2M3", "F6_E3M2", "F8_E4M3", "F8_E5M2", "F8_E8M0"):
    entry("S21", f"dtype {known}", "unsupported_dtype", lambda t, known=known: t.update(dtype=known))


@case("S20", "right bytes as I32", "unsupported_dtype")
def _(folder, good):
    good.tensors = {n: ("I32", s, d) for n, (_, s, d) in good.tensors.items()}
    return save(folder, good)


@case("S22", "doubles, right in size", "unsupported_dtype")
def _(folder, good):
    good.tensors = {n: ("F64", s, d * 2) for n, (_, s, d) in good.tensors.items()}
    return save(folder, good)


@case("S20", "F16 and BF16 in one file", None)
def _(folder, good):
    for i, (name, (_, dims, _)) in enumerate(list(good.tensors.items())):
        good.put(name, *dims, dtype=("F16", "BF16", "F32")[i % 3])
    return save(folder, good)


# ---- S23 to S26 -----------------------------------------------------------------------------------------------------------------

for extra in (1, 3, 4, 7):
    @case("S23", f"data section {extra} bytes behind a multiple of 8", None)
    def _(folder, good, extra=extra):
        header, data = header_of(good.tensors)
        raw = json.dumps(header).encode()
        return write(folder, container(raw + b" " * (-len(raw) % 8 + extra), data), good.config)


@case("S23", "a matrix at an odd byte", None)
def _(folder, good):
    # One F16 matrix of odd length in front of the others would shift them by 2; data that begins at an odd byte shifts all by 1.
    name = good.first("lora_A.weight")
    _, dims, _ = good.tensors[name]
    good.put(name, *dims, dtype="F16")
    header, data = header_of(good.tensors)
    raw = json.dumps(header).encode()
    return write(folder, container(raw + b" " * (-len(raw) % 8 + 1), data), good.config)


entry("S24", "extra field in an entry", None, lambda t: t.update(comment="x"))
entry("S24", "extra field that looks like another dtype", None, lambda t: t.update(DTYPE="I8", Shape=[1]))
add("S24", "a field twice in one entry", "json_duplicate_key", lambda folder, good: with_header(
    folder, good, lambda h: json.dumps(h).replace('"dtype": "F32"', '"dtype": "F32", "dtype": "F16"', 1).encode()))
for field in ("dtype", "shape", "data_offsets"):
    entry("S25", f"no {field}", "missing_field", lambda t, field=field: t.pop(field))
    entry("S25", f"no {field} in the last entry", "missing_field", lambda t, field=field: t.pop(field), -1)
entry("S25", "empty entry", "missing_field", lambda t: t.clear())
for bad in (None, 1, "x", [], True):
    add("S25", f"entry is {json.dumps(bad)}", "bad_type", lambda folder, good, bad=bad: with_header(
        folder, good, lambda h: h.update({next(iter(h)): bad})))


def metadata(variant, code, value):
    add("S26", variant, code, lambda folder, good: with_header(folder, good, lambda h: {"__metadata__": value, **h}))


for bad in ("x", 1, {"a": 1}, {"a": None}, {"a": {}}, {"a": ["b"]}, {"a": True}, [], None, True, {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}):
    metadata(f"metadata {json.dumps(bad)}", "metadata_invalid", bad)
metadata("metadata {}", None, {})
metadata("metadata of 1 MB", None, {"format": "pt", "x": "a" * 1_000_000})
metadata("metadata with terminal escapes, never shown", None, {"\x1b[2J": "\x1b]0;x\x07"})
add("S26", "metadata twice", "metadata_invalid", lambda folder, good: with_header(
    folder, good, lambda h: ('{"__metadata__":{},"__metadata__":{},' + json.dumps(h)[1:]).encode()))
add("S26", "metadata last", None, lambda folder, good: with_header(folder, good, lambda h: {**h, "__metadata__": {"format": "pt"}}))

# ---- S27, S28, S29, S31: names and numbers of tensors ------------------------------------------------------------------------------


def name(variant, code, old, new):
    """In the header's text, once."""
    add("S27", variant, code, lambda folder, good: with_header(folder, good, lambda h: json.dumps(h).replace(old, new, 1).encode()))


name("NUL in a name", "json_encoding", "lora_A", "lora_A\\u0000")
for words, text in (("escape sequence", "\\u001b[2J"), ("newline", "\\n"), ("blank", " "), ("slash", "/"), ("backslash", "\\\\"), ("letter beyond ASCII", "\u00e9"),
                    ("right-to-left override", "\\u202e"), ("zero-width space", "\\u200b"), ("look-alike of o", "\u043e"), ("DEL", "\\u007f"), ("quote and brace", "\\u00a0")):
    name(f"{words} in a name", "bad_tensor_name", "lora_A", "lora_A" + text)
name("name of 513 bytes", "bad_tensor_name", "lora_A", "x" * 513)
name("name of 64 KB", "bad_tensor_name", "lora_A", "lora_A" * 11000)
name("..", "unknown_target", "layers.0", "layers...0")


@case("S27", "empty name", "bad_tensor_name")
def _(folder, good):
    return with_header(folder, good, lambda h: {("" if i == 0 else n): t for i, (n, t) in enumerate(h.items())})


def many(variant, code, n, each):
    """`n` tensors of `each` bytes, each a name of its own."""
    def make(folder, good):
        header = {f"base_model.model.model.layers.{i}.x": {"dtype": "F32", "shape": [each // 4], "data_offsets": [i * each, (i + 1) * each]}
                  for i in range(n)}
        return write(folder, container(json.dumps(header, separators=(",", ":")).encode(), bytes(n * each)), good.config)
    return variant, code, make


add("S28", *many("65,537 tensors", "too_many_tensors", 65_537, 4))
add("S28", "20,000 empty tensors", "bad_rank", lambda folder, good: write(
    folder, container({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20_000)}, b""), good.config))
add("S29", "order not by offset", None, lambda folder, good: with_header(folder, good, lambda h: dict(reversed(list(h.items())))))
add("S29", "order by chance", None, lambda folder, good: with_header(
    folder, good, lambda h: dict(dice("order").sample(list(h.items()), len(h)))))
add("S31", *many("30,000 tensors of 4 bytes", "unexpected_tensor", 30_000, 4))

# ---- S32: flipped bits ----------------------------------------------------------------------------------------------------------------


def flip(variant, code, place, by_name=None):
    def make(folder, good):
        raw = bytearray(good.file())
        at, mask = place(raw)
        raw[at] ^= mask
        return write(folder, bytes(raw), good.config)
    add("S32", variant, code, make, by_name=by_name)


def length_of(raw):
    return struct.unpack("<Q", raw[:8])[0]


for byte in range(3, 8):
    flip(f"bit 0 of byte {byte} of the length", "header_length", lambda raw, byte=byte: (byte, 1))
flip("lowest bit of the length: one byte more", ANY, lambda raw: (0, 1))
flip("the first brace", "json_syntax", lambda raw: (8, 1))
flip("the last brace", "json_syntax", lambda raw: (8 + length_of(raw) - 1, 1))
flip("first quote", "json_syntax", lambda raw: (9, 1))
flip("highest bit in a name", "json_encoding", lambda raw: (12, 0x80))
flip("a letter of a name", "unmapped_tensors", lambda raw: (raw.index(b"base_model"), 1))
flip("a letter of a dtype", "unknown_dtype", lambda raw: (raw.index(b'"F32"') + 1, 1))
flip("a letter of the key dtype", "missing_field", lambda raw: (raw.index(b'"dtype"') + 1, 1))
flip("a digit of a shape", "size_mismatch", lambda raw: (raw.index(b'"shape": [') + 10, 1))
flip("a bracket", "json_syntax", lambda raw: (raw.index(b"["), 1))
flip("sign bit of a weight: only the registered hash tells", None, lambda raw: (len(raw) - 1, 0x80))
flip("highest exponent bit of a weight", None, lambda raw: (len(raw) - 1, 0x40), "non_finite_output")
for n in range(40):
    flip(f"a random bit of length and header, {n}", ANY, lambda raw, n=n: (
        dice("flip", n).randrange(8 + length_of(raw)), 1 << dice("bit", n).randrange(8)))
for n in range(8):
    flip(f"a random bit of the lower half of a weight, {n}", None, lambda raw, n=n: (
        8 + length_of(raw) + 4 * dice("weight", n).randrange((len(raw) - 8 - length_of(raw)) // 4), 1 << dice("low", n).randrange(8)))
