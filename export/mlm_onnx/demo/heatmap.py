"""A matrix of weights as a picture, one pixel per weight: opaque where it is largest, to fit any background."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image  # installed with Gradio

COLOUR = (37, 99, 235)


def png(weights: np.ndarray) -> bytes:
    """Return weights [rows, columns], none negative, as a PNG of that size; alpha is weight / largest weight."""
    pixels = np.empty((*weights.shape, 4), np.uint8)
    pixels[..., :3] = COLOUR
    pixels[..., 3] = np.rint(255 * weights / max(float(weights.max()), 1e-12))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def data_url(weights: np.ndarray) -> str:
    """Return the picture as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(png(weights)).decode('ascii')}"
