"""Measure the loss that recipes reach in equal time: ours, transformers' Trainer, and the recipe of a public guide.

    python benchmarks/time_to_loss.py --data wikitext-2/wiki.train.tokens --valid wikitext-2/wiki.valid.tokens \
        --budget 10m --peer-python ../reference/bin/python
    python benchmarks/time_to_loss.py --table

All arms have one text, one WordPiece tokenizer, and layers of one size but for the guide's; windows of attention are a
part of our recipe alone. All are measured on the same masked documents, each alone in its row, at the same times.
Neither compilation nor evaluations count. The peer is given its rows, as run_mlm.py cuts them, and the masked documents
as arrays. The tuned one is trained for half the time with each of four rates, and with the best of them for all of it;
the record has all five. An arm is kept when it ends, and is not run again; nothing else should run beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common.arms import Record, answer, command_line, facts, has, keep, publish, rows, text_name
from common.machine import command, processor

if TYPE_CHECKING:
    from jax_mlm.config import TrainConfig

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
MARKS = (1 / 64, 1 / 48, 1 / 32, 1 / 24, 1 / 16, 1 / 12, 1 / 8, 1 / 6, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)
"""Shares of the time at which all arms are measured, besides its end."""
LENGTH = 128
"""Tokens of the rows that are measured."""
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
WARMUP = 0.05

_DEFAULTS = (
    *("--optimizer", "adamw", "--lr", "5e-5", "--schedule", "linear", "--warmup", "0", "--beta2", "0.999"),
    *("--weight-decay", "0", "--batch", "8", "--pack", "plain", "--mask-rate", "0.15", "--global-every", "1"),
    *("--embeddings", "random"),
)
_GUIDE = (
    *("--preset", "bert-base", "--layers", "3", "--width", "256", "--heads", "4", "--ff-width", "512"),
    *("--max-length", "128", "--length", "128", "--norm-eps", "1e-5", "--activation", "relu", "--batch", "128"),
    *("--mask-rate", "0.25", "--lr", "5e-4", "--schedule", "constant", "--warmup", "0", "--adam-eps", "1e-7"),
    *("--weight-decay", "0.004", "--clip", "0"),
)
OURS: Mapping[str, tuple[str, ...]] = {"ours": (), "run-mlm": _DEFAULTS, "guide": _GUIDE}
"""Arms that are options of `python -m jax_mlm.train`: its own defaults; the defaults of run_mlm.py; those of
keras-hub's guide to pretraining a Transformer, with AdamW as Keras has it."""
PEERS = ("trainer", "trainer-tuned")
ARMS = ("ours", "run-mlm", *PEERS, "guide")
TITLES = {
    "ours": "our recipe",
    "run-mlm": "run_mlm's recipe, through jax_mlm",
    "trainer": "Trainer, run_mlm's defaults",
    "trainer-tuned": "Trainer, tuned",
    "guide": "keras-hub's guide, through jax_mlm",
}


# ---- what the arms are given ---------------------------------------------------------------------


class Given(NamedTuple):
    """What all arms share."""

    preset: str
    batch: int
    dtype: str
    fixed: str
    """A hash of what is evaluated."""
    device: str
    """The processor, or the accelerator."""
    result: str
    """The file of the result; on an accelerator, its name ends with that of the device."""


def prepare(options: Sequence[str], result: Path, folder: Path) -> Given:
    """Let a process of its own choose what all arms share: the devices, and their memory, are then the arms' alone."""
    job = {"options": list(options), "result": str(result), "folder": str(folder)}
    return Given(**answer([sys.executable, __file__, "prepare"], job))


def preparer(text: str) -> None:
    """Read the options of our recipe, write what the arms are given to a folder, and print what they share.

    The peers have the size of our layers, and the tuned one our batch and type. Where a result is continued, preset and
    batch are those of its other arms.
    """
    import jax

    from jax_mlm.parallel.compile import resolved
    from jax_mlm.train.__main__ import COMMAND

    job = json.loads(text)
    path, device = Path(job["result"]), processor()
    if jax.default_backend() != "cpu":
        device = jax.devices()[0].device_kind
        path = path.with_stem(f"{path.stem}-{device.replace(' ', '-')}")
    before = json.loads(path.read_text()) if path.is_file() else {}
    kept = ["--preset", before["preset"], "--batch", str(before["batch"])] if before else []
    config = resolved(COMMAND.read([*kept, *job["options"]]))
    fixed = export(Path(job["folder"]), config)
    print(json.dumps(Given(config.preset, config.batch, config.dtype, fixed, device, str(path))._asdict()))


