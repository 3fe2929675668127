"""Weights in ggml's block formats, and what they mean in float32."""
import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize


def q4_k(x):
    """Q4_K, which gguf-py can only read: super-blocks of 256 values, eight blocks of 32 with a 6-bit scale and minimum.
    Plain rounding; the format is what matters here, not the best choice of scales."""
    blocks = x.reshape(-1, 8, 32)
    low = np.minimum(blocks.min(axis=2), 0)
    scale, low = (blocks.max(axis=2) - low) / 15, -low
    d = (scale.max(axis=1) / 63).astype(np.float16)
    dmin = (low.max(axis=1) / 63).astype(np.float16)
    sc = np.clip(np.rint(scale / d[:, None].astype(np.float32)), 0, 63).astype(np.uint8)
    mn = np.clip(np.rint(low / dmin[:, None].astype(np.float32)), 0, 63).astype(np.uint8)
    step = d[:, None].astype(np.float32) * sc
    q = np.rint((blocks + (dmin[:, None].astype(np.float32) * mn)[..., None]) / np.where(step, step, 1)[..., None])
    q = np.clip(q, 0, 15).astype(np.uint8).reshape(-1, 4, 2, 32)
    scales = np.concatenate([sc[:, :4] | sc[:, 4:] >> 4 << 6, mn[:, :4] | mn[:, 4:] >> 4 << 6,
                             sc[:, 4:] & 15 | (mn[:, 4:] & 15) << 4], axis=1)
    nibbles = (q[:, :, 0] | q[:, :, 1] << 4).reshape(len(q), 128)
    out = np.concatenate([d[:, None].view(np.uint8), dmin[:, None].view(np.uint8), scales, nibbles], axis=1)
    return out.reshape(x.shape[0], -1)


def quantised(x, type_name):
    """(rows as bytes, the same rows in float32)"""
    kind = GGMLQuantizationType[type_name]
    rows = q4_k(x) if type_name == "Q4_K" else quantize(x, kind)
    return rows, dequantize(rows, kind).astype(np.float32).reshape(x.shape)
