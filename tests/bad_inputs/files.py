"""F: files and paths. What is no file, no adapter, or looks like something else."""

import json
import os
import socket
import struct

from making import CONFIG, WEIGHTS, Gguf, container, header_of, save, write, write_file
from table import case

OUT = "outside_root"


# ---- F01, F02: what is not there -------------------------------------------------------------------------------

@case("F01", "no such path", "adapter_file_missing")
def _(folder, good):
    return os.path.join(folder, "absent")


@case("F01", "a file in place of a folder on the way", "adapter_file_missing")
def _(folder, good):
    save(folder, good)
    return os.path.join(folder, WEIGHTS, "below")


@case("F01", "dangling symlink", "adapter_file_missing")
def _(folder, good):
    link = os.path.join(folder, "link")
    os.symlink(os.path.join(folder, "absent"), link)
    return link


@case("F01", "GGUF file that is not there", "adapter_file_missing")
def _(folder, good):
    return os.path.join(folder, "absent.gguf")


@case("F02", "no weights", "missing_file")
def _(folder, good):
    return write(folder, config=good.config)


@case("F02", "no config", "config_missing")
def _(folder, good):
    return write(folder, good.file())


@case("F02", "empty folder", "missing_file")
def _(folder, good):
    return folder


@case("F02", "weights are a dangling symlink", "missing_file")
def _(folder, good):
    os.symlink("absent", os.path.join(folder, WEIGHTS))
    return write(folder, config=good.config)


@case("F02", "config is a dangling symlink", "config_missing")
def _(folder, good):
    os.symlink("absent", os.path.join(folder, CONFIG))
    return write(folder, good.file())


@case("F02", "the weights file itself, without its folder", "config_missing")
def _(folder, good):
    save(folder, good)
    return os.path.join(folder, WEIGHTS)


@case("F02", "an adapter in a folder below", "missing_file")
def _(folder, good):
    inner = os.path.join(folder, "checkpoint-100")
    os.mkdir(inner)
    save(inner, good)
    return folder


# ---- F03: too short ----------------------------------------------------------------------------------------------

for size in range(8):
    @case("F03", f"weights of {size} bytes", "header_too_small")
    def _(folder, good, size=size):
        return write(folder, b"\x02\0\0\0\0\0\0"[:size], good.config)

for size in (0, 1, 4, 7):
    @case("F03", f"GGUF file of {size} bytes", "header_too_small" if size < 4 else "truncated")
    def _(folder, good, size=size):
        return write_file(os.path.join(folder, "a.gguf"), Gguf(good).file()[:size])


# ---- F04: permissions ----------------------------------------------------------------------------------------------

for name in (WEIGHTS, CONFIG):
    @case("F04", f"{name} without permission", "not_readable")
    def _(folder, good, name=name):
        save(folder, good)
        os.chmod(os.path.join(folder, name), 0)
        return folder


@case("F04", "GGUF file without permission", "not_readable")
def _(folder, good):
    path = write_file(os.path.join(folder, "a.gguf"), Gguf(good).file())
    os.chmod(path, 0)
    return path


for mode, words in ((0, "folder without permission"), (0o600, "folder that may be listed only")):
    @case("F04", words, "not_readable")
    def _(folder, good, mode=mode):
        inner = os.path.join(folder, "closed")
        os.mkdir(inner)
        save(inner, good)
        os.chmod(inner, mode)
        return inner


# ---- F05, F06, F07: what is no regular file ------------------------------------------------------------------------

@case("F05", "FIFO as weights", "not_regular_file")
def _(folder, good):
    os.mkfifo(os.path.join(folder, WEIGHTS))
    return write(folder, config=good.config)


@case("F05", "FIFO as config", "not_regular_file")
def _(folder, good):
    os.mkfifo(os.path.join(folder, CONFIG))
    return write(folder, good.file())


@case("F05", "FIFO as adapter", "not_regular_file")
def _(folder, good):
    os.mkfifo(os.path.join(folder, "fifo"))
    return os.path.join(folder, "fifo")


@case("F05", "FIFO called .gguf", "not_regular_file")
def _(folder, good):
    os.mkfifo(os.path.join(folder, "a.gguf"))
    return os.path.join(folder, "a.gguf")


