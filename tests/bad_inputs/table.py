"""The table of bad adapters: what each file is, and the one code with which it must be refused.

Each entry of CASES is (row, variant, expected code, maker). Rows are those of docs/bad-inputs.md: F files and
paths, S the safetensors container, C adapter_config.json, L tensors against the base. A maker gets an empty
folder and a good adapter to spoil, and returns the path to hand to graft. Expected None: it must load.
Only the standard library, so that the table runs wherever graft builds.
"""

import copy
import json
import os
import socket
import struct

CASES = []


def case(row, variant, expected):
    def add(maker):
        CASES.append((row, variant, expected, maker))
        return maker
    return add


class Good:
    """A PEFT folder that loads, taken apart: header entries (name -> dtype, shape, bytes) and config."""

    def __init__(self, folder):
        raw = open(os.path.join(folder, "adapter_model.safetensors"), "rb").read()
        n = struct.unpack("<Q", raw[:8])[0]
        header = json.loads(raw[8:8 + n])
        header.pop("__metadata__", None)
        data = raw[8 + n:]
        self.tensors = {}
        for name, t in header.items():
            begin, end = t["data_offsets"]
            self.tensors[name] = (t["dtype"], t["shape"], data[begin:end])
        self.config = json.load(open(os.path.join(folder, "adapter_config.json")))

    def copy(self):
        return copy.deepcopy(self)

    def first(self, end):
        return sorted(n for n in self.tensors if n.endswith(end))[0]


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


def write(folder, weights=None, config=None):
    if weights is not None:
        with open(os.path.join(folder, "adapter_model.safetensors"), "wb") as f:
            f.write(weights)
    if config is not None:
        with open(os.path.join(folder, "adapter_config.json"), "wb") as f:
            f.write(config if isinstance(config, bytes) else json.dumps(config).encode())
    return folder


def save(folder, good):
    return write(folder, container(*header_of(good.tensors)), good.config)


def with_header(folder, good, change):
    """The good file with `change(header)` applied to its header, data as it was."""
    header, data = header_of(good.tensors)
    changed = change(header)
    return write(folder, container(header if changed is None else changed, data), good.config)


def with_config(folder, good, **changes):
    config = dict(good.config)
    for key, value in changes.items():
        if value is ...:
            config.pop(key, None)
        else:
            config[key] = value
    return write(folder, container(*header_of(good.tensors)), config)


# ---- F: files and paths --------------------------------------------------------------------------------------

@case("F01", "no such path", "adapter_file_missing")
def _(folder, good):
    return os.path.join(folder, "absent")


@case("F01", "dangling symlink", "adapter_file_missing")
def _(folder, good):
    link = os.path.join(folder, "link")
    os.symlink(os.path.join(folder, "absent"), link)
    return link


@case("F02", "no weights", "missing_file")
def _(folder, good):
    return write(folder, config=good.config)


@case("F02", "no config", "config_missing")
def _(folder, good):
    save(folder, good)
    os.unlink(os.path.join(folder, "adapter_config.json"))
    return folder


@case("F02", "empty folder", "missing_file")
def _(folder, good):
    return folder


for size in range(8):
    @case("F03", f"{size} bytes", "header_too_small")
    def _(folder, good, size=size):
        return write(folder, b"\x02\0\0\0\0\0\0"[:size], good.config)


def unreadable(folder, good, name):
    save(folder, good)
    os.chmod(os.path.join(folder, name), 0)
    return folder


@case("F04", "weights without permission", "not_readable")
def _(folder, good):
    return unreadable(folder, good, "adapter_model.safetensors")


@case("F04", "config without permission", "not_readable")
def _(folder, good):
    return unreadable(folder, good, "adapter_config.json")


@case("F04", "folder without permission", "not_readable")
def _(folder, good):
    inner = os.path.join(folder, "closed")
    os.mkdir(inner)
    save(inner, good)
    os.chmod(inner, 0)
    return inner


@case("F05", "FIFO as weights", "not_regular_file")
def _(folder, good):
    write(folder, config=good.config)
    os.mkfifo(os.path.join(folder, "adapter_model.safetensors"))
    return folder