def export(folder: Path, config: TrainConfig) -> str:
    """Write the tokenizer, the peer's rows and the masked documents to a folder; return a hash of what is evaluated."""
    import numpy as np

    from jax_mlm.data.batches import batch_of, pack_rows
    from jax_mlm.data.dataset import open_dataset
    from jax_mlm.hf.config import hf_config

    text = open_dataset(replace(config, corpus=replace(config.corpus, tokenizer_kind="wordpiece")), folder)
    text.tokenizer.save(str(folder / "tokenizer.json"))
    v, length = text.vocabulary, config.corpus.length
    model = replace(text.config.model, global_every=1)
    roles = {role: text.tokenizer.id_to_token(getattr(v, role)) for role in ("pad", "unk", "cls", "sep", "mask")}
    (folder / "vocabulary.json").write_text(json.dumps({**roles, "special": v.special}))
    (folder / "config.json").write_text(json.dumps(hf_config(model, v.pad, v.cls, v.sep)))
    full = pack_rows(text.train.files, v, length, "plain")
    whole = int(full.first[-1]) // length  # a rest shorter than a row is dropped, as run_mlm.py does
    parts = [batch_of(full, np.arange(at, min(at + 4096, whole))).tokens for at in range(0, whole, 4096)]
    np.save(folder / "train.npy", np.concatenate(parts).astype(np.uint16 if v.size <= 1 << 16 else np.int32))
    held = masked_documents(pack_rows(text.valid.files, v, LENGTH, "document"), config.eval_rows)
    np.savez(folder / "valid.npz", **held)
    hashed = hashlib.sha256((folder / "tokenizer.json").read_bytes())
    for array in held.values():
        hashed.update(array.tobytes())
    return hashed.hexdigest()[:16]


def masked_documents(held: Any, part: int) -> dict[str, Any]:
    """Return what validation examines, without rows: each document as tokens and labels, laid end to end.

    Args:
        held: rows of isolated documents.
        part: number of rows that are examined while training.

    Returns:
        ids and labels (-100: not a target), where the documents start and end, and which of them are in that part.
    """
    import jax
    import numpy as np

    from jax_mlm.data.batches import batch_of
    from jax_mlm.evals.heldout import evenly_spaced
    from jax_mlm.tasks.mlm import fixed_masks

    masked = jax.jit(fixed_masks(held.vocabulary, held.length))
    ids, labels, firsts, of_row = [], [], [], []
    for at in range(0, len(held), 512):
        batch = batch_of(held, np.arange(at, at + 512))
        found = jax.device_get(masked(batch).masked)
        wanted = np.full(found.tokens.shape, -100, np.int32)
        row, slot = np.nonzero(found.weights)
        wanted[row, found.at[row, slot]] = found.targets[row, slot]
        real, first = batch.segments > 0, np.diff(batch.segments, axis=1, prepend=0) != 0
        ids.append(found.tokens[real])
        labels.append(wanted[real])
        firsts.append(first[real])
        of_row.append(np.broadcast_to(batch.rows[:, None], real.shape)[real])
    begins = np.flatnonzero(np.concatenate(firsts))
    starts = np.append(begins, sum(map(len, ids)))
    in_part = np.isin(np.concatenate(of_row)[begins], evenly_spaced(len(held), part)[0])
    return {"ids": np.concatenate(ids), "labels": np.concatenate(labels), "starts": starts, "part": in_part}


def our_job(arm: str, folder: Path, given: argparse.Namespace, shared: Given) -> Record:
    """Return the job of an arm of ours: all but the guide have the preset that the time was found to be enough for."""
    files = ["--data", *given.data, "--valid", *given.valid, "--tokenizer", str(folder / "tokenizer.json")]
    preset = [] if "--preset" in OURS[arm] else ["--preset", shared.preset]
    batch = [] if "--batch" in OURS[arm] else ["--batch", str(shared.batch)]
    options = [*preset, *batch, *OURS[arm], *files, "--budget", given.budget, "--out", str(folder / f"run-{arm}")]
    return {"options": options, "marks": MARKS}


