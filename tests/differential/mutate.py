"""Seeded changes of tensor files: of their bytes, and of what the bytes say with the rest made to fit."""

import json
import os
import struct

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../oracle/golden/adapters")
BYTES = {"F32": 4, "F16": 2, "BF16": 2}
NUMBERS = [0, 1, 2, 3, 4, 7, 8, 16, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -1]
TOKENS = [b'"', b"{", b"}", b"[", b"]", b",", b":", b" ", b"\n", b"\t", b"\0", b"null", b"true", b"1e2", b"1.0", b"-0", b"00", b"\\u0000",
          b"\\ud800", b"\\ud83d\\ude00", b"\\/", b"\xc3\xa9", b"\xff", b"\xef\xbb\xbf", b"\x7f", b"0", b"9", b'"a":1,', b'"__metadata__":{},', b'{"a":"b"}']


def pack(tensors, metadata=None):
    header, at = {}, 0
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, dtype, shape in tensors:
        size = BYTES[dtype]
        for n in shape:
            size *= n
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return header, bytes(at)


def container(header, data, pad=False):
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    if pad:
        text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def safetensors_seeds():
    """Headers of the golden adapters with small shapes: at most three tensors."""
    seeds = []
    for folder, _, files in sorted(os.walk(GOLDEN)):
        if "adapter_model.safetensors" in files:
            with open(os.path.join(folder, "adapter_model.safetensors"), "rb") as f:
                header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
            metadata = header.pop("__metadata__", None)
            tensors = [(name, e["dtype"], [min(n, 3) for n in e["shape"]]) for name, e in sorted(header.items())[:3] if e["dtype"] in BYTES]
            seeds.append(pack(tensors, metadata))
    return seeds


def splice(rng, b):
    """One change of bytes."""
    b, at = bytearray(b), rng.randrange(len(b) + 1)
    kind = rng.randrange(6)
    if kind == 0 and at < len(b):
        b[at] ^= 1 << rng.randrange(8)
    elif kind == 1 and at < len(b):
        b[at] = rng.randrange(256)
    elif kind == 2:
        b[at:at] = rng.choice(TOKENS)
    elif kind == 3:
        del b[at:at + rng.choice((1, 1, 2, 8))]
    elif kind == 4:
        n = rng.choice((1, 4, 16))
        b[at:at] = b[max(0, at - n):at]
    else:
        b[at:at + 1] = rng.choice(TOKENS)
    return bytes(b)


def odd_value(rng):
    return rng.choice([None, True, False, "", "F32", 1.5, 2.0, -1, [], {}, [1], {"a": 1}, rng.choice(NUMBERS)])


def change_entry(rng, header):
    """One change of one tensor's entry."""
    names = [k for k in header if k != "__metadata__" and isinstance(header[k], dict)]
    if not names:
        return
    name = rng.choice(names)
    e = header[name] = dict(header[name])
    kind = rng.randrange(12)
    if kind == 0:
        e["dtype"] = rng.choice(["F32", "F16", "BF16", "F64", "I64", "I32", "I8", "U8", "BOOL", "F8_E4M3", "f32", "F4", "C64", "Q4", ""])
    elif kind in (1, 2) and isinstance(e.get("shape"), list):
        shape = list(e["shape"])
        at = rng.randrange(len(shape) + 1)
        if rng.randrange(2) and shape:
            shape[at % len(shape)] = rng.choice(NUMBERS)
        elif rng.randrange(2):
            shape.insert(at, rng.choice((0, 1, 1, 2)))
        else:
            shape = shape[:at]
        e["shape"] = shape
    elif kind in (3, 4, 5) and isinstance(e.get("data_offsets"), list):
        o = list(e["data_offsets"])
        if o and all(isinstance(x, int) for x in o):
            at = rng.randrange(len(o))
            o[at] = rng.choice((o[at] + rng.choice((-8, -1, 1, 8)), rng.choice(NUMBERS)))
        if rng.randrange(8) == 0:
            o = rng.choice((o[:1], o + [o[-1]] if o else [], list(reversed(o))))
        e["data_offsets"] = o
    elif kind == 6:
        e.pop(rng.choice(list(e)), None) if e else None
    elif kind == 7:
        e[rng.choice(["dtype", "shape", "data_offsets", "extra"])] = odd_value(rng)
    elif kind == 8:
        header[name] = odd_value(rng)
    elif kind == 9:
        header[name] = list(e.values())
    elif kind == 10:
        header[rng.choice(["a/b", "", "\u00e9", "a b", "x" * 600, "a\n", "a\0b", "ok.lora_A.weight", "__metadata__"])] = header.pop(name)
    else:
        header["__metadata__"] = rng.choice([{}, {"a": "b"}, {"a": 1}, {"a": None}, [], None, "x", {"": ""}])


