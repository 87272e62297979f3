"""Measure what each part of the recipe is worth: a small preset with one lever changed, at equal cost.

    python benchmarks/ablations.py --costs
    python benchmarks/ablations.py --data wikitext-2/wiki.train.tokens --valid wikitext-2/wiki.valid.tokens --jobs 2
    python benchmarks/ablations.py --data wikitext-2/wiki.train.tokens --valid wikitext-2/wiki.valid.tokens --finalists
    python benchmarks/ablations.py --data … --valid … --preset tiny --steps 300 --only size batch schedule
    python benchmarks/ablations.py --list
    python benchmarks/ablations.py --table

Steps are counted instead of minutes, so that no loss depends on how fast the machine was: --costs measures what a step
of each arm takes, if that is not known yet (nothing else should run then), and an arm gets as many steps as cost what
those of the preset do. First every arm is trained with one seed, the preset with three, for the cost of 1,300 steps of
micro or 700 of tiny: five minutes of two Xeon cores with AMX, four of an EPYC's. Then the best two of each lever whose
arms are all there are trained for twice that, with three seeds, at each of two learning rates. An arm is a process of
its own and leaves a file in results/ablations/, so that whoever stops it loses the arms that are running; --jobs runs
several, each on its share of the cores. All are examined alike: on isolated documents, under fixed masks. Vocabularies
are compared by bits per byte, from the pseudo-log-likelihood of pieces of the validation text.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import NamedTuple

from common.arms import ROOT, Record, answer, command_line, facts, keep, publish, rows, text_name
from common.levers import BY_STEPS, DEFAULTS, LEVERS, Arm, Lever, arms_by_name, name_of
from common.machine import command
from common.texts import text_for

FOLDER = ROOT / "benchmarks" / "results" / "ablations"
COSTS = ROOT / "benchmarks" / "results" / "step-costs.json"
STEPS: Mapping[str, int] = {"micro": 1300, "tiny": 700}
"""Steps of each preset that every arm's first run costs as much as; finalists cost twice that."""
SEEDS, RATES = (0, 1, 2), (1.0, 0.5)
"""Seeds of the preset and of the finalists, other runs have the first; and what finalists multiply their rates by."""
PIECES, PIECE = 100, 300
"""Pieces of the validation text whose bits per byte are measured, and the characters of each at most."""


class Run(NamedTuple):
    """An arm with everything that a record is found by."""

    preset: str
    record: str
    """The arm's name, with its lever's."""
    arm: Arm
    steps: int
    """Those of the preset that it costs as much as."""
    rate: float = 1.0
    seed: int = 0

    def path(self, text: str) -> Path:
        words = re.sub(r"[^a-z0-9.]+", "-", self.record.lower()).strip("-")
        return FOLDER / f"{text}-{self.preset}-{words}-{self.steps}-rate{self.rate:g}-seed{self.seed}.json"


def screening(preset: str, only: Sequence[str] = (), steps: int = 0) -> Iterable[Run]:
    """Yield the runs that come first: every arm once, or those that are named, and the preset with every seed.

    Args:
        only: names of levers and arms; without any, all.
        steps: of the preset that each costs as much as; 0 for those of `STEPS`.
    """
    levers, steps = LEVERS[preset], steps or STEPS[preset]
    of_levers = {name_of(lever, arm) for lever in levers if not only or lever.name in only for arm in lever.arms}
    for name, arm in arms_by_name(preset).items():
        if name in of_levers.union(only):
            seeds = SEEDS if (name, steps) == (DEFAULTS, STEPS[preset]) else SEEDS[:1]
            yield from (Run(preset, name, arm, steps, seed=seed) for seed in seeds)


def finals(preset: str, text: str) -> Iterable[Run]:
    """Yield the runs of the best two arms of each lever whose arms were all screened, each once."""
    chosen = dict(arm for lever in LEVERS[preset] for arm in best_two(preset, lever, text))
    for name, arm in chosen.items():
        yield from (Run(preset, name, arm, 2 * STEPS[preset], rate, seed) for rate in RATES for seed in SEEDS)


def best_two(preset: str, lever: Lever, text: str) -> list[tuple[str, Arm]]:
    """Return the names and arms of the best two; none while an arm has not been screened."""
    named = [(name_of(lever, arm), arm) for arm in lever.arms]
    found = [read(Run(preset, name, arm, STEPS[preset]).path(text)) for name, arm in named]
    if any(record is None for record in found):
        return []
    order = sorted(zip(named, found, strict=True), key=lambda each: each[1][lever.by])
    return [arm for arm, _ in order[:2]]