for device in ("/dev/zero", "/dev/null", "/dev/random", "/dev/full"):
    @case("F06", f"{device} as adapter", "not_regular_file", OUT)
    def _(folder, good, device=device):
        return device

    @case("F06", f"{device} as weights", "not_regular_file", OUT)
    def _(folder, good, device=device):
        os.symlink(device, os.path.join(folder, WEIGHTS))
        return write(folder, config=good.config)

    @case("F06", f"{device} as config", "not_regular_file", OUT)
    def _(folder, good, device=device):
        os.symlink(device, os.path.join(folder, CONFIG))
        return write(folder, good.file())


@case("F06", "terminal as weights", "not_regular_file", OUT)
def _(folder, good):
    os.symlink("/dev/ptmx", os.path.join(folder, WEIGHTS))
    return write(folder, config=good.config)


def bound(path):
    """A socket's name; sun_path is short, so it is bound where it lies."""
    here = os.getcwd()
    os.chdir(os.path.dirname(path))
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(os.path.basename(path))
    finally:
        os.chdir(here)
    return path


@case("F06", "socket as adapter", "not_regular_file")
def _(folder, good):
    return bound(os.path.join(folder, "s"))


@case("F06", "socket as weights", "not_regular_file")
def _(folder, good):
    bound(os.path.join(folder, WEIGHTS))
    return write(folder, config=good.config)


@case("F06", "folder as weights", "not_regular_file")
def _(folder, good):
    os.mkdir(os.path.join(folder, WEIGHTS))
    return write(folder, config=good.config)


@case("F07", "a file of /proc as weights, size 0", "header_too_small", OUT)
def _(folder, good):
    os.symlink("/proc/self/status", os.path.join(folder, WEIGHTS))
    return write(folder, config=good.config)


@case("F07", "a file of /proc as adapter", "header_too_small", OUT)
def _(folder, good):
    return "/proc/self/environ"


@case("F07", "the process's own memory as weights", "header_too_small", OUT)
def _(folder, good):
    os.symlink("/proc/self/mem", os.path.join(folder, WEIGHTS))
    return write(folder, config=good.config)


@case("F07", "a file of /proc as config, size 0", "json_syntax", OUT)
def _(folder, good):
    os.symlink("/proc/self/status", os.path.join(folder, CONFIG))
    return write(folder, good.file())


# ---- F08: sizes that only stand there -------------------------------------------------------------------------------

@case("F08", "weights of 1 TiB, all a hole", "too_large")
def _(folder, good):
    write(folder, good.file(), good.config)
    os.truncate(os.path.join(folder, WEIGHTS), 1 << 40)
    return folder


@case("F08", "GGUF file of 1 TiB, all but its beginning a hole", "too_large")
def _(folder, good):
    path = write_file(os.path.join(folder, "a.gguf"), Gguf(good).file())
    os.truncate(path, 1 << 40)
    return path


@case("F08", "config of 1 TiB, all a hole", "json_too_large")
def _(folder, good):
    save(folder, good)
    os.truncate(os.path.join(folder, CONFIG), 1 << 40)
    return folder


@case("F08", "weights of 1 GiB, all a hole behind a good file", "trailing_bytes")
def _(folder, good):
    save(folder, good)
    os.truncate(os.path.join(folder, WEIGHTS), 1 << 30)
    return folder


# ---- F09, F10: links -------------------------------------------------------------------------------------------------

def elsewhere(folder):
    """A folder beside the root below which adapters must lie."""
    path = os.path.join(os.path.dirname(folder) + "-elsewhere", os.path.basename(folder))
    os.makedirs(path)
    return path


@case("F09", "folder is a link that leads out", None, OUT)
def _(folder, good):
    os.symlink(save(elsewhere(folder), good), os.path.join(folder, "link"))
    return os.path.join(folder, "link")


for name in (WEIGHTS, CONFIG):
    @case("F09", f"{name} is a link that leads out", None, OUT)
    def _(folder, good, name=name):
        there = save(elsewhere(folder), good)
        save(folder, good)
        os.unlink(os.path.join(folder, name))
        os.symlink(os.path.join(there, name), os.path.join(folder, name))
        return folder


