"""Measure what each part of the recipe is worth: one lever at a time from an earlier recipe of the preset tiny.

    python benchmarks/ablations.py --data wikitext-2/wiki.train.tokens --valid wikitext-2/wiki.valid.tokens --minutes 5
    python benchmarks/ablations.py --data wikitext-2/wiki.train.tokens --valid wikitext-2/wiki.valid.tokens --finalists
    python benchmarks/ablations.py --data … --valid … --minutes 1 --only size batch
    python benchmarks/ablations.py --list
    python benchmarks/ablations.py --table

First every arm is trained for some minutes with one seed. Then the best two of each lever whose arms are all there are
trained for ten minutes with three seeds, at each of two learning rates. An arm is a process of its own, one after the
other, and leaves a file in results/ablations/, so that whoever stops it loses the arm that is running. All runs are
examined alike: on isolated documents, under fixed masks; neither compilation nor validation counts as time.
Vocabularies are compared by bits per byte, from the pseudo-log-likelihood of pieces of the validation text.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from common.arms import ROOT, Record, answer, command_line, facts, keep, publish, rows, text_name
from common.levers import BY_TIME, DEFAULTS, LEVERS, Arm, Lever, name_of
from common.machine import command, processor
from common.texts import text_for

FOLDER = ROOT / "benchmarks" / "results" / "ablations"
MINUTES = 5.0
"""How long every arm is trained first."""
FINAL_MINUTES, SEEDS, RATES = 10.0, (0, 1, 2), (1.0, 0.5)
"""How the finalists are run; rates are shares of an arm's own."""
PIECES, PIECE = 100, 300
"""Pieces of the validation text whose bits per byte are measured, and the characters of each at most."""


class Run(NamedTuple):
    """An arm with everything that a record is found by."""

    record: str
    """The arm's name, with its lever's."""
    arm: Arm
    minutes: float
    rate: float = 1.0
    seed: int = 0

    def path(self, text: str) -> Path:
        words = re.sub(r"[^a-z0-9.]+", "-", self.record.lower()).strip("-")
        return FOLDER / f"{text}-{words}-{self.minutes:g}m-rate{self.rate:g}-seed{self.seed}.json"


def screening(minutes: float, only: Sequence[str] = ()) -> Iterable[Run]:
    """Yield the runs that come first: every arm once, of all levers or of some."""
    seen = set()
    for lever in LEVERS:
        if only and lever.name not in only:
            continue
        for arm in lever.arms:
            if not arm.missing and (name := name_of(lever, arm)) not in seen:
                seen.add(name)
                yield Run(name, arm, minutes)


def finals(text: str, minutes: float) -> Iterable[Run]:
    """Yield the runs of the best two arms of each lever whose arms were all screened for this many minutes."""
    seen = set()
    for lever in LEVERS:
        for name, arm in best_two(lever, text, minutes):
            if name not in seen:
                seen.add(name)
                yield from (Run(name, arm, FINAL_MINUTES, rate, seed) for rate in RATES for seed in SEEDS)


def best_two(lever: Lever, text: str, minutes: float) -> list[tuple[str, Arm]]:
    """Return the names and arms of the best two; none while an arm has not been screened."""
    arms = [(name_of(lever, arm), arm) for arm in lever.arms if not arm.missing]
    found = [read(Run(name, arm, minutes).path(text)) for name, arm in arms]
    if any(record is None for record in found):
        return []
    order = sorted(zip(arms, found, strict=True), key=lambda each: each[1][lever.by])
    return [arm for arm, _ in order[:2]]


def read(path: Path) -> Record | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


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


def options_of(run: Run) -> list[str]:
    """Return the options of a run, without those that name the text and the output."""
    from jax_mlm.config import OptimConfig
    from jax_mlm.presets import PRESETS

    optim: OptimConfig = PRESETS["tiny"].optim
    own = dict(itertools.pairwise(run.arm.options))  # a name and what follows it; other pairs are not asked for
    rates: list[str] = []
    if run.rate != 1:
        for name, rate in (("--lr", optim.lr), ("--muon-lr", optim.muon_lr)):
            rates += [name, f"{run.rate * float(own.get(name, rate)):g}"]
    timed = ["--budget", f"{60 * run.minutes:g}s", "--seed", str(run.seed)]
    return ["--preset", "tiny", "--dtype", "auto", *run.arm.settings(), *rates, *timed]