@case("F05", "FIFO as adapter", "not_regular_file")
def _(folder, good):
    os.mkfifo(os.path.join(folder, "fifo"))
    return os.path.join(folder, "fifo")


for device in ("/dev/zero", "/dev/null", "/dev/random"):
    @case("F06", f"{device} as adapter", "not_regular_file")
    def _(folder, good, device=device):
        return device

    @case("F06", f"{device} as weights", "not_regular_file")
    def _(folder, good, device=device):
        write(folder, config=good.config)
        os.symlink(device, os.path.join(folder, "adapter_model.safetensors"))
        return folder


@case("F06", "socket", "not_regular_file")
def _(folder, good):
    path = os.path.join(folder, "s")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(path)
    return path


@case("F06", "folder as weights", "not_regular_file")
def _(folder, good):
    write(folder, config=good.config)
    os.mkdir(os.path.join(folder, "adapter_model.safetensors"))
    return folder


@case("F23", "pickle only", "pickle_refused")
def _(folder, good):
    write(folder, config=good.config)
    open(os.path.join(folder, "adapter_model.bin"), "wb").write(b"PK\x03\x04")
    return folder


@case("F23", "pickle beside safetensors is not opened", None)
def _(folder, good):
    save(folder, good)
    os.mkfifo(os.path.join(folder, "adapter_model.bin"))
    return folder


for what, first, code in (
        ("zip", b"PK\x03\x04" + bytes(60), "unsupported_format"),
        ("pickle", b"\x80\x02}q\x00." + bytes(60), "pickle_refused"),
        ("gzip", b"\x1f\x8b\x08" + bytes(60), "unsupported_format"),
        ("web page", b"<!DOCTYPE html><html></html>" + bytes(60), "unsupported_format"),
        ("GGUF", b"GGUF\x03\0\0\0" + bytes(60), "unsupported_format"),
):
    @case("F24", f"{what} named safetensors", code)
    def _(folder, good, first=first):
        return write(folder, first, good.config)