def read(path: Path) -> Record | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def costs() -> Record:
    """Return what was measured of the steps of each preset's arms.

    Raises:
        UserError: nothing was.
    """
    from jax_mlm.errors import UserError

    if (found := read(COSTS)) is None:
        raise UserError(f"{COSTS} is not there: measure what steps take with --costs first")
    return found


def measure_costs(preset: str, only: Sequence[str] = ()) -> None:
    """Measure what a step of each arm takes that is not known yet, or of those named; nothing else should run."""
    from common.costs import measured

    from jax_mlm.config import TrainConfig
    from jax_mlm.parallel.compile import compute_dtype

    before = read(COSTS) or {"presets": {}}
    dtype = before.get("dtype") or compute_dtype(TrainConfig()).name
    known, names = before["presets"].get(preset, {}), {run.record for run in screening(preset, only)}
    wanted = {name: arm for name, arm in arms_by_name(preset).items() if name in names and name not in known}
    found = measured(__file__, preset, wanted, dtype, partial(print, file=sys.stderr, flush=True))
    new = {name: {**each, "command": command(sys.argv), **facts()} for name, each in found.items()}
    keep(COSTS, {"dtype": dtype, "presets": {**before["presets"], preset: {**known, **new}}})


# ---- one run -------------------------------------------------------------------------------------


