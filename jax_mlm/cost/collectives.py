"""The exchanges between devices in a compiled program: what is moved, how much of it, and along which axes."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
ORDER = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
CALL = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\((.*)$")


class Exchange(NamedTuple):
    """All exchanges of one kind along the same axes, in one run of a program."""

    kind: str
    axes: str
    """Axes of the mesh, joined by +."""
    devices: int
    """Devices that exchange with each other."""
    local: int
    """Those of them that are in one machine."""
    count: int
    sent: float
    """Bytes that each device sends, if they are passed around a ring."""


def exchanges(hlo: str, mesh: Sequence[tuple[str, int]], linked: int) -> list[Exchange]:
    """Return what a compiled program exchanges, the most bytes first.

    Args:
        hlo: the program as text; a loop counts as often as XLA knows that it runs.
        mesh: name and size of each axis, in the order of the program's devices.
        linked: devices of one machine.
    """
    times = _times(hlo)
    found: dict[tuple[str, str, int, int], list[float]] = defaultdict(lambda: [0, 0.0])
    for computation, line in _lines(hlo):
        call = CALL.search(line)
        if call is None:
            continue
        shapes, kind, start, rest = call.groups()
        group = _group(rest, math.prod(size for _, size in mesh), kind)
        if len(group) < 2:
            continue
        local = sum(device // linked == group[0] // linked for device in group)
        entry = found[kind, _axes(group, mesh), len(group), local]
        entry[0] += times[computation]
        entry[1] += times[computation] * _sent(kind, shapes, bool(start), len(group))
    every = (Exchange(*key, int(count), sent) for key, (count, sent) in found.items())
    return sorted(every, key=lambda each: -each.sent)


def _lines(hlo: str) -> Iterator[tuple[str, str]]:
    """Yield each instruction with the name of the computation that it is in."""
    name = ""
    for line in hlo.splitlines():
        if begin := re.match(r"(?:ENTRY )?%?(\S+) \(.*\{$", line):
            name = begin[1]
        elif line.startswith(" "):
            yield name, line


def _times(hlo: str) -> Counter[str]:
    """Return how often each computation runs, as far as XLA knows: the bodies of loops by their trip counts."""
    called: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for computation, line in _lines(hlo):
        trips = re.search(r"known_trip_count\D*(\d+)", line)
        for body in re.findall(r"(?:body|calls|to_apply|called_computations)=\{?%?([\w.\-]+)", line):
            called[body].append((computation, int(trips[1]) if trips and f"body=%{body}" in line else 1))
    times: Counter[str] = Counter()

    def count(name: str) -> int:
        if name not in times:
            times[name] = sum(count(caller) * trips for caller, trips in called[name]) if called[name] else 1
        return times[name]

    for computation, _ in _lines(hlo):
        count(computation)
    return times


def _group(rest: str, devices: int, kind: str) -> list[int]:
    """Return the first group of devices of an exchange, in any of the notations of XLA."""
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest)
        return [int(pairs[1]), int(pairs[2])] if pairs else []
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return [int(number) for number in listed[1].split(",")]
    if counted := re.search(rf"replica_groups=\[(\d+),(\d+)\]<={ORDER}", rest):
        return _numbered(counted[3], counted[4]).reshape(int(counted[1]), int(counted[2]))[0].tolist()
    if named := re.search(rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({ORDER}\))? \{{([^}}]*)\}}", rest):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        numbers = _numbered(named[2] or str(devices), named[3]).reshape(list(sizes.values()))
        axes = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", named[4])  # an axis, or :(before)size, a part of one
        for at, name in enumerate(sizes):
            parts = [(int(before or 1), int(size or sizes[name])) for axis, before, size in axes if axis == name]
            before, size = parts[0] if parts else (sizes[name], 1)
            split = numbers.reshape(*numbers.shape[:at], before, size, -1, *numbers.shape[at + 1 :])
            numbers = split.take(0, at).take(0, at + 1)
        return numbers.ravel().tolist()
    if "replica_groups" not in rest or "replica_groups={}" in rest:
        return list(range(devices))
    raise ValueError(f"a notation of XLA that is not known: {rest}")


def _numbered(shape: str, axes: str | None) -> np.ndarray:
    """Return the devices in the order that ORDER matched: of an array of this shape, with its axes in another order."""
    sizes = [int(size) for size in shape.split(",")]
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    return numbers.transpose([int(axis) for axis in axes.split(",")]) if axes else numbers


def _axes(group: Sequence[int], mesh: Sequence[tuple[str, int]]) -> str:
    where = np.array(np.unravel_index(np.array(group), [size for _, size in mesh]))
    return "+".join(name for (name, _), along in zip(mesh, where, strict=True) if len(set(along.tolist())) > 1)


def _sent(kind: str, shapes: str, start: bool, n: int) -> float:
    """Return the bytes that each of n devices sends around a ring, from the shapes of the result.

    What begins an exchange has a tuple of operands, results and counters, of which each may be a tuple itself.
    """
    nested = re.match(r"\(\(.*?\), (.*)\)$", shapes)
    if nested:
        shapes, start = re.sub(r"\bu32\[\]", "", nested[1]), False
    sizes = [
        max(int(bits), 8) // 8 * math.prod(int(d) for d in dims.split(",") if d)
        for bits, dims in re.findall(r"\b[a-z]+(\d+)\w*\[([\d,]*)\]", shapes.replace("pred[", "u8["))
    ]
    if start and kind in ("all-gather", "collective-permute", "reduce-scatter"):  # operands, results, and counters
        sizes = [size for size in sizes if size > 4]
        sizes = sizes[len(sizes) // 2 :]
    size = float(sum(sizes))
    share = (n - 1) / n
    return {
        "all-reduce": 2 * share * size,
        "all-gather": share * size,
        "reduce-scatter": share * size * n,
        "all-to-all": share * size,
        "collective-permute": size,
    }[kind]