def lay_out(header):
    """Offsets as the shapes say, where they say something. Returns the data's size."""
    at = 0
    for e in header.values():
        if isinstance(e, dict) and e.get("dtype") in list(BYTES) and isinstance(e.get("shape"), list):
            size = BYTES[e["dtype"]]
            for n in e["shape"]:
                size *= n if isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= 64 else 1
            if size < 1 << 16:
                e["data_offsets"] = [at, at + size]
                at += size
    return at


def change_text(rng, text):
    """Duplicate keys and white space, which a parsed header cannot show."""
    kind = rng.randrange(4)
    if kind == 0:
        at = text.find(b'"', rng.randrange(len(text)))
        end = text.find(b",", at)
        if 0 <= at < end:
            text = text[:end + 1] + text[at:end + 1] + text[end + 1:]
    elif kind == 1:
        where = [i for i, c in enumerate(text) if c in b"{}[],:"]
        at = rng.choice(where) if where else 0
        text = text[:at] + rng.choice((b" ", b"\n", b"\t", b"\r", b"\f", b"\xc2\xa0", b"/**/")) * rng.randrange(1, 4) + text[at:]
    elif kind == 2:
        text = rng.choice((b" ", b"\n", b"", b"\xef\xbb\xbf")) + text + rng.choice((b" ", b"\0", b"\n\n", b"x", b""))
    else:
        text = splice(rng, text)
    return text


def safetensors(rng, seeds):
    header, data = rng.choice(seeds)
    header = dict(header)
    if rng.randrange(4) == 0:
        b = container(header, data, rng.randrange(2))
        for _ in range(rng.choice((1, 1, 2, 4))):
            b = splice(rng, b)
        return b
    for _ in range(rng.choice((0, 1, 1, 2))):
        change_entry(rng, header)
    if rng.randrange(2):
        header = {k: dict(v) if isinstance(v, dict) else v for k, v in header.items()}
        data = bytes(lay_out(header))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=bool(rng.randrange(2))).encode()
    if rng.randrange(3) == 0 and text:
        text = change_text(rng, text)
    if rng.randrange(16) == 0:
        data = rng.choice((data[:-1], data + b"\0", data + bytes(8), b""))
    b = container(text, data)
    if rng.randrange(32) == 0:
        b = struct.pack("<Q", rng.choice((0, 1, len(text) - 1, len(text) + 1, len(b), 2**32, 2**63, 2**64 - 1, 100_000_001)) % 2**64) + b[8:]
    return b


# ---- GGUF -------------------------------------------------------------------------------------------------

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def string(s):
    s = s.encode() if isinstance(s, str) else s
    return struct.pack("<Q", len(s)) + s


def value(kind, v):
    if kind == 8:
        return string(v)
    if kind == 9:
        inner, items = v
        return struct.pack("<IQ", inner, len(items)) + b"".join(value(inner, i) for i in items)
    return struct.pack("<" + SCALARS[kind], v)