def pieces_of(files: Sequence[str], folder: Path) -> Path:
    """Write pieces of the validation text, evenly spaced; each fits a row, whatever the vocabulary."""
    from jax_mlm.config import DataConfig
    from jax_mlm.data.sources import documents, expand

    every = documents(expand(files, "--valid"), "line", DataConfig.text_field)
    texts = [text for text in every if len(text) > PIECE]
    chosen = [texts[at * len(texts) // PIECES] for at in range(min(PIECES, len(texts)))]
    path = folder / "pieces.txt"
    path.write_text("\n".join(text[:PIECE].rsplit(" ", 1)[0] for text in chosen) + "\n", encoding="utf-8")
    return path


def options_of(run: Run, costs: Record) -> list[str]:
    """Return the options of a run, without those that name the text and the output.

    Raises:
        UserError: what its steps take was not measured.
    """
    from jax_mlm.config import OptimConfig
    from jax_mlm.presets import PRESETS

    optim: OptimConfig = PRESETS[run.preset].optim
    own = dict(itertools.pairwise(run.arm.options))  # a name and what follows it; other pairs are not asked for
    rates: list[str] = []
    if run.rate != 1:
        for name, rate in (("--lr", optim.lr), ("--muon-lr", optim.muon_lr)):
            rates += [name, f"{run.rate * float(own.get(name, rate)):g}"]
    steps = ["--steps", f"{run.steps / ratio_of(run, costs):.0f}", "--seed", str(run.seed)]
    return ["--preset", run.preset, "--dtype", costs["dtype"], *run.arm.options, *rates, *steps]


def ratio_of(run: Run, costs: Record) -> float:
    """Return what a step of an arm takes, as a multiple of the preset's.

    Raises:
        UserError: it was not measured.
    """
    from jax_mlm.errors import UserError

    if run.record not in (known := costs["presets"].get(run.preset, {})):
        again = f"measure what steps take with --costs --preset {run.preset}"
        raise UserError(f"{COSTS}: nothing about {run.record} of {run.preset}: {again}")
    return known[run.record]["ratio"]


def worker(text: str) -> None:
    """Train one arm, and print its record."""
    job = json.loads(text)
    if job["cores"]:
        os.sched_setaffinity(0, job["cores"])
    from common.timed import last_params, record_of, train_marked

    from jax_mlm.evals.text import Corpus, score_documents
    from jax_mlm.run.directory import read_run

    run, mean = train_marked(job["options"], how=job["how"], ramp=job["ramp"])
    found, params = record_of(run), last_params(run)
    if mean is not None:
        assert mean.result is not None
        assert mean.params is not None
        last = {"loss": found["loss"], "accuracy": found["accuracy"]}
        found |= {"loss": mean.result.loss, "accuracy": mean.result.accuracy, "states": mean.states, "last state": last}
        params = mean.params
    corpus = Corpus()
    for scored in score_documents(run, read_run(run), params, [job["pieces"]], 32, ["word-l2r"]):
        corpus = corpus.plus(scored)
    bits = corpus.figures()["methods"]["word-l2r"]["bits_per_byte"]
    print(json.dumps({**found, "bits_per_byte": bits, "bytes": corpus.bytes, "unknown": corpus.unknown}))


def measure(given: argparse.Namespace, run: Callable[..., Record] = answer) -> None:
    """Run what is not there yet, as many at a time as are asked for, and write a file for each."""
    text, steps_take, about = text_name(given.data), costs(), {"command": command(sys.argv), **facts()}
    runs = finals(given.preset, text) if given.finalists else screening(given.preset, given.only, given.steps)
    wanted = [(each, options_of(each, steps_take)) for each in runs if not each.path(text).is_file()]
    free, shares, stopping = SimpleQueue[list[int]](), cores(given.jobs), Event()
    for share in shares:
        free.put(share)

    def one(each: Run, options: Sequence[str]) -> None:
        if stopping.is_set():
            return
        path, own_cores = each.path(text), free.get()
        try:
            print(f"{path.stem} …", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                pieces = pieces_of(given.valid, Path(folder))
                files = ["--data", *text_for(each.arm.how, given.data, Path(folder)), "--valid", *given.valid]
                settings = {"options": options, **each.arm.job()}
                job = {**settings, "options": [*options, *files, "--out", f"{folder}/run"]}
                job |= {"pieces": str(pieces), "cores": own_cores}
                reached = run([sys.executable, __file__, "worker"], job, stopping.is_set)
            which = {"preset": each.preset, "arm": each.record, "text": text, "cost": each.steps, "rate": each.rate}
            which |= {"seed": each.seed, "ratio": ratio_of(each, steps_take)}
            keep(path, {**which, **reached, **settings, **about})
        except BaseException:
            stopping.set()
            raise
        finally:
            free.put(own_cores)

    with ThreadPoolExecutor(len(shares)) as pool:
        try:
            for begun in [pool.submit(one, *each) for each in wanted]:
                begun.result()
        finally:
            stopping.set()
    show()


def cores(jobs: int) -> list[list[int]]:
    """Return the cores of each of some jobs; of a single one nothing, which means all."""
    every = sorted(os.sched_getaffinity(0)) if jobs > 1 else []
    return [every[at::jobs] for at in range(jobs)]


# ---- what is made of the records -----------------------------------------------------------------


def summary(records: Sequence[Record], by: str) -> list[str]:
    """Return loss, accuracy, bits per byte and the rate of finalists: of the better rate, the means over its seeds."""
    groups = [[record for record in records if record["rate"] == rate] for rate in RATES]
    groups = [group for group in groups if len(group) == len(SEEDS)]
    if not groups:
        return [""] * 4
    best = min(groups, key=lambda group: statistics.fmean(record[by] for record in group))
    return [*(_mean([record[name] for record in best]) for name in FIGURES), f"×{best[0]['rate']:g}"]


FIGURES = ("loss", "accuracy", "bits_per_byte")


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def table(preset: str, records: Sequence[Record]) -> str:
    """Return all arms of all levers of a preset; what was not measured is blank."""
    steps = STEPS[preset]
    head = ["lever", "arm", f"as {steps:,} steps: loss", "accuracy", "bits per byte"]
    head += [f"as {2 * steps:,}, {len(SEEDS)} seeds: loss", "accuracy", "bits per byte", "rate", "remark"]
    lines, known = [], (read(COSTS) or {"presets": {}})["presets"].get(preset, {})
    for lever in LEVERS[preset]:
        for arm in lever.arms:
            name = name_of(lever, arm)
            mine = [record for record in records if record["arm"] == name]
            screened = [record for record in mine if (record["cost"], record["seed"]) == (steps, SEEDS[0])]
            figures = [f"{screened[0][name]:.3f}" for name in FIGURES] if screened else [""] * 3
            ends = summary([record for record in mine if record["cost"] == 2 * steps], lever.by)
            remark = "default" if arm is lever.arms[0] else remark_on(screened[0], known) if screened else ""
            lines.append([lever.name, arm.name, *figures, *ends, remark])
    return rows(head, *lines)


def remark_on(record: Record, known: Record) -> str:
    """Return an arm's steps, and what they cost by what is known now, if one of these is not the preset's."""
    steps, cost = record["steps"], record["steps"] / record["cost"]
    cost *= known.get(record["arm"], {"ratio": 1.0})["ratio"]
    much = f", at {cost:.0%} of the cost" if abs(cost - 1) >= 0.02 else ""
    return f"{steps:,} steps{much}" if much or steps != record["cost"] else ""


def sections(records: Sequence[Record]) -> str:
    """Return a table for each text and preset, with what made its records and the spread of the preset's seeds."""
    parts = []
    for text, preset in sorted({(record["text"], record["preset"]) for record in records}):
        mine = [record for record in records if (record["text"], record["preset"]) == (text, preset)]
        made = (sorted({record[name] for record in mine}) for name in ("processor", "dtype", "commit"))
        versions = ", ".join(sorted({record["versions"]["jax"] for record in mine}))
        seeds = [record for record in mine if (record["arm"], record["cost"]) == (DEFAULTS, STEPS[preset])]
        about = f"`{preset}`, {text}, {', '.join(', '.join(each) for each in made)}, JAX {versions}."
        if len(seeds) > 1:
            loss, accuracy, bits = (_mean([record[name] for record in seeds]) for name in FIGURES)
            about += f" The preset with {len(seeds)} seeds: {loss} nats, accuracy {accuracy}, {bits} bits per byte."
        parts.append(f"{about}\n\n{table(preset, mine)}")
    return "\n\n".join(parts) or "Nothing was measured yet."


def by_steps(records: Sequence[Record]) -> str:
    """Return, for each text, the losses of the levers that a budget may decide, by the steps that a run costs."""
    parts = []
    for text, preset in sorted({(record["text"], record["preset"]) for record in records}):
        names = dict.fromkeys(
            name_of(lever, arm) for lever in LEVERS[preset] if lever.name in BY_STEPS for arm in lever.arms
        )
        wanted = {"text": text, "preset": preset, "rate": 1, "seed": SEEDS[0]}
        mine = [each for each in records if wanted.items() <= each.items()]
        losses = {(each["arm"], each["cost"]): f"{each['loss']:.3f}" for each in mine if each["arm"] in names}
        columns = sorted({steps for name, steps in losses if name != DEFAULTS})
        head = [f"`{preset}`, {text}", *(f"as {steps:,} steps" for steps in columns)]
        lines = [
            ["the preset" if each == DEFAULTS else each, *(losses.get((each, at), "") for at in columns)]
            for each in names
        ]
        parts += [rows(head, *(line for line in lines if any(line[1:])))] if columns else []
    return "\n\n".join(parts) or "Nothing was measured yet."


def all_records() -> list[Record]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))]


