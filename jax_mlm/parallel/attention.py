"""The attention of a run on an accelerator: every kernel that fits is tried, and the fastest right one is taken.

They are tried on rows of the run's data; the record says on how many. A kernel that cuDNN cannot build may kill its
process, so on GPUs another process tries them.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array

from jax_mlm.config import Json, ModelConfig
from jax_mlm.model.ops.attention import attend
from jax_mlm.model.ops.kernels import KERNELS, MOST_DOCUMENTS, OURS, OWN, Case, Kernel, Kernels
from jax_mlm.parallel import hosts
from jax_mlm.parallel.mesh import layout_of

REPETITIONS = 20
COMPARED = 8
"""Most rows on which a kernel is compared with float32."""
SCORES = 1 << 30
"""Bytes that all scores of these rows may take in float32: of long rows, fewer are compared."""
TOLERANCE = 3
"""A kernel may be off by so many times what our own attention in the same type is."""
LONGEST = 600
"""Seconds after which a process that tries kernels is given up."""
TRIER = """import json, sys; sys.path[:] = json.loads(sys.argv[1])
from jax_mlm.parallel.attention import answer; answer()"""


def choose_attention(
    model: ModelConfig,
    dtype: DTypeLike,
    mesh: Mesh,
    segments: np.ndarray,
    documents: int,
    before: Json | None = None,
) -> tuple[Kernels, Json]:
    """Return the kernels of a run, and the record of what was tried; ours and an empty record where none fits.

    The first host tries them for all.

    Args:
        model: its shape; attention with dropout is ours.
        dtype: type that the run computes in.
        mesh: devices of the run.
        segments: [B, S] documents of rows of one device.
        documents: most documents of any row, its padding being one of them; 1 where all of a row is one.
        before: the record of a run that is resumed on such a device.
    """
    if model.attention_dropout:
        return OURS, {}
    tensor = layout_of(mesh).tensor
    heads = model.heads // tensor if model.heads % tensor == 0 else model.heads
    most = 1 if documents == 1 else max(4, 1 << (documents - 1).bit_length())
    kind = (jax.default_backend(), jnp.dtype(dtype).name, len(segments), heads, segments.shape[1], model.head_width)
    chosen, record = Kernels(documents=most, mesh=mesh if mesh.size > 1 else None), {}
    for window in dict.fromkeys(map(model.window, range(model.layers))):
        layers, case = "whole" if window is None else "near", Case(*kind, window, most)
        names = [name for name, kernel in KERNELS.items() if kernel.fits(case)]
        if not names:
            continue
        kept = before.get(layers) if isinstance(before, dict) else None
        if not isinstance(kept, dict) or not _stands(kept, names):
            mine = json.dumps(_tried((OWN, *names), case, segments)) if hosts.is_first() else ""
            tried = json.loads(hosts.gather(mine)[0])
            kept = {**chosen_of(tried), "rows": case.rows}
        record[layers] = kept
        chosen = chosen._replace(**{layers: kept["kernel"]})
    return chosen, record


def _stands(kept: Json, names: Sequence[str]) -> bool:
    """Return whether a resumed run keeps this choice: a kernel that is still there, or ours where it was timed.

    Where ours was refused as well, it was only what was left, and all are tried again.
    """
    if kept.get("kernel") != OWN:
        return kept.get("kernel") in names
    tried = kept.get("tried")
    own = tried.get(OWN) if isinstance(tried, dict) else None
    return isinstance(own, dict) and "ms" in own


def first_that_fits(model: ModelConfig, dtype: DTypeLike, mesh: Mesh, rows: int, length: int) -> Kernels:
    """Return the first kernels that fit the devices of a mesh which are not here, for packed documents.

    Where none fits, as on a CPU, it is ours.
    """
    if model.attention_dropout:
        return OURS
    kind = (mesh.devices.flat[0].platform, jnp.dtype(dtype).name, rows, model.heads, length, model.head_width)
    cases = {window: Case(*kind, window, MOST_DOCUMENTS) for window in map(model.window, range(model.layers))}
    names = {
        window: next((name for name, kernel in KERNELS.items() if kernel.fits(case)), OWN)
        for window, case in cases.items()
    }
    near = next((name for window, name in names.items() if window is not None), OWN)
    return Kernels(names.get(None, OWN), near, MOST_DOCUMENTS, mesh if mesh.size > 1 else None)


def chosen_of(tried: Mapping[str, Json]) -> Json:
    """Return the name of the fastest kernel whose errors are within the tolerance, beside all results.

    The errors of ours count even if it was refused, for lack of memory, say: kernels are needed most then.
    """
    own = tried[OWN].get("errors", [])
    results: dict[str, Json] = {}
    for name, result in tried.items():
        ratios = [error / max(ours, 1e-30) for error, ours in zip(result.get("errors", []), own, strict=False)]
        wrong = "ms" in result and not (ratios and max(ratios) <= TOLERANCE)
        why = f"its error is {max(ratios):.1f} times ours" if ratios else "ours has no errors to compare"
        results[name] = {"refused": why} if wrong else result
    right = {name: result["ms"] for name, result in results.items() if "ms" in result}
    return {"kernel": min(right, key=right.__getitem__, default=OWN), "tried": results}


def line_of(record: Mapping[str, Json]) -> str:
    """Return a line about the kernels that were chosen, and those that were not."""

    def told(name: str, result: Json) -> str:
        return f"{name} {result['ms']:.2f} ms" if "ms" in result else f"{name} refused ({result['refused']})"

    return "attention: " + "; ".join(
        f"{'rows' if layers == 'whole' else 'windows'} by {kept['kernel']} "
        f"({', '.join(told(*each) for each in kept['tried'].items())})"
        for layers, kept in record.items()
    )


# ---- trying --------------------------------------------------------------------------------------


def _tried(names: Sequence[str], case: Case, segments: np.ndarray) -> dict[str, Json]:
    if case.platform == "gpu":
        return tried_apart(names, case, segments)
    return dict(trials(names, case, segments, KERNELS))  # a TPU belongs to one process, which its kernels do not kill


def tried_apart(names: Sequence[str], case: Case, segments: np.ndarray, program: str = TRIER) -> dict[str, Json]:
    """Try kernels in another process, and those that are left in a new one whenever a kernel has killed it."""
    found: dict[str, Json] = {}
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # this process may hold most of the memory
    while left := [name for name in names if name not in found]:
        given = json.dumps([left, case, segments.tolist()])
        command = [sys.executable, "-c", program, json.dumps(sys.path)]
        try:
            done = subprocess.run(
                command, input=given, capture_output=True, text=True, env=environment, timeout=LONGEST, check=False
            )
            output, why = done.stdout, f"its process ended with {done.returncode}: {_last_line(done.stderr)}"
        except subprocess.TimeoutExpired as late:
            output, why = os.fsdecode(late.stdout or b""), f"nothing came in {LONGEST} s"
        found |= dict(filter(None, map(_result_in, output.splitlines())))
        if stuck := [name for name in left if name not in found]:
            found[stuck[0]] = {"refused": why}
    return found


def _result_in(line: str) -> tuple[str, Json] | None:
    """Return a kernel's name and result; None of what a library printed, or of a line that was cut off."""
    try:
        name, result = json.loads(line)
    except (TypeError, ValueError):
        return None
    return (name, result) if isinstance(result, dict) else None


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:200]