def worker(text: str) -> None:
    """Train one arm, and print its record."""
    from common.timed import last_params, orthogonalise_apart, record_of, train_timed

    from jax_mlm.evals.text import Corpus, score_documents
    from jax_mlm.run.directory import read_run

    job = json.loads(text)
    if job["how"] == "apart":
        orthogonalise_apart()
    run, mean = train_timed(job["options"], (), averaged=job["how"] == "mean")
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


def measure(given: argparse.Namespace, run: Callable[[Sequence[str], Record], Record] = answer) -> None:
    """Run what is not there yet, and write a file for each."""
    text = text_name(given.data)
    check_machine(text)
    wanted = finals(text, given.minutes) if given.finalists else screening(given.minutes, given.only)
    for each in wanted:
        if (path := each.path(text)).is_file():
            continue
        print(f"{path.stem} …", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            pieces, options = pieces_of(given.valid, Path(folder)), options_of(each)
            files = ["--data", *text_for(each.arm.how, given.data, Path(folder)), "--valid", *given.valid]
            job = {"options": [*options, *files, "--out", f"{folder}/run"], "pieces": str(pieces), "how": each.arm.how}
            found = run([sys.executable, __file__, "worker"], job)
        about = {"arm": each.record, "text": text, "minutes": each.minutes, "rate": each.rate, "seed": each.seed}
        settings = {"options": options, "how": each.arm.how, "command": command(sys.argv)}
        keep(path, {**about, **found, **settings, **facts()})
    show()


def check_machine(text: str) -> None:
    """Refuse to put records of two processors beside each other: equal minutes are then not equal."""
    from jax_mlm.errors import UserError

    for path in sorted(FOLDER.glob(f"{text}-*.json")):
        if (before := json.loads(path.read_text())["processor"]) != processor():
            raise UserError(f"{path}: it was measured on {before}, not on {processor()}: move {FOLDER} away")


# ---- what is made of the records -----------------------------------------------------------------


def summary(records: Sequence[Record], by: str) -> list[str]:
    """Return loss, accuracy, bits per byte and the rate of finalists: of the better rate, the means over its seeds."""
    rates = sorted({record["rate"] for record in records})
    groups = [[record for record in records if record["rate"] == rate] for rate in rates]
    if not groups:
        return [""] * 4
    best = min(groups, key=lambda group: statistics.fmean(record[by] for record in group))
    return [*(_mean([record[name] for record in best]) for name in FIGURES), f"×{best[0]['rate']:g}"]


FIGURES = ("loss", "accuracy", "bits_per_byte")


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def table(records: Sequence[Record], minutes: float) -> str:
    """Return all arms of all levers; what was not measured is blank."""
    short, final = f"{minutes:g} min", f"{FINAL_MINUTES:g} min"
    head = ["lever", "arm", f"{short}: loss", "accuracy", "bits per byte"]
    head += [f"{final}, {len(SEEDS)} seeds: loss", "accuracy", "bits per byte", "rate", "remark"]
    lines = []
    for lever in LEVERS:
        for arm in lever.arms:
            mine = [record for record in records if record["arm"] == name_of(lever, arm)]
            screened = [record for record in mine if record["minutes"] == minutes]
            figures = [f"{screened[0][name]:.3f}" for name in FIGURES] if screened else [""] * 3
            ends = summary([record for record in mine if record["minutes"] == FINAL_MINUTES], lever.by)
            remark = f"not measured: {arm.missing}" if arm.missing else "default" if is_default(arm, lever) else ""
            lines.append([lever.name, arm.name, *figures, *ends, remark])
    return rows(head, *lines)


def is_default(arm: Arm, lever: Lever) -> bool:
    """Return whether an arm is what the presets have today."""
    return arm.won or (arm is lever.arms[0] and not any(other.won for other in lever.arms))


def sections(records: Sequence[Record], minutes: float) -> str:
    """Return a table for each text, with the machine and the commits of its records; an empty one if there are none."""
    if not records:
        return f"Nothing was measured yet.\n\n{table([], minutes)}"
    parts = []
    for text in sorted({record["text"] for record in records}):
        mine = [record for record in records if record["text"] == text]
        machines = ", ".join(sorted({record["processor"] for record in mine}))
        versions = ", ".join(sorted({record["versions"]["jax"] for record in mine}))
        commits = ", ".join(sorted({record["commit"] for record in mine}))
        parts.append(f"{text}, {machines}, JAX {versions}, commits {commits}:\n\n{table(mine, minutes)}")
    return "\n\n".join(parts)


def by_time(records: Sequence[Record]) -> str:
    """Return, for each text, the losses of the levers that a budget decides, by the minutes of their runs."""
    parts = []
    for text in sorted({record["text"] for record in records}):
        levers = [lever for lever in LEVERS if lever.name in BY_TIME]
        names = list(dict.fromkeys(name_of(lever, arm) for lever in levers for arm in lever.arms))
        mine = [each for each in records if (each["text"], each["rate"], each["seed"]) == (text, 1, 0)]
        mine = [each for each in mine if each["arm"] in names]
        times = sorted({each["minutes"] for each in mine if each["arm"] != DEFAULTS})
        losses = {(each["arm"], each["minutes"]): f"{each['loss']:.3f}" for each in mine}
        lines = [
            ["4×256, batch 32" if name == DEFAULTS else name, *(losses.get((name, minutes), "") for minutes in times)]
            for name in names
            if any((name, minutes) in losses for minutes in times)
        ]
        if lines:
            parts.append(f"{text}:\n\n{rows([text, *(f'{minutes:g} min' for minutes in times)], *lines)}")
    return "\n\n".join(parts) or "Nothing was measured yet."


def all_records() -> list[Record]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))]