def show() -> None:
    """Print the tables of all results, and write them to the page."""
    publish("choices by cost", by_steps(all_records()))
    publish("ablations", sections(all_records()))


def listed(records: Sequence[Record]) -> str:
    """Return a line for each arm and text: how many of its first runs are there, and of its final ones."""
    lines = []
    for preset, name in ((each, name) for each in LEVERS for name in arms_by_name(each)):
        first = len([run for run in screening(preset) if run.record == name])
        for text in sorted({record["text"] for record in records}) or ["no text yet"]:
            wanted = {"preset": preset, "arm": name, "text": text}
            mine = [record["cost"] for record in records if wanted.items() <= record.items()]
            final = f"final {mine.count(2 * STEPS[preset])} of {len(SEEDS) * len(RATES)}"
            lines.append(f"{preset:6} {name:36} {text}: {mine.count(STEPS[preset])} of {first}, {final}")
    return "\n".join(lines)


def main() -> int:
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2])
        return 0
    if sys.argv[1:2] == ["cost"]:
        from common.costs import serve

        serve(*sys.argv[2:4], int(sys.argv[4]), sys.argv[5])
        return 0
    parser = command_line(__doc__)
    parser.add_argument(
        "--preset", choices=LEVERS, default="micro", help="whose levers: micro, which is default, or tiny"
    )
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="these levers or arms")
    parser.add_argument(
        "--steps", type=int, default=0, help=f"train for the cost of so many of the preset's, not {STEPS}"
    )
    parser.add_argument("--jobs", type=int, default=1, help="arms at a time: 1")
    parser.add_argument("--costs", action="store_true", help="measure what a step of these arms takes")
    parser.add_argument("--finalists", action="store_true", help="run the best two of each lever for longer")
    parser.add_argument("--list", action="store_true", help="print the arms and what is done")
    given = parser.parse_args()
    levers = LEVERS[given.preset]
    names = {*(each.name for each in levers), *arms_by_name(given.preset)}
    if strange := set(given.only) - names:
        parser.error(f"--only: {given.preset} has no {', '.join(sorted(strange))}; see --list")
    shown = {name_of(lever, arm) for lever in levers if lever.name in BY_STEPS for arm in lever.arms}.union(BY_STEPS)
    if given.finalists and (given.only or given.steps):
        parser.error("--finalists runs what was screened: leave out --only and --steps")
    if given.steps and (given.steps < 1 or not given.only or not shown.issuperset(given.only)):
        parser.error(f"--steps are shown for these levers alone: --only {' '.join(BY_STEPS)}")
    if not 1 <= given.jobs <= len(os.sched_getaffinity(0)):
        parser.error(f"--jobs {given.jobs}: each needs a core, of which there are {len(os.sched_getaffinity(0))}")
    if given.list:
        print(listed(all_records()))
        return 0
    if not given.table and not given.costs and not (given.data and given.valid):
        parser.error("--data and --valid are needed, or --costs, --list or --table")
    from jax_mlm.errors import exit_status

    return exit_status(
        show if given.table else lambda: measure_costs(given.preset, given.only) if given.costs else measure(given)
    )


if __name__ == "__main__":
    sys.exit(main())
