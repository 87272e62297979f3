"""A matrix of weights as a picture, a pixel each: opaque where the weight is largest, to fit any background."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

COLOUR = (37, 99, 235)
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png(weights: np.ndarray) -> bytes:
    """Weights [rows, columns], none negative → a PNG of that size; its alpha is the weight over the largest."""
    rows, columns = weights.shape
    pixels = np.empty((rows, columns, 4), np.uint8)
    pixels[..., :3] = COLOUR
    pixels[..., 3] = np.rint(255 * weights / max(float(weights.max()), 1e-12))
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), pixels.reshape(rows, -1)], axis=1)  # each begins: unfiltered
    header = struct.pack(">IIBBBBB", columns, rows, 8, 6, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b""))
    return SIGNATURE + b"".join(_chunk(kind, body) for kind, body in parts)


def data_url(weights: np.ndarray) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(weights)).decode('ascii')}"


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
