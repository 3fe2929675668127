"""Good adapters taken apart, and ways to write spoiled ones: safetensors, adapter_config.json, GGUF.

Only the standard library, so that the tables run wherever graft builds.
"""

import copy
import json
import os
import struct

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../oracle/golden")


# ---- safetensors and PEFT folders ------------------------------------------------------------------------------

class Good:
    """A PEFT folder that loads, taken apart: tensors (name -> dtype, shape, bytes) and config."""

    def __init__(self, name="plain"):
        folder = os.path.join(GOLDEN, "adapters/llama", name)
        with open(os.path.join(folder, WEIGHTS), "rb") as f:
            raw = f.read()
        n = struct.unpack("<Q", raw[:8])[0]
        header = json.loads(raw[8:8 + n])
        header.pop("__metadata__", None)
        data = raw[8 + n:]
        self.tensors = {}
        for tensor, t in header.items():
            begin, end = t["data_offsets"]
            self.tensors[tensor] = (t["dtype"], t["shape"], data[begin:end])
        with open(os.path.join(folder, CONFIG)) as f:
            self.config = json.load(f)

    def copy(self):
        return copy.deepcopy(self)

    def first(self, end):
        return sorted(n for n in self.tensors if n.endswith(end))[0]

    def rename(self, old, new):
        self.tensors = {name.replace(old, new): t for name, t in self.tensors.items()}

    def put(self, name, *shape, dtype="F32"):
        """A tensor of small numbers, none of them 0."""
        self.tensors[name] = (dtype, list(shape), numbers(shape, dtype))

    def reshape(self, end, change):
        """Another shape for the first tensor of that ending, with numbers to fill it."""
        name = self.first(end)
        dtype, dims, data = self.tensors[name]
        dims = change(list(dims))
        size = product(dims) * WIDTH[dtype]
        self.tensors[name] = (dtype, dims, (data * (size // len(data) + 1))[:size])

    def file(self):
        return container(*header_of(self.tensors))


WIDTH = {"F32": 4, "F16": 2, "BF16": 2}


def product(dims):
    n = 1
    for d in dims:
        n *= d
    return n


def numbers(shape, dtype="F32"):
    one = {"F32": struct.pack("<f", 0.01), "F16": b"\x1f\x21", "BF16": b"\x24\x3c"}[dtype]
    return one * product(shape)


def header_of(tensors):
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    return header, b"".join(t[2] for t in tensors.values())


def container(header, data):
    """Bytes of a safetensors file. `header` may be an object or raw bytes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def write_file(path, data):
    with open(path, "wb") as f:
        f.write(data)
    return path


def write(folder, weights=None, config=None, name=WEIGHTS):
    """Weights and config into the folder, as far as they are given. Returns the folder."""
    if weights is not None:
        write_file(os.path.join(folder, name), weights)
    if config is not None:
        write_file(os.path.join(folder, CONFIG), config if isinstance(config, bytes) else json.dumps(config).encode())
    return folder


def save(folder, good):
    return write(folder, good.file(), good.config)


# ---- GGUF --------------------------------------------------------------------------------------------------------

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
TYPES = ["u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"]
FORMS = {U8: "<B", I8: "<b", U16: "<H", I16: "<h", U32: "<I", I32: "<i", F32: "<f", BOOL: "<B", U64: "<Q", I64: "<q", F64: "<d"}
MODULES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
           "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


class Raw(bytes):
    """A value, or a key, that is written as it is: behind its type, or in place of length and text."""


def text(s):
    data = s.encode() if isinstance(s, str) else s
    return data if isinstance(data, Raw) else struct.pack("<Q", len(data)) + data


def value(kind, v):
    if isinstance(v, Raw):
        return bytes(v)
    if kind == STRING:
        return text(v)
    if kind == ARRAY:
        element, items = v
        return struct.pack("<IQ", element, len(items)) + b"".join(value(element, i) for i in items)
    return struct.pack(FORMS[kind], v)


class Tensor:
    """One row of the tensor table, fastest dimension first, and its bytes. `offset` None: where it belongs."""

    def __init__(self, name, ne, data, kind=0, offset=None, n_dims=None):
        self.name, self.ne, self.data, self.kind, self.offset, self.n_dims = name, list(ne), data, kind, offset, n_dims

    def entry(self, at):
        n_dims = len(self.ne) if self.n_dims is None else self.n_dims
        dims = b"".join(struct.pack("<Q", d & (1 << 64) - 1) for d in self.ne)
        offset = at if self.offset is None else self.offset
        return text(self.name) + struct.pack("<I", n_dims & 0xffffffff) + dims + struct.pack("<IQ", self.kind & 0xffffffff, offset)


class Gguf:
    """The plain adapter as GGUF has it. Keys are a list, so that one can stand there twice."""

    def __init__(self, good):
        self.magic, self.version, self.alignment = b"GGUF", 3, 32
        self.n_tensors = self.n_keys = None  # None: as many as there are
        self.keys = [["general.architecture", STRING, "llama"], ["general.type", STRING, "adapter"],
                     ["adapter.type", STRING, "lora"], ["adapter.lora.alpha", F32, 8.0], ["general.name", STRING, "plain"]]
        self.tensors = []
        for name, (_, shape, data) in good.tensors.items():
            path, part = name.removeprefix("base_model.model.model.layers.").removesuffix(".weight").rsplit(".", 1)
            layer, module = path.split(".", 1)
            self.tensors.append(Tensor(f"blk.{layer}.{MODULES[module]}.weight.{part.lower()}", shape[::-1], data))

    def key(self, name):
        return next(k for k in self.keys if k[0] == name)

    def set(self, name, kind, v):
        """Changes a key, or adds it."""
        for k in self.keys:
            if k[0] == name:
                k[1:] = [kind, v]
                return
        self.keys.append([name, kind, v])

    def drop(self, name):
        self.keys = [k for k in self.keys if k[0] != name]

    def tensor(self, end):
        return next(t for t in self.tensors if t.name.endswith(end))

    def head(self):
        counts = struct.pack("<QQ", len(self.tensors) if self.n_tensors is None else self.n_tensors,
                             len(self.keys) if self.n_keys is None else self.n_keys)
        return self.magic + struct.pack("<I", self.version) + counts

    def parts(self):
        """Head, keys, tensor table, padding and data, each as bytes."""
        keys = b"".join(text(k) + struct.pack("<I", kind) + value(kind, v) for k, kind, v in self.keys)
        table, data = b"", b""
        for t in self.tensors:
            table += t.entry(len(data))
            data += t.data + bytes(-len(t.data) % self.alignment)
        head = self.head()
        padding = bytes(-(len(head) + len(keys) + len(table)) % self.alignment)
        return head, keys, table, padding, data

    def file(self):
        return b"".join(self.parts())
