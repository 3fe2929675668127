"""Where graft and the packages may differ: each class with the reason, and a rule over the file that says whether it is one."""

import json
import math
import re
import struct

NAMES = 512  # bytes
STANDARD = {"F32", "F16", "BF16"}
GGML = {0, 1, 30}


class Facts:
    """What Python's own JSON reader sees in a safetensors header; it keeps duplicate keys."""

    def __init__(self, b):
        self.length = struct.unpack("<Q", b[:8])[0] if len(b) >= 8 else 0
        self.text = b[8:8 + min(self.length, len(b))]
        self.duplicate = False
        self.numbers = []
        self.names = []
        try:
            self.root = json.loads(self.text.decode(), object_pairs_hook=self.pairs, parse_int=self.number, parse_float=self.number)
        except (ValueError, RecursionError):
            self.root = None
        self.entries = {k: v for k, v in self.root.items() if k != "__metadata__"} if isinstance(self.root, dict) else {}

    def pairs(self, items):
        self.duplicate |= len({k for k, _ in items}) < len(items)
        self.names += [k for k, _ in items]
        return dict(items)

    def number(self, text):
        self.numbers.append(text)
        return float(text) if re.search(r"[.eE]", text) else int(text)

    def shapes(self):
        return [e["shape"] if isinstance(e, dict) else e[1] for e in self.entries.values()
                if (isinstance(e, dict) and isinstance(e.get("shape"), list)) or (isinstance(e, list) and len(e) > 1 and isinstance(e[1], list))]

    def dtypes(self):
        return [e.get("dtype") if isinstance(e, dict) else e[0] for e in self.entries.values() if isinstance(e, dict) or (isinstance(e, list) and e)]


def odd_name(name):
    b = name.encode(errors="surrogatepass")
    return not 1 <= len(b) <= NAMES or any(c <= 0x20 or c >= 0x7f or c in b"/\\" for c in b)


def empties(f):
    return any(0 in s for s in f.shapes())


# code of graft, what it is, rule. The package accepts all of these.
SAFETENSORS_STRICTER = [
    ("metadata_invalid", "a key of the metadata twice, or no metadata but null", lambda f: f.duplicate or f.root.get("__metadata__", 0) is None),
    ("bad_rank", "a dimension of 0, none, or more than 4", lambda f: empties(f) or any(not 1 <= len(s) <= 4 for s in f.shapes())),
    ("unsupported_dtype", "an element type that no weight has", lambda f: any(d not in list(STANDARD) for d in f.dtypes())),
    ("bad_tensor_name", "a name that could deceive a reader", lambda f: any(odd_name(n) for n in f.entries)),
    ("bad_type", "an entry as a list of its fields", lambda f: any(isinstance(e, list) for e in f.entries.values())),
    ("json_encoding", "a NUL character in a string", lambda f: b"\\u0000" in f.text),
    ("overflow", "a number above 2^63", lambda f: any(abs(float(n)) >= 2**63 for n in f.numbers)),
]
SAFETENSORS_LOOSER = []


def field(reader, key):
    f = reader.fields.get(key)
    try:
        return f.contents() if f else None
    except Exception:  # as lenient as the reader itself
        return None


def offsets_fit(reader):
    at = 0
    for t in reader.tensors:
        if int(t.field.parts[5][0]) != at:
            return False
        at += int(t.n_bytes) + -int(t.n_bytes) % int(reader.alignment)
    return True


GGUF_STRICTER = [
    ("not_an_adapter", "no LoRA adapter", lambda r, b: field(r, "general.type") != "adapter" or field(r, "adapter.type") != "lora"),
    ("missing_field", "no architecture", lambda r, b: not field(r, "general.architecture")),
    ("alpha_missing", "no alpha", lambda r, b: "adapter.lora.alpha" not in r.fields),
    ("bad_alpha", "alpha 0 or not finite", lambda r, b: not math.isfinite(field(r, "adapter.lora.alpha")) or field(r, "adapter.lora.alpha") == 0),
    ("gguf_key_type", "a key that adapters need, with another type", lambda r, b: True),
    ("sharded_unsupported", "one of several files", lambda r, b: field(r, "split.count") not in (None, 0, 1)),
    ("no_tensors", "no tensors", lambda r, b: not r.tensors),
    ("unsupported_dtype", "an element type that no adapter has", lambda r, b: any(int(t.tensor_type) not in GGML for t in r.tensors)),
    ("gguf_shape", "no dimension, more than 4, one of 0, or above 2^63", lambda r, b: any(not 1 <= len(t.shape) <= 4 or any(n < 1 or n >= 2**63 for n in t.shape.tolist()) for t in r.tensors)),
    ("gguf_name", "a name longer than ggml's 63 bytes", lambda r, b: any(len(t.name.encode()) > 63 for t in r.tensors)),
    ("bad_tensor_name", "a name that could deceive a reader", lambda r, b: any(odd_name(t.name) for t in r.tensors)),
    ("gguf_offset", "tensors that overlap, or holes", lambda r, b: not offsets_fit(r)),
    ("trailing_bytes", "bytes after the last tensor", lambda r, b: True),
    ("gguf_alignment", "an alignment below 8 or above 65536", lambda r, b: not 8 <= int(r.alignment) <= 65536),
    ("gguf_string", "an empty key, a string that is not UTF-8, or a NUL in the architecture", lambda r, b: True),
    ("gguf_type", "an array of arrays", lambda r, b: True),
    ("truncated", "cut off in a key's value or in an array, which gguf-py does not notice", lambda r, b: True),
]
GGUF_LOOSER = []