def trials(
    names: Sequence[str], case: Case, segments: np.ndarray, kernels: Mapping[str, Kernel]
) -> Iterator[tuple[str, Json]]:
    """Yield the milliseconds of each kernel forward and backward, and its largest errors; or why it was refused.

    One that is refused after it was compared has its errors as well.
    """
    try:
        every = _drawn(case, segments)
        compared = max(1, min(COMPARED, SCORES // (4 * case.heads * case.length**2)))
        some = tuple(x[:compared] for x in every)
        with jax.default_matmul_precision("highest"):
            exact = _both(OWN, case, kernels)(*(x.astype(jnp.float32) for x in some[:4]), some[4])
        jax.block_until_ready(exact)
    except Exception as error:  # as below
        why = f"ours in float32, to compare it with, failed: {_reason(error)}"
        yield from ((name, {"refused": why}) for name in names)
        return
    for name in names:
        result: Json = {}
        try:
            both = _both(name, case, kernels)
            errors = [float(jnp.abs(a - b).max()) for a, b in zip(both(*some), exact, strict=True)]
            if not all(map(math.isfinite, errors)):
                raise ArithmeticError("not all of its numbers are finite")
            result["errors"] = errors
            jax.block_until_ready(both(*every))
            began = time.perf_counter()
            for _ in range(REPETITIONS):
                last = both(*every)
            jax.block_until_ready(last)
            result["ms"] = (time.perf_counter() - began) / REPETITIONS * 1e3
        except Exception as error:  # whatever a library raises, it is not this run's kernel
            result["refused"] = _reason(error)
        yield name, result


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {_last_line(str(error))}"


def _drawn(case: Case, segments: np.ndarray) -> tuple[Array, ...]:
    """Return queries (scaled), keys, values, a gradient of their mixture that padding does not have, and documents."""
    shape = (case.rows, case.heads, case.length, case.head_width)
    q, k, v, g = (jax.random.normal(key, shape, case.dtype) for key in jax.random.split(jax.random.key(0), 4))
    real = jnp.asarray(segments > 0)[:, None, :, None]
    return q * case.head_width**-0.5, k, v, jnp.where(real, g, 0), jnp.asarray(segments)


def _both(name: str, case: Case, kernels: Mapping[str, Kernel]) -> Callable[..., tuple[Array, ...]]:
    """Return a kernel's output at real tokens, and its gradients everywhere, since they meet those of others."""

    def attention(q: Array, k: Array, v: Array, segments: Array) -> Array:
        if name == OWN:
            return attend(q, k, v, segments, case.window)
        return kernels[name].attend(q, k, v, segments, case.window, case.documents)

    @jax.jit
    def both(q: Array, k: Array, v: Array, g: Array, segments: Array) -> tuple[Array, ...]:
        out, pull = jax.vjp(lambda q, k, v: attention(q, k, v, segments), q, k, v)
        real = (segments > 0)[:, None, :, None]
        out = jnp.where(real | ~jnp.isfinite(out), out, 0)
        return tuple(x.astype(jnp.float32) for x in (out, *pull(g)))

    return both


def answer(kernels: Mapping[str, Kernel] = KERNELS) -> None:
    """Try the kernels that the standard input names, and print the result of each as a line of JSON."""
    names, case, segments = json.loads(sys.stdin.read())
    for result in trials(names, Case(*case), np.asarray(segments, np.int32), kernels):
        print(json.dumps(result), flush=True)
