"""The training loop and what it needs. The package is callable: `jax_mlm.train(config)` is `loop.train(config)`."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax_mlm.config import TrainConfig


class _Callable(ModuleType):
    """A callable package: a function of the same name could not exist beside it."""

    def __call__(self, config: TrainConfig) -> Path:
        """Train and return the run directory; runs in any thread, without signal handlers."""
        from jax_mlm.train.loop import train

        return train(config)


sys.modules[__name__].__class__ = _Callable