@case("F09", "GGUF file is a link that leads out", None, OUT)
def _(folder, good):
    there = write_file(os.path.join(elsewhere(folder), "b.gguf"), Gguf(good).file())
    os.symlink(there, os.path.join(folder, "a.gguf"))
    return os.path.join(folder, "a.gguf")


@case("F09", "way out by ..", None, OUT)
def _(folder, good):
    there = save(elsewhere(folder), good)
    return os.path.join(folder, os.path.relpath(there, folder))


@case("F09", "weights link into a cache beside them, as Hugging Face's does", None)
def _(folder, good):
    blobs, snapshot = os.path.join(folder, "blobs"), os.path.join(folder, "snapshot")
    os.mkdir(blobs)
    os.mkdir(snapshot)
    save(snapshot, good)
    for i, name in enumerate((WEIGHTS, CONFIG)):
        os.rename(os.path.join(snapshot, name), os.path.join(blobs, str(i)))
        os.symlink(f"../blobs/{i}", os.path.join(snapshot, name))
    return snapshot


@case("F09", "link to itself as adapter", "not_readable")
def _(folder, good):
    os.symlink("loop", os.path.join(folder, "loop"))
    return os.path.join(folder, "loop")


for name in (WEIGHTS, CONFIG):
    @case("F09", f"{name} is a link to itself", "not_readable")
    def _(folder, good, name=name):
        save(folder, good)
        os.unlink(os.path.join(folder, name))
        os.symlink(name, os.path.join(folder, name))
        return folder


@case("F09", "two links that lead to each other", "not_readable")
def _(folder, good):
    os.symlink("b", os.path.join(folder, "a"))
    os.symlink("a", os.path.join(folder, "b"))
    return os.path.join(folder, "a")


@case("F09", "chain of 10 links", None)
def _(folder, good):
    os.mkdir(os.path.join(folder, "0"))
    save(os.path.join(folder, "0"), good)
    for i in range(10):
        os.symlink(str(i), os.path.join(folder, str(i + 1)))
    return os.path.join(folder, "10")


@case("F10", "hard links to files elsewhere", None)
def _(folder, good):
    there = save(elsewhere(folder), good)
    for name in (WEIGHTS, CONFIG):
        os.link(os.path.join(there, name), os.path.join(folder, name))
    return folder


# ---- F23: pickles ---------------------------------------------------------------------------------------------------

for name in ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth", "pytorch_model.bin"):
    @case("F23", f"{name} only", "pickle_refused")
    def _(folder, good, name=name):
        return write(folder, b"PK\x03\x04", good.config, name)


@case("F23", "pickle beside safetensors is not opened", None)
def _(folder, good):
    os.mkfifo(os.path.join(folder, "adapter_model.bin"))
    return save(folder, good)


for end in ("bin", "pt", "pth", "ckpt", "pkl"):
    @case("F23", f"a file .{end} as adapter", "pickle_refused")
    def _(folder, good, end=end):
        return write_file(os.path.join(folder, f"a.{end}"), b"\x80\x02}q\x00." + bytes(60))


# ---- F24, F25: something else by that name -----------------------------------------------------------------------------

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
KINDS = (
    ("zip archive", b"PK\x03\x04" + bytes(60), "unsupported_format"),
    ("empty zip archive", b"PK\x05\x06" + bytes(18), "unsupported_format"),
    ("gzip", b"\x1f\x8b\x08" + bytes(60), "unsupported_format"),
    ("web page", b"<!DOCTYPE html><html></html>" + bytes(60), "unsupported_format"),
    ("web page without a doctype", b"<html><body>404</body></html>", "unsupported_format"),
    ("HDF5", b"\x89HDF\r\n\x1a\n" + bytes(60), "unsupported_format"),
    ("JSON", b'{"error": "Repository not found"}', "unsupported_format"),
    ("GGUF", b"GGUF\x03\0\0\0" + bytes(60), "unsupported_format"),
)
for what, first, code in KINDS + tuple(
        (f"pickle of protocol {n}", bytes([0x80, n]) + b"}q\x00." + bytes(60), "pickle_refused") for n in (2, 3, 4, 5)):
    @case("F24", f"{what} named safetensors", code)
    def _(folder, good, first=first):
        return write(folder, first, good.config)

