"""What a run is: kept beside its checkpoints, so that a file of the run that was edited since is noticed."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from tokenizers import Tokenizer

from jax_mlm.config import Json, TrainConfig, to_json
from jax_mlm.errors import UserError
from jax_mlm.report.summary import flat
from jax_mlm.run.checkpoint import FOLDER, steps_of
from jax_mlm.run.directory import RUN_FILE, TOKENIZER_FILE, config_of
from jax_mlm.run.sums import identity_of
from jax_mlm.train.options import FREE_ON_RESUME


def identity(run: Path, config: TrainConfig, tokenizer: Tokenizer) -> Json:
    """Return the configuration of a run, and the hash of its tokenizer.json, which a new run has yet to write."""
    content = (run / TOKENIZER_FILE).read_bytes() if config.resume else tokenizer.to_str(pretty=True).encode()
    return {"config": to_json(config), "tokenizer": _hash(content)}


def check_unchanged(run: Path, config: TrainConfig) -> None:
    """Refuse to resume a run whose run.json or tokenizer.json differs from what its newest checkpoint belongs to."""
    found = next(filter(None, (identity_of(run / FOLDER / str(step)) for step in reversed(steps_of(run)))), {})
    remedy = "restore it, or start a new run"
    if "config" in found:
        before, now = (_fixed(value) for value in (config_of(found, run), config))
        if differing := [name for name in now if now[name] != before[name]]:
            name, *more = differing
            also = f" (and {len(more)} more)" if more else ""
            raise UserError(
                f"{run / RUN_FILE} has changed since the run began: {name} {before[name]} → {now[name]}{also}; {remedy}"
            )
    path = run / TOKENIZER_FILE
    if "tokenizer" in found and path.is_file() and (now := _hash(path.read_bytes())) != found["tokenizer"]:
        raise UserError(
            f"{path} has changed since the run began (its hash {found['tokenizer'][:12]} → {now[:12]}); {remedy}"
        )


def _fixed(config: TrainConfig) -> Json:
    """Return the options that a resumed run may not change, by their names on the command line."""
    values = to_json(config)
    return flat({f.name: values[f.name] for f in dataclasses.fields(config) if f.name not in FREE_ON_RESUME})


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