@case("F25", "LFS pointer", "lfs_pointer")
def _(folder, good):
    return write(folder, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", good.config)


@case("F27", "sharded", "sharded_unsupported")
def _(folder, good):
    write(folder, config=good.config)
    open(os.path.join(folder, "adapter_model.safetensors.index.json"), "w").write("{}")
    return folder


# ---- S: the safetensors container ----------------------------------------------------------------------------

def raw_length(n, rest=b"{}", size=None):
    def make(folder, good):
        write(folder, struct.pack("<Q", n) + rest, good.config)
        if size:
            os.truncate(os.path.join(folder, "adapter_model.safetensors"), size)
        return folder
    return make


case("S01", "header longer than the file", "header_length")(raw_length(100))
case("S01", "2^63", "header_length")(raw_length(1 << 63))
case("S01", "2^64-1: wraps when 8 is added", "header_length")(raw_length((1 << 64) - 1))
case("S02", "100,000,001", "header_too_large")(raw_length(100_000_001, size=100_000_100))
case("S02", "one over our cap", "header_too_large")(raw_length((16 << 20) + 1, size=(16 << 20) + 100))
case("S03", "length 0", "header_invalid")(raw_length(0, b"{}"))
case("S03", "length 1", "json_syntax")(raw_length(1, b"{}"))
case("S03", "no tensors", "no_tensors")(raw_length(2, b"{}"))
case("S03", "metadata only", "no_tensors")(raw_length(19, b'{"__metadata__":{}}'))
case("S04", "not UTF-8", "json_encoding")(raw_length(6, b'{"\xff":1'[:6] + b"}"))


def around(before, after):
    return lambda folder, good: with_header(
        folder, good, lambda h: before + json.dumps(h).encode() + after)


case("S05", "leading blanks", None)(around(b" \n\t\r", b""))
case("S05", "trailing blanks", None)(around(b"", b" \n\t\r" * 5))
case("S05", "trailing NULs", "json_syntax")(around(b"", b"\0\0"))
case("S05", "trailing text", "json_syntax")(around(b"", b"x"))
for text in (b"[]", b'"x"', b"null", b"1"):
    case("S06", f"top level {text.decode()}", "header_invalid")(
        lambda folder, good, text=text: write(folder, container(text, b""), good.config))


def duplicated(escaped):
    def make(folder, good):
        header, data = header_of(good.tensors)
        name = next(iter(header))
        twin = name.replace("l", "\\u006c", 1) if escaped else name
        text = json.dumps(header)
        return write(folder, container(f'{{"{twin}": {json.dumps(header[name])}, {text[1:]}'.encode(), data), good.config)
    return make


case("S07", "duplicate name", "duplicate_tensor")(duplicated(False))
case("S07", "duplicate by escape", "duplicate_tensor")(duplicated(True))


def entry(change):
    """Changes the first tensor's entry."""
    def apply(header):
        t = header[next(iter(header))]
        change(t)
    return lambda folder, good: with_header(folder, good, apply)


def neighbours(change):
    def apply(header):
        names = list(header)
        change(header[names[0]], header[names[1]])
    return lambda folder, good: with_header(folder, good, apply)


def overlap(a, b):
    b["data_offsets"] = [a["data_offsets"][1] - 4, b["data_offsets"][1] - 4]


def same_range(a, b):
    b.update(copy.deepcopy(a))


case("S08", "overlapping by 4 bytes", "overlap")(neighbours(overlap))
case("S08", "identical ranges", "overlap")(neighbours(same_range))


@case("S09", "hole of 8 bytes", "hole")
def _(folder, good):
    header, data = header_of(good.tensors)
    name = next(iter(header))
    end = header[name]["data_offsets"][1]
    for other in header.values():
        if other["data_offsets"][0] >= end:
            other["data_offsets"] = [o + 8 for o in other["data_offsets"]]
    return write(folder, container(header, data[:end] + bytes(8) + data[end:]), good.config)


@case("S09", "hole before the first", "hole")
def _(folder, good):
    header, data = header_of(good.tensors)
    for t in header.values():
        t["data_offsets"] = [o + 8 for o in t["data_offsets"]]
    return write(folder, container(header, bytes(8) + data), good.config)


@case("S10", "one byte after the last", "trailing_bytes")
def _(folder, good):
    return write(folder, container(*header_of(good.tensors)) + b"\0", good.config)


for missing in (1, 100):
    @case("S11", f"{missing} bytes short", "truncated")
    def _(folder, good, missing=missing):
        return write(folder, container(*header_of(good.tensors))[:-missing], good.config)


def offsets(*values):
    return entry(lambda t: t.update(data_offsets=list(values)))


case("S12", "ends before it begins", "bad_offsets")(offsets(64, 0))
case("S12", "negative", "bad_offsets")(offsets(-8, 8))
case("S12", "empty range, full shape", "bad_offsets")(offsets(0, 0))


@case("S13", "near 2^63, right length", "hole")
def _(folder, good):
    header, data = header_of(good.tensors)
    last = header[list(header)[-1]]
    begin, end = last["data_offsets"]
    last["data_offsets"] = [(1 << 63) - 1 - (end - begin), (1 << 63) - 1]
    return write(folder, container(header, data), good.config)


case("S13", "near 2^64", "overflow")(offsets((1 << 64) - 1024, (1 << 64) - 1))
for bad in ([], [0], [0, 1, 2], ["0", "1"], [0.0, 64.0], None, {"b": 0}):
    case("S14", f"data_offsets {json.dumps(bad)}", "bad_type")(entry(lambda t, bad=bad: t.update(data_offsets=bad)))


def shape(*values):
    return entry(lambda t: t.update(shape=list(values)))


case("S15", "product wraps", "overflow")(shape(1 << 33, 1 << 33))
case("S15", "bytes wrap", "overflow")(shape(2, (1 << 63) - 1))
case("S16", "0 first, then huge", "bad_rank")(shape(0, (1 << 63) - 1, (1 << 63) - 1))
case("S16", "huge, then 0", "bad_rank")(shape((1 << 63) - 1, (1 << 63) - 1, 0))
case("S17", "dimension 0", "bad_rank")(shape(0, 64))
case("S17", "no dimensions", "bad_rank")(shape())
case("S17", "100,000 dimensions", "bad_rank")(shape(*[1] * 100_000))


@case("S17", "one dimension", "bad_rank")
def _(folder, good):
    name = good.first("lora_A.weight")
    dtype, dims, data = good.tensors[name]
    good.tensors[name] = (dtype, [dims[0] * dims[1]], data)
    return save(folder, good)


@case("S17", "three dimensions", "bad_rank")
def _(folder, good):
    name = good.first("lora_A.weight")
    dtype, dims, data = good.tensors[name]
    good.tensors[name] = (dtype, [1] + dims, data)
    return save(folder, good)


case("S18", "shape larger than the bytes", "size_mismatch")(entry(lambda t: t["shape"].__setitem__(0, t["shape"][0] * 2)))
case("S18", "dtype of another size", "size_mismatch")(entry(lambda t: t.update(dtype="F16")))
for bad in ("F128", "f16", "", "F32 "):
    case("S19", f"dtype {bad!r}", "unknown_dtype")(entry(lambda t, bad=bad: t.update(dtype=bad)))
for bad in (7, None, ["F32"]):
    case("S19", f"dtype {json.dumps(bad)}", "unknown_dtype")(entry(lambda t, bad=bad: t.update(dtype=bad)))
for known in ("BOOL", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "F64", "F8_E4M3", "F8_E5M2", "F4", "C64"):
    case("S20", f"dtype {known}", "unsupported_dtype")(entry(lambda t, known=known: t.update(dtype=known)))


@case("S23", "data section not aligned", None)
def _(folder, good):
    header, data = header_of(good.tensors)
    text = json.dumps(header).encode()
    return write(folder, container(text + b" " * (3 - len(text) % 8 + 8), data), good.config)


case("S24", "extra field in an entry", None)(entry(lambda t: t.update(comment="x")))
for field in ("dtype", "shape", "data_offsets"):
    case("S25", f"no {field}", "missing_field")(entry(lambda t, field=field: t.pop(field)))
for bad in ("x", 1, {"a": 1}, {"a": None}, [], {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}):
    case("S26", f"metadata {json.dumps(bad)}", "metadata_invalid")(
        lambda folder, good, bad=bad: with_header(folder, good, lambda h: {"__metadata__": bad, **h}))


@case("S27", "NUL in a name", "json_encoding")
def _(folder, good):
    return with_header(folder, good, lambda h: json.dumps(h).replace("lora_A", "lora_A\\u0000", 1).encode())


@case("S27", "escape sequence in a name", "bad_tensor_name")
def _(folder, good):
    return with_header(folder, good, lambda h: json.dumps(h).replace("lora_A", "lora_A\\u001b[2J", 1).encode())


@case("S27", "name of 64 KB", "bad_tensor_name")
def _(folder, good):
    return with_header(folder, good, lambda h: json.dumps(h).replace("lora_A", "lora_A" * 11000, 1).encode())


@case("S29", "order not by offset", None)
def _(folder, good):
    return with_header(folder, good, lambda h: dict(reversed(list(h.items()))))


@case("S30", "big-endian length", "header_length")
def _(folder, good):
    header, data = header_of(good.tensors)
    raw = json.dumps(header).encode()
    return write(folder, struct.pack(">Q", len(raw)) + raw + data, good.config)


# ---- J: JSON ---------------------------------------------------------------------------------------------------

for what, text, code in (
        ("not JSON", b"hello", "json_syntax"), ("two documents", b"{}{}", "json_syntax"),
        ("trailing comma", b'{"r":1,}', "json_syntax"), ("comment", b"{} // x", "json_syntax"),
        ("single quotes", b"{'r':1}", "json_syntax"), ("byte order mark", b"\xef\xbb\xbf{}", "json_syntax"),
        ("NaN", b'{"lora_alpha":NaN}', "json_syntax"), ("leading zero", b'{"r":08}', "json_syntax"),
        ("lone surrogate", b'{"x":"\\ud800"}', "json_encoding"), ("invalid UTF-8", b'{"x":"\xff"}', "json_encoding"),
        ("100,000 deep", b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "json_too_deep"),
        ("duplicate key", b'{"r":1,"r":2}', "json_duplicate_key"), ("duplicate by escape", b'{"r":1,"\\u0072":2}', "json_duplicate_key"),
        ("1e400", b'{"lora_alpha":1e400}', "out_of_range"), ("2^64", b'{"r":18446744073709551616}', "out_of_range"),
        ("array", b"[]", "bad_type"),
):
    case("J", what, code)(lambda folder, good, text=text: write(folder, container(*header_of(good.tensors)), text))


# ---- C: adapter_config.json ------------------------------------------------------------------------------------

case("C01", "empty", "json_syntax")(lambda folder, good: write(folder, container(*header_of(good.tensors)), b""))


@case("C01", "is a folder", "not_regular_file")
def _(folder, good):
    write(folder, container(*header_of(good.tensors)))
    os.mkdir(os.path.join(folder, "adapter_config.json"))
    return folder


def config(row, variant, code, **changes):
    case(row, variant, code)(lambda folder, good: with_config(folder, good, **changes))


config("C02", "peft_type absent", "unsupported_adapter", peft_type=...)
for kind in ("LOHA", "LOKR", "IA3", "ADALORA", "VERA", "OFT", "PROMPT_TUNING", "lora"):
    config("C02", f"peft_type {kind}", "unsupported_adapter", peft_type=kind)
config("C02", "peft_type a number", "bad_type", peft_type=1)
config("C03", "r missing", "bad_rank", r=...)
for r in (0, -1, 1 << 31):
    config("C03", f"r {r}", "bad_rank", r=r)
for r in ("8", 8.0, True, None, [8]):
    config("C03", f"r {json.dumps(r)}", "bad_rank", r=r)
config("C04", "r disagrees with the tensors", "rank_mismatch", r=7)
config("C05", "alpha missing", "bad_alpha", lora_alpha=...)
config("C05", "alpha 0", "bad_alpha", lora_alpha=0)
config("C05", "alpha 1e30", "bad_alpha", lora_alpha=1e30)
config("C05", "alpha a string", "bad_alpha", lora_alpha="16")
config("C05", "alpha negative", None, lora_alpha=-8)
config("C05", "alpha not whole", None, lora_alpha=7.5)
config("C06", "rsLoRA", None, use_rslora=True)
config("C06", "rsLoRA a string", "bad_type", use_rslora="yes")
config("C07", "suffix pattern", None, alpha_pattern={"q_proj": 4, "layers.1.self_attn.q_proj": 8})
config("C07", "regex pattern", None, alpha_pattern={r"layers\.[01]\.self_attn\.(q|k)_proj": 4})
config("C07", "pattern that ends slowly", "unsupported_pattern", alpha_pattern={r"(([a-z_.0-9]+)+)+[A-Z]": 4, "q_proj": 2})
config("C07", "pattern that does not compile", "unsupported_pattern", alpha_pattern={"(q_proj": 4})
config("C07", "pattern with look-ahead", "unsupported_pattern", alpha_pattern={"(?=q)q_proj": 4})
config("C07", "value a string", "bad_alpha", alpha_pattern={"q_proj": "4"})
config("C07", "value 0", "bad_alpha", alpha_pattern={"q_proj": 0})
config("C07", "rank value 0", "bad_rank", rank_pattern={"q_proj": 0})
config("C08", "alpha pattern that fits nothing", "pattern_unused", alpha_pattern={"q_porj": 4})
config("C08", "rank pattern that fits nothing", "pattern_unused", rank_pattern={"layers.9.q_proj": 4})
for value in ("all-linear", r".*\.q_proj", r"(a+)+$", ["q_proj"], [], None):
    config("C09", f"target_modules {json.dumps(value)}", None, target_modules=value)
config("C09", "target_modules a number", "bad_type", target_modules=3)
config("C10", "DoRA", "unsupported_adapter", use_dora=True)
config("C11", "bias all", "unsupported_adapter", bias="all")
config("C11", "bias lora_only", "unsupported_adapter", bias="lora_only")
config("C11", "lora_bias", "unsupported_adapter", lora_bias=True)
config("C12", "modules_to_save", "unsupported_adapter", modules_to_save=["lm_head"])
config("C13", "trainable tokens", "unsupported_adapter", trainable_token_indices=[1, 2])
config("C14", "fan_in_fan_out on a base without Conv1D", "unsupported_adapter", fan_in_fan_out=True)
config("C15", "layers the file does not agree with", "unexpected_tensor", layers_to_transform=[0])
config("C15", "layer_replication", "unsupported_adapter", layer_replication=[[0, 2], [1, 2]])
config("C16", "target_parameters", "unsupported_adapter", target_parameters=["mlp.experts.gate_up_proj"])
config("C16", "QALoRA", "unsupported_adapter", use_qalora=True)
for init in ("pissa", "pissa_niter_4", "olora", "corda", "loftq"):
    config("C17", f"init {init}", "base_modified", init_lora_weights=init)
config("C18", "aLoRA", "unsupported_adapter", alora_invocation_tokens=[1, 2])
config("C19", "unknown option, off", None, use_magic=False)
config("C19", "unknown option, on", "unknown_option", use_magic=True)
config("C21", "sequence classification", "unsupported_adapter", task_type="SEQ_CLS")
config("C22", "dropout", None, lora_dropout=0.5, inference_mode=False)
config("C24", "version from the future", None, peft_version="99.0")


# ---- L: tensors against the base ---------------------------------------------------------------------------------

def spoil(row, variant, code):
    def add(change):
        def make(folder, good):
            change(good)
            return save(folder, good)
        case(row, variant, code)(make)
        return change
    return add


@spoil("L01", "A without B", "missing_pair")
def _(good):
    del good.tensors[good.first("lora_B.weight")]


@spoil("L01", "B without A", "missing_pair")
def _(good):
    del good.tensors[good.first("lora_A.weight")]


def reshape(good, end, change):
    name = good.first(end)
    dtype, dims, data = good.tensors[name]
    dims = change(list(dims))
    count = 1
    for d in dims:
        count *= d
    width = {"F32": 4, "F16": 2, "BF16": 2}[dtype]
    good.tensors[name] = (dtype, dims, (data * (count * width // len(data) + 1))[:count * width])


@spoil("L02", "ranks of A and B differ", "rank_mismatch")
def _(good):
    reshape(good, "q_proj.lora_B.weight", lambda d: [d[0], d[1] + 1])


@spoil("L03", "A for a wider base", "wrong_shape")
def _(good):
    reshape(good, "q_proj.lora_A.weight", lambda d: [d[0], d[1] * 2])


@spoil("L03", "B for a narrower base", "wrong_shape")
def _(good):
    reshape(good, "q_proj.lora_B.weight", lambda d: [d[0] // 2, d[1]])


@spoil("L04", "A and B transposed", "wrong_shape")
def _(good):
    reshape(good, "q_proj.lora_A.weight", lambda d: d[::-1])
    reshape(good, "q_proj.lora_B.weight", lambda d: d[::-1])


@spoil("L05", "square, so that a transpose cannot be seen: taken as PEFT declares it", None)
def _(good):
    for part in ("lora_A", "lora_B"):
        reshape(good, f"layers.0.self_attn.q_proj.{part}.weight", lambda d: [64, 64])
    good.config["rank_pattern"] = {"layers.0.self_attn.q_proj": 64}


def rename(good, old, new):
    good.tensors = {name.replace(old, new): t for name, t in good.tensors.items()}


for new in ("layers.40.", "layers.-1.", "layers.007.", "layers.1e1.", "layers.18446744073709551616.", "layers..", "layers.x."):
    spoil("L06", f"layer {new}", "unknown_target")(lambda good, new=new: rename(good, "layers.1.", new))
spoil("L06", "module that no layer has", "unknown_target")(lambda good: rename(good, "q_proj", "qq_proj"))
spoil("L07", "norm as target", "unsupported_target")(lambda good: rename(good, "self_attn.q_proj", "input_layernorm"))
spoil("L07", "head as target", "unsupported_target")(lambda good: rename(good, "model.layers.0.self_attn.q_proj", "lm_head"))
spoil("L08", "wrong prefix everywhere", "zero_targets")(lambda good: rename(good, "base_model.model.model.", "language_model."))
spoil("L08", "wrong prefix in one layer", "unmapped_tensors")(
    lambda good: rename(good, "base_model.model.model.layers.1.", "language_model.layers.1."))


@spoil("L09", "two names for one weight", "duplicate_target")
def _(good):
    for part in ("lora_A", "lora_B"):
        name = good.first(f"q_proj.{part}.weight")
        good.tensors[name.replace(f"{part}.weight", f"{part}.default.weight")] = good.tensors[name]


spoil("L10", "fused name on a split base", "unsupported_target")(lambda good: rename(good, "self_attn.q_proj", "self_attn.qkv_proj"))


def poison(row, variant, code, bits):
    @spoil(row, variant, code)
    def _(good):
        name = good.first("q_proj.lora_A.weight")
        dtype, dims, data = good.tensors[name]
        good.tensors[name] = (dtype, dims, data[:8] + struct.pack("<I", bits) + data[12:])


poison("L11", "NaN", "non_finite", 0x7fc00000)
poison("L11", "infinity", "non_finite", 0x7f800000)
poison("L11", "signalling NaN", "non_finite", 0xff800001)


@spoil("L12", "B all zero: loads, with a warning", None)
def _(good):
    good.tensors = {n: (t[0], t[1], bytes(len(t[2])) if "lora_B" in n else t[2]) for n, t in good.tensors.items()}


for rank, code in ((1025, "bad_rank"), (65536, "bad_rank"), (100, None)):  # 100: wasteful on 64 inputs, but exact
    @spoil("L16", f"rank {rank}", code)
    def _(good, rank=rank):
        for part, grow in (("lora_A", lambda d: [rank, d[1]]), ("lora_B", lambda d: [d[0], rank])):
            reshape(good, f"layers.0.self_attn.q_proj.{part}.weight", grow)
        good.config["rank_pattern"] = {"layers.0.self_attn.q_proj": rank}


@spoil("L17", "ranks that differ by layer", None)
def _(good):
    for part, grow in (("lora_A", lambda d: [2, d[1]]), ("lora_B", lambda d: [d[0], 2])):
        reshape(good, f"layers.0.self_attn.q_proj.{part}.weight", grow)
    good.config["rank_pattern"] = {"layers.0.self_attn.q_proj": 2}


spoil("L20", "DoRA magnitude in the file", "unsupported_adapter")(
    lambda good: good.tensors.update({good.first("q_proj.lora_A.weight").replace("lora_A.weight", "lora_magnitude_vector"):
                                      ("F32", [64], bytes(256))}))
spoil("L20", "kohya names", "unsupported_adapter")(
    lambda good: (rename(good, ".lora_A.weight", ".lora_down.weight"), rename(good, ".lora_B.weight", ".lora_up.weight")))
spoil("L25", "a copy of the base's weight", "base_weights_included")(
    lambda good: good.tensors.update({good.first("q_proj.lora_A.weight").replace("lora_A", "base_layer"):
                                      ("F32", [64, 64], bytes(64 * 64 * 4))}))


def markdown():
    """The table as docs/bad-inputs.md has it."""
    print("# Bad inputs")
    print()
    print("What graft does with adapters that are not what they should be: each row is a test, through `graft inspect` and through")
    print("`graft run` (`tests/bad_inputs`). F: files and paths, S: the safetensors container, J: JSON, C: adapter_config.json, L: tensors")
    print("against the base. \"loads\" stands where a stricter reader might refuse. This page is made by")
    print("`python3 tests/bad_inputs/table.py`; `make check` fails when it is out of date. The codes are explained in [errors.md](errors.md).")
    print()
    print("| row | input | code |")
    print("| --- | --- | --- |")
    for row, variant, expected, _ in CASES:
        shown = variant.replace("|", "\\|").replace("<", "&lt;")
        print(f"| {row} | {shown} | {'`' + expected + '`' if expected else 'loads'} |")


if __name__ == "__main__":
    markdown()