for what, first, code in KINDS[:6]:
    @case("F24", f"{what} named .gguf", code)
    def _(folder, good, first=first):
        return write_file(os.path.join(folder, "a.gguf"), first)


@case("F24", "text file as adapter", "unsupported_format")
def _(folder, good):
    return write_file(os.path.join(folder, "README.md"), b"# An adapter\n" * 10)


@case("F24", "a header's length whose bytes are those of gzip: what follows is a header, so it is none", None)
def _(folder, good):
    raw = json.dumps(header_of(good.tensors)[0]).encode().ljust(0x8b1f)
    return write(folder, struct.pack("<Q", len(raw)) + raw + header_of(good.tensors)[1], good.config)


@case("F25", "LFS pointer as weights", "lfs_pointer")
def _(folder, good):
    return write(folder, LFS, good.config)


@case("F25", "LFS pointer as config", "lfs_pointer")
def _(folder, good):
    return write(folder, good.file(), LFS)


@case("F25", "LFS pointer as GGUF file", "lfs_pointer")
def _(folder, good):
    return write_file(os.path.join(folder, "a.gguf"), LFS)


# ---- F26, F27, F28: models, shards -------------------------------------------------------------------------------------

@case("F26", "a GGUF model", "not_an_adapter")
def _(folder, good):
    g = Gguf(good)
    g.set("general.type", 8, "model")
    return write_file(os.path.join(folder, "a.gguf"), g.file())


@case("F26", "a GGUF file that does not say what it is", "not_an_adapter")
def _(folder, good):
    g = Gguf(good)
    g.drop("general.type")
    return write_file(os.path.join(folder, "a.gguf"), g.file())


for name in ("model.safetensors", "pytorch_lora_weights.safetensors"):
    @case("F26", f"{name} only", "not_an_adapter")
    def _(folder, good, name=name):
        return write(folder, good.file(), good.config, name)


for name in ("adapter_model.safetensors.index.json", "model.safetensors.index.json"):
    for what, text in (("empty", b"{}"), ("that leads out (never read)", b'{"weight_map": {"a": "../../x.safetensors"}}'),
                       ("that is a shard of itself (never read)", b'{"weight_map": {"a": "%s"}}' % name.encode())):
        @case("F27" if what == "empty" else "F28", f"{name} {what}", "sharded_unsupported")
        def _(folder, good, name=name, text=text):
            return write(folder, text, good.config, name)


@case("F27", "shards without an index", "missing_file")
def _(folder, good):
    for i in (1, 2):
        write(folder, good.file(), good.config, f"adapter_model-0000{i}-of-00002.safetensors")
    return folder


@case("F27", "index beside whole weights is not read", None)
def _(folder, good):
    write(folder, b"{", None, "adapter_model.safetensors.index.json")
    return save(folder, good)


@case("F27", "part of a split GGUF file", "sharded_unsupported")
def _(folder, good):
    g = Gguf(good)
    g.set("split.count", 2, 3)
    return write_file(os.path.join(folder, "a-00001-of-00003.gguf"), g.file())


# ---- F29: the same content twice ----------------------------------------------------------------------------------------

@case("F29", "the good adapter, as it is", None)
def _(folder, good):
    return save(folder, good)


@case("F29", "the good adapter's GGUF form", None)
def _(folder, good):
    return write_file(os.path.join(folder, "a.gguf"), Gguf(good).file())


# ---- F18: config and weights that do not belong together -------------------------------------------------------------------

@case("F18", "config of rank 8 beside weights of rank 4", "rank_mismatch")
def _(folder, good):
    good.config["r"] = 8
    return save(folder, good)


@case("F18", "config that names layer 0 beside weights of layer 1", "unexpected_tensor")
def _(folder, good):
    good.tensors = {n: t for n, t in good.tensors.items() if ".layers.1." in n}
    good.config["layers_to_transform"] = [0]
    return write(folder, container(*header_of(good.tensors)), good.config)