def gguf_bytes(version, keys, tensors, alignment, tail=True):
    b = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    for key, kind, v in keys:
        b += string(key) + struct.pack("<I", kind) + (v if isinstance(v, bytes) and kind not in (8,) else value(kind, v))
    at = 0
    for name, ne, kind, offset in tensors:
        size = {0: 4, 1: 2, 30: 2}.get(kind, 4)
        for n in ne:
            size *= n if n < 1 << 16 else 1
        b += string(name) + struct.pack("<I", len(ne)) + b"".join(struct.pack("<Q", n) for n in ne)
        b += struct.pack("<IQ", kind, at if offset is None else offset)
        at += size + (-size % alignment)
        at = min(at, 1 << 16)
    return b + (bytes(-len(b) % alignment) + bytes(at) if tail else b"")


def gguf(rng):
    keys = [("general.architecture", 8, "llama"), ("general.type", 8, "adapter"), ("adapter.type", 8, "lora"), ("adapter.lora.alpha", 6, 16.0)]
    ends = rng.choice((("a", "b"), ("a", "b"), ("a",)))
    tensors = [(f"blk.{i}.attn_q.weight.lora_{e}", [4, 2] if e == "a" else [2, 4], rng.choice((0, 0, 1, 30)), None) for i in range(rng.randrange(1, 3)) for e in ends]
    alignment = 32
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        kind = rng.randrange(12)
        at = rng.randrange(len(keys)) if keys else 0
        t = rng.randrange(len(tensors)) if tensors else 0
        if kind == 0:
            keys.append((rng.choice(("x", "y.z", "tokenizer.ggml.model", "", "\u00e9", "split.count")), *rng.choice(((4, 7), (8, "v"), (7, True), (6, 0.5), (11, -1), (9, (8, ["a", "b"])), (9, (5, [1, 2])), (9, (9, [(4, [1])])), (2, 1), (2, 3)))))
        elif kind == 1 and keys:
            keys.insert(rng.randrange(len(keys) + 1), keys[at])
        elif kind == 2 and keys:
            del keys[at]
        elif kind == 3 and keys:
            keys[at] = (keys[at][0], *rng.choice(((8, ""), (8, "model"), (8, b"\xff"), (8, b"a\0b"), (4, 1), (6, float("nan")), (6, 0.0), (12, 1.0), (13, b"1234"))))
        elif kind == 4:
            alignment = rng.choice((8, 16, 64, 128))
            keys.append(("general.alignment", 4, alignment))
        elif kind == 5:
            keys.append(("general.alignment", *rng.choice(((4, 0), (4, 3), (4, 1), (4, 4), (4, 1 << 20), (2, 32), (10, 32), (8, "32")))))
        elif tensors:
            name, ne, ty, offset = tensors[t]
            ne = list(ne)
            if kind == 6:
                name = rng.choice(("", "x" * 64, "x" * 63, "a b", "\u00e9", tensors[0][0], "a/b"))
            elif kind == 7:
                ne = rng.choice(([], [0], [8], [1, 1, 1, 8], [1, 1, 1, 1, 8], [2, 0], [2**31, 2**33], [2**63], [2**62, 4], [4, 3]))
            elif kind == 8:
                ty = rng.choice((2, 8, 4, 5, 24, 25, 26, 27, 28, 29, 31, 36, 39, 40, 41, 42, 43, 99, 2**32 - 1))
            elif kind == 9:
                offset = rng.choice((0, 1, 8, 32, 64, 96, 2**32, 2**63, 2**64 - 32))
            elif kind == 10:
                tensors.append(tensors[t])
            elif kind == 11:
                tensors = tensors[:t]
            if kind < 10:
                tensors[t] = (name, ne, ty, offset)
    version = rng.choice((3, 3, 3, 3, 2, 2, rng.choice((0, 1, 4, 0x03000000))))
    b = gguf_bytes(version, keys, tensors, alignment, rng.randrange(16) > 0)
    if rng.randrange(4) == 0:
        for _ in range(rng.choice((1, 1, 2))):
            b = splice(rng, b)
    if rng.randrange(16) == 0:
        b = rng.choice((b[:rng.randrange(len(b) + 1)], b + b"\0", b + bytes(32)))
    return b
