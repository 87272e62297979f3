"""What a training would take on devices that are not here; `python -m jax_mlm.plan --topology v5e:4x4`."""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until main() answers it: an import would end in a traceback

import numpy as np

from jax_mlm.cli.command import Command
from jax_mlm.config import TrainConfig
from jax_mlm.cost.chips import CHIPS
from jax_mlm.cost.collectives import Exchange, exchanges
from jax_mlm.cost.flops import layers_pairs, train_flops
from jax_mlm.cost.memory import bytes_of, least_activations, most_rows
from jax_mlm.errors import UserError, unknown_choice
from jax_mlm.presets import PRESETS

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from jax.stages import Compiled

    from jax_mlm.parallel.topology import Slice

QUICK: Mapping[str, Any] = {"optimization_level": 9}
"""How programs are compiled of which only the memory is asked: EFFORT_O0 in XLA's xla.proto."""


@dataclass(frozen=True)
class PlanConfig:
    """Compile the training step for devices that are not here, and tell its memory, exchanges and least time."""

    topology: tuple[str, ...] = ()
    """Devices, one plan each: a TPU slice (v5e:4x4, v5p:2x2x2, v6e:1x1), compiled as on the slice itself
    (pip install 'jax-mlm[plan]'; no TPU is needed), or GPUs (a100:8, h100:64, h200:256): simulated, but for H100 and
    H200 where JAX's compiler for GPUs is installed (jax-mlm[cuda]; no GPU is needed)."""
    preset: str = "base"
    """The model and its recipe, as for training."""
    mesh: str = ""
    """Devices along each axis: data=4,fsdp=2,tensor=1, say; empty puts all along data."""
    batch: int = 0
    """Rows in an optimizer step, over all devices; 0 takes the preset's, or a row a device if that is more."""
    accumulate: int = 0
    """Microbatches that a step is computed in; 0 chooses as few as fit, as a run does there."""
    length: int = 0
    """Tokens in a row; 0 takes the preset's."""
    optimizer: Literal["", "adamw", "muon", "lamb"] = ""
    """The optimizer; empty takes the preset's."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Plan:
    """What compiling for one topology told."""

    topology: str
    mesh: str
    compiled_for: str
    """The compiler's target: the slice itself, or simulated devices of a CPU."""
    batch: int
    accumulate: int
    """Microbatches that a step is computed in."""
    tokens: int
    """Tokens in a step."""
    fits: bool
    bytes: dict[str, int]
    """A device's memory: state, step (temporaries), all; empty where the compiler refused it."""
    memory: float
    """Bytes that JAX takes of a device."""
    largest_batch: int
    """Rows of the largest step in as many microbatches that fits; 0 where none does."""
    flops: float
    """Operations of a step, on all devices, counted from the configuration."""
    compute_seconds: float
    """They take at least as long, at the data sheet's peak."""
    memory_seconds: float
    """The state is read and written once in at least this time; activations come on top, and are not counted."""
    exchange_seconds: float
    """The exchanges take as long, at the data sheet's rate of the links, where nothing else is done meanwhile."""
    exchanges: tuple[Exchange, ...]


def run(config: PlanConfig) -> None:
    """Print one plan for each topology."""
    if not config.topology:
        raise UserError(f"--topology is missing: v5e:4x4, say, or h100:8 (there are: {', '.join(CHIPS)})")
    from jax_mlm.parallel.topology import read_slice, without_devices

    slices = [read_slice(name) for name in config.topology]
    train = training(config)
    without_devices(max((each.devices for each in slices if each.simulated), default=1))
    plans = []
    for each in slices:
        if not config.json:
            print(f"{each.name}: compiling …", file=sys.stderr, flush=True)
        plans.append(made(each, config, train))
        if not config.json:
            print(told(plans[-1], train), flush=True)
    if config.json:
        print(json.dumps({"preset": config.preset, "plans": [_json(plan) for plan in plans]}))


def _json(plan: Plan) -> dict[str, Any]:
    return {**asdict(plan), "exchanges": [each._asdict() for each in plan.exchanges]}