def worker(text: str) -> None:
    """Train an arm of ours, and print its record."""
    from common.timed import curve_of, record_of, train_marked

    from jax_mlm.run.directory import read_run_file

    job = json.loads(text)
    run, _ = train_marked(job["options"], job["marks"])
    config = read_run_file(run)["config"]
    settings = {name: config[name] for name in ("preset", "batch", "model", "mask", "optim")}
    pack = {"length": config["corpus"]["length"], "pack": config["corpus"]["pack"]}
    print(json.dumps({**record_of(run), "curve": curve_of(run), "settings": {**settings, **pack}}))


def peer_job(folder: Path, seconds: float, shared: Given, rate: float | None = None) -> Record:
    """Return the job of a peer: run_mlm.py's defaults; or tuned with a rate, and with our batch and type."""
    tuned = rate is not None
    return {
        "folder": str(folder),
        "budget": seconds,
        "marks": MARKS,
        "seed": 42,
        "learning_rate": rate if tuned else 5e-5,
        "per_device_train_batch_size": shared.batch if tuned else 8,
        "warmup": WARMUP if tuned else 0.0,
        "bf16": tuned and shared.dtype == "bfloat16",
        "sparse_prediction": tuned,
    }


# ---- what is made of the records -----------------------------------------------------------------


def best_rate(tried: Mapping[str, Record]) -> float:
    """Return the rate whose loss is the lowest."""
    return float(min(tried, key=lambda rate: tried[rate]["loss"]))


def reached(curve: Sequence[Sequence[float]], loss: float) -> float | None:
    """Return the seconds of the first measurement that is as low as a loss; None if none is."""
    return next((seconds for seconds, found, *_ in curve if found <= loss), None)


def table(result: Record) -> str:
    """Return the arms of a result that were measured, beside each other."""
    head = ["arm", "type", "steps", "loss", "accuracy", "ours has its loss after", "as a share of its time"]
    arms, lines = result["arms"], []
    for arm in filter(arms.__contains__, ARMS):
        found = arms[arm]
        # The end of a curve is measured on the same rows as the rest of it; the loss in the table on all rows.
        at = reached(arms["ours"]["curve"], found["curve"][-1][1]) if "ours" in arms and arm != "ours" else None
        share = ["", ""] if at is None else [f"{at:,.0f} s", f"1/{found['seconds'] / at:.1f}"]
        figures = [f"{found['steps']:,}", f"{found['loss']:.3f}", f"{found['accuracy']:.3f}"]
        lines.append([TITLES[arm], found["dtype"], *figures, *share])
    return rows(head, *lines)


def left_out(result: Record) -> str:
    """Return which arms were not measured, as a sentence; empty if all were."""
    missing = "; ".join(TITLES[arm] for arm in ARMS if arm not in result["arms"])
    return f"Not measured: {missing}.\n" if missing else ""


def tried(result: Record) -> str:
    """Return what the tuned peer's rates reached in half the time, as a sentence; empty if none was tried."""
    rates = result.get("rates", {})
    losses = ", ".join(f"{float(rate):g}: {found['loss']:.3f}" for rate, found in rates.items())
    return f"Losses of the tuned Trainer's rates after half the time: {losses}.\n" if rates else ""


def about_of(result: Record) -> str:
    """Return what all arms of a result share, in words."""
    return f"{result['text']}, {result['budget']}, layers of the preset {result['preset']}, {result['processor']}"


def section(path: Path, result: Record) -> str:
    """Return the part of the page about one result."""
    about = about_of(result)
    picture = path.with_suffix(".png")
    shown = f"\n\n![Loss against time, {about}](../benchmarks/results/{picture.name})" if picture.is_file() else ""
    return f"{about}:\n\n{table(result)}\n\n{tried(result)}{left_out(result)}".rstrip() + shown


NOTHING = "Nothing was measured yet."


