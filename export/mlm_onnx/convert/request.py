"""The options of a conversion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlm_onnx.bundle.layout import LAYOUTS, BundleError

Dtype = Literal["int8", "fp32"]


@dataclass(frozen=True)
class Request:
    """What a bundle should contain.

    Raises:
        BundleError: the fields contradict each other.
    """

    dtype: Dtype = "int8"
    """How the weights in `fast/` are stored."""
    layout: str = "predictor"
    """What the bundle is for: a key of LAYOUTS."""
    calibration: Path | None = None
    """A text file on which int8 is compared with float32; if int8 costs more than a point of accuracy, matrices
    stay in float32."""
    reduce_range: bool = False
    """7-bit encoder weights, for processors without VNNI."""
    with_attention: bool = False
    """Add the graph of what each token attends to; a Space always has it."""
    web_runtime: Path | None = None
    """For the layout "web": a node_modules folder to use instead of fetching with npm."""
    examples: Sequence[str] = ()
    """Example sentences for pages to offer."""

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise BundleError(f"--for {self.layout} is unknown: choose {' or '.join(LAYOUTS)}")
        if self.dtype == "fp32" and (self.calibration is not None or self.reduce_range):
            option = "--reduce-range" if self.calibration is None else "--calibrate"
            raise BundleError(f"{option} applies only to int8: leave out --dtype fp32")
        if self.web_runtime is not None and self.layout != "web":
            raise BundleError("--web-runtime applies only to the page: add --for web")

    def check_task(self, kind: str) -> None:
        """Raise BundleError if something is asked for that a model fine-tuned for this task does not have."""
        if self.layout == "space":
            raise BundleError(f"--for space shows masked words; this run was fine-tuned to {kind}: leave it out")
        if self.with_attention:
            raise BundleError(f"--with-attention is for masked words; this run was fine-tuned to {kind}: leave it out")