def show() -> None:
    """Print the tables of all results, and write them to the page."""
    publish("sizes by time", by_time(all_records()))
    publish("ablations", sections(all_records(), MINUTES))


def listed(records: Sequence[Record], minutes: float) -> str:
    """Return a line for each arm: done, to do, or missing with the reason; and how many of its final runs are there."""
    lines = []
    for lever in LEVERS:
        for arm in lever.arms:
            mine = [record for record in records if record["arm"] == name_of(lever, arm)]
            screened = any(record["minutes"] == minutes for record in mine)
            ends = sum(record["minutes"] == FINAL_MINUTES for record in mine)
            state = f"missing: {arm.missing}" if arm.missing else "done" if screened else "to do"
            state += f", {ends} of {len(SEEDS) * len(RATES)} final runs" if ends else ""
            lines.append(f"{lever.name:18} {arm.name:24} {state}")
    return "\n".join(lines)


def main() -> int:
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2])
        return 0
    parser = command_line(__doc__)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of the first comparison: 5")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[each.name for each in LEVERS],
        default=(),
        metavar="LEVER",
        help="screen only these levers, for instance for other --minutes",
    )
    parser.add_argument("--finalists", action="store_true", help="run the best two of each lever for longer")
    parser.add_argument("--list", action="store_true", help="print the arms and what is done")
    given = parser.parse_args()
    if given.only and given.finalists:
        parser.error("--only screens levers; --finalists runs what was screened")
    if given.minutes != MINUTES and not (given.only and set(given.only) <= set(BY_TIME)):
        parser.error(f"other --minutes than {MINUTES:g} are shown for these levers alone: --only {' '.join(BY_TIME)}")
    if given.list:
        print(listed(all_records(), given.minutes))
        return 0
    if not given.table and not (given.data and given.valid):
        parser.error("--data and --valid are needed, or --list or --table")
    from jax_mlm.errors import exit_status

    return exit_status(show if given.table else lambda: measure(given))


if __name__ == "__main__":
    sys.exit(main())
