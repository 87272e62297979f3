"""Pretrain masked language models in JAX; in a notebook: `from jax_mlm import PRESETS, TrainConfig, load, train`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax_mlm.config import TrainConfig
    from jax_mlm.presets import PRESETS
    from jax_mlm.run.load import load
    from jax_mlm.train.loop import train

__all__ = ["PRESETS", "TrainConfig", "load", "train"]
_HOME = {"PRESETS": "presets", "TrainConfig": "config", "load": "run.load"}


def __getattr__(name: str) -> object:
    """Import JAX only when something that needs it is used (PEP 562)."""
    if name == "train":
        return import_module("jax_mlm.train")  # the package, which is callable
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"jax_mlm.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