def training(config: PlanConfig) -> TrainConfig:
    """Return the training that is planned, with the size of the vocabulary that its tokenizer may reach."""
    if config.preset not in PRESETS:
        raise unknown_choice("--preset", config.preset, PRESETS)
    chosen = PRESETS[config.preset]
    try:
        model = replace(chosen.model, vocab_size=chosen.model.vocab_size or chosen.corpus.tokenizer_limit)
        return replace(
            chosen,
            model=model,
            dtype="bfloat16",
            batch=config.batch or chosen.batch,
            accumulate=config.accumulate,
            corpus=replace(chosen.corpus, length=config.length or chosen.corpus.length),
            optim=replace(chosen.optim, optimizer=config.optimizer or chosen.optim.optimizer),
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def made(where: Slice, config: PlanConfig, train: TrainConfig) -> Plan:
    """Compile the step as a run would, and look for the largest batch that fits."""
    from jax_mlm.parallel.mesh import layout_of
    from jax_mlm.parallel.topology import mesh_of
    from jax_mlm.train.microbatches import SHARE, choose

    mesh = mesh_of(where, config.mesh)
    layout = layout_of(mesh)
    unit = layout.rows * max(config.accumulate, 1)
    if config.batch and config.batch % unit:
        raise UserError(f"--batch {config.batch} is not a multiple of {unit}: rows of data and fsdp × microbatches")
    batch = config.batch or max(1, train.batch // unit) * unit

    @cache
    def in_parts(parts: int) -> Compiled | None:
        if least_activations(train, batch // parts // layout.rows) > where.chip.pool:
            return None
        return compile_for(mesh, replace(train, batch=batch, accumulate=parts))

    def need(parts: int) -> float:
        return bytes_of(in_parts(parts)).get("all", math.inf)

    room = where.chip.pool if config.accumulate else SHARE * where.chip.pool
    parts = config.accumulate or choose(need, batch, layout.rows, room)
    train, rows, compiled = replace(train, batch=batch, accumulate=parts), layout.rows * parts, in_parts(parts)
    sizes, reference = bytes_of(compiled), batch
    if compiled is None and batch > rows:
        reference, compiled = rows, compile_for(mesh, replace(train, batch=rows))
    largest, moved = 0, ()
    if compiled is not None:
        largest = largest_batch(mesh, train, rows, room, reference, bytes_of(compiled)["all"])
        moved = tuple(exchanges(compiled.as_text() or "", list(mesh.shape.items()), where.chip.linked))
    flops = step_flops(train)
    return Plan(
        topology=where.name,
        mesh=str(layout),
        compiled_for=f"{where.devices} simulated devices of a CPU" if where.simulated else where.name,
        batch=batch,
        accumulate=parts,
        tokens=batch * train.corpus.length,
        fits=bool(sizes) and sizes["all"] <= where.chip.pool,
        bytes=sizes,
        memory=where.chip.pool,
        largest_batch=largest,
        flops=flops,
        compute_seconds=flops / (where.devices * where.chip.flops),
        memory_seconds=2 * sizes.get("state", 0) / where.chip.bandwidth,
        exchange_seconds=sum(map(where.chip.seconds, moved)),
        exchanges=moved,
    )


def compile_for(mesh: Mesh, train: TrainConfig, options: Mapping[str, Any] | None = None) -> Compiled | None:
    """Return the compiled step of a run with this mesh; None where the compiler finds that it does not fit."""
    from jax_mlm.parallel.compile import compiled_if_it_fits
    from jax_mlm.parallel.topology import compiling_for
    from jax_mlm.train.ahead import lowered_step

    with compiling_for(mesh, options or {}) as every:
        return compiled_if_it_fits(lowered_step(train, mesh), every)


def largest_batch(mesh: Mesh, train: TrainConfig, rows: int, memory: float, reference: int, known: int) -> int:
    """Return the largest multiple of `rows` that fits: memory grows in proportion to the rows.

    How fast is read from two programs that are compiled in a fraction of the time, at the lowest level of
    optimization; what that level adds or saves is known from the step of `reference` rows, which needs `known` bytes.
    """

    def quick(batch: int) -> int | None:
        return bytes_of(compile_for(mesh, replace(train, batch=batch), QUICK)).get("all")

    other = 2 * rows if reference == rows else rows
    at_reference, at_other = quick(reference), quick(other)
    if at_reference is None or at_other is None:  # it fits with optimization only, or twice the least is too much
        return reference if known <= memory else 0
    most = most_rows((reference, known), (other, known * at_other / at_reference), memory)
    return max(0, int(most / rows)) * rows if most < math.inf else reference


def step_flops(train: TrainConfig) -> float:
    """Return the operations of a step whose rows are full, from the configuration."""
    from jax_mlm.tasks.masking import slots

    length = train.corpus.length
    pairs = train.batch * layers_pairs(train.model, np.array([length]))
    return train_flops(train.model, train.batch * length, pairs, train.batch * slots(train.mask, length))


def told(plan: Plan, train: TrainConfig) -> str:
    """Return a plan in words."""
    lines = [f"{plan.topology}, mesh {plan.mesh} (compiled for {plan.compiled_for})"]
    parts = f" in {plan.accumulate} microbatches" if plan.accumulate > 1 else ""
    lines.append(f"  a step: {plan.batch:,} rows × {train.corpus.length:,} tokens{parts}, {plan.flops:.3g} operations")
    if plan.bytes:
        gigabytes = {name: size / 1e9 for name, size in plan.bytes.items()}
        lines.append(
            f"  memory a device: {gigabytes['all']:.2f} of {plan.memory / 1e9:.0f} GB (state {gigabytes['state']:.2f}, "
            f"step {gigabytes['step']:.2f})" + ("" if plan.fits else ": does not fit")
        )
    else:
        lines.append(f"  memory a device: more than {plan.memory / 1e9:.0f} GB, the compiler says: does not fit")
    most = f"about {plan.largest_batch:,} rows a step" if plan.largest_batch else "none, not one row a device: try fsdp"
    lines.append(f"  the largest batch that fits{parts}: {most}")
    for each in plan.exchanges[:8]:
        lines.append(
            f"  {each.kind:<18} along {each.axes:<16} {each.count:>5} times, {each.sent / 1e6:10,.1f} MB a device"
        )
    times = plan.compute_seconds, plan.memory_seconds, plan.exchange_seconds
    products, memory, exchanged = (f"{1e3 * seconds:,.1f} ms" for seconds in times)
    lines.append(
        f"  estimate, from data sheets; nothing was run: a step takes at least {products} for products, {memory} to\n"
        f"  read and write the state, and {exchanged} for exchanges: at most {plan.tokens / max(times):,.0f} tokens a\n"
        f"  second, and {plan.tokens / sum(times):,.0f} if none of them goes on beside another"
    )
    return "\n".join(lines)


EXAMPLES = """examples:
  python -m jax_mlm.plan --topology h100:8 --preset base
  python -m jax_mlm.plan --topology v5e:1x1 v5e:4x4 v5e:16x16 --preset large
  python -m jax_mlm.plan --topology h100:64 --mesh data=8,fsdp=8"""

COMMAND = Command("python -m jax_mlm.plan", PlanConfig, run, EXAMPLES)
main: Callable[[Sequence[str] | None], int] = COMMAND.main

if __name__ == "__main__":
    sys.exit(COMMAND.main())