def plot(result: Record, file: Path) -> None:
    """Draw the loss of each arm against the time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for arm in ARMS:
        if arm in result["arms"]:
            seconds, losses, *_ = zip(*result["arms"][arm]["curve"], strict=True)
            axes.plot(seconds, losses, "o-", markersize=3, label=TITLES[arm])
    axes.set_xscale("log", base=2)
    axes.set(xlabel="seconds of training", ylabel="validation loss (nats), 15 % masks")
    axes.set(title=about_of(result))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=110)


def show() -> None:
    """Print the tables of all results, write them to the page, and draw the pictures."""
    parts = []
    for path in sorted(RESULTS.glob("time-to-loss-*.json")):
        result = json.loads(path.read_text())
        plot(result, path.with_suffix(".png"))
        parts.append(section(path, result))
    publish("time to loss", "\n\n".join(parts) or NOTHING)


# ---- one arm after the other ---------------------------------------------------------------------


def measure(given: argparse.Namespace, run: Callable[[Sequence[str], Record], Record] = answer) -> None:
    """Run the arms that the result has not yet, and keep each."""
    from jax_mlm.errors import UserError
    from jax_mlm.train.duration import parse_budget

    seconds, text = parse_budget(given.budget), text_name(given.data)
    options = ["--data", *given.data, "--valid", *given.valid, "--budget", given.budget]
    options += ["--preset", given.preset] if given.preset else []
    name = "-".join(filter(None, ["time-to-loss", text, given.budget, given.preset]))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        shared = prepare(options, RESULTS / f"{name}.json", folder)
        path = Path(shared.result)
        before = json.loads(path.read_text()) if path.is_file() else {}
        same = {"text": text, "budget": given.budget, "processor": shared.device}
        same |= {"fixed": shared.fixed, "preset": shared.preset, "batch": shared.batch}
        result = before or {**same, "command": "", "rates": {}, "arms": {}}
        for name, value in same.items():
            if result[name] != value:
                raise UserError(f"{path}: it has another {name}, {result[name]}, not {value}: move it away")
        result["command"] = command(sys.argv)

        def kept(group: str, name: str, line: Sequence[str], job: Record) -> None:
            if name not in result[group]:
                print(f"{name}{' (half the time)' if group == 'rates' else ''} …", file=sys.stderr, flush=True)
                found = {**run(line, job), **facts()}
                found.setdefault("options", job.get("options", []))
                result[group][name] = found
                keep(path, result)

        peer = [given.peer_python or "", str(HERE / "time_to_loss_peer.py")]
        without = "" if given.peer_python else "--peer-python names no Python for them"
        if given.peer_python and not has(given.peer_python, "torch, transformers, accelerate"):
            without = f"{given.peer_python} has no torch, transformers and accelerate"
        for arm in [given.only] if given.only else ARMS:
            if arm in OURS:
                kept("arms", arm, [sys.executable, __file__, "worker"], our_job(arm, folder, given, shared))
            elif without:
                print(f"left out: {arm} ({without})", file=sys.stderr)
            elif arm == "trainer":
                kept("arms", arm, peer, peer_job(folder, seconds, shared))
            elif arm not in result["arms"]:
                for rate in RATES:
                    kept("rates", str(rate), peer, peer_job(folder, seconds / 2, shared, rate))
                kept("arms", arm, peer, peer_job(folder, seconds, shared, best_rate(result["rates"])))
    show()


def main() -> int:
    from jax_mlm.errors import exit_status

    if sys.argv[1:2] == ["prepare"]:
        return exit_status(lambda: preparer(sys.argv[2]))
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2])
        return 0
    parser = command_line(__doc__)
    parser.add_argument("--budget", default="10m", help="time of each arm: 10m")
    parser.add_argument("--preset", default="", help="that of our recipe, and of the peers' layers: the budget chooses")
    parser.add_argument("--peer-python", help="a Python with torch, transformers and accelerate")
    parser.add_argument("--only", choices=ARMS, metavar="ARM", help=f"one of: {'; '.join(ARMS)}")
    given = parser.parse_args()
    if not given.table and not (given.data and given.valid):
        parser.error("--data and --valid are needed, or --table")
    return exit_status(show if given.table else lambda: measure(given))


if __name__ == "__main__":
    sys.exit(main())
