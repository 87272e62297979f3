"""Measure how many texts a second a fine-tuned bundle classifies, tags or searches for answers, beside optimum.

    python benchmarks/tasks.py RUN TEXTS.tsv --peer-python ../peers/bin/python

All answer for the same texts, of mixed lengths, with the same weights and number of threads. Each side runs in its own
process, and they take turns, so that a drift of the machine affects all alike; every figure is a median of the turns.
optimum loads the bundle's own float32 graph for the hub, and is asked with the better of two batch sizes. `FillMask` on
a masked model of the same shape is asked about as many tokens as one text has. Whole files are answered by a process
that starts, reads JSON lines and writes them: our command with --file, and a script around optimum's pipeline.

The results of other tasks in the file are kept.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common.machine import command, processor

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "tasks.json"
BATCHES = (1, 32)
"""Batch sizes of the peer, of which the faster counts."""
PIPELINES = {
    "text-classification": ("ORTModelForSequenceClassification", {}),
    "token-classification": ("ORTModelForTokenClassification", {"aggregation_strategy": "first"}),
    "question-answering": ("ORTModelForQuestionAnswering", {"align_to_words": False}),
}
COMMANDS = {"text-classification": "classify", "token-classification": "tag", "question-answering": "answer"}
AT_A_TIME = 50
"""Answers to one text in a turn."""
FILE_TURNS = 3
"""How often each side answers for a whole file."""


# ---- sides, each in a process of its own ---------------------------------------------------------


def ours(bundle: str, threads: int) -> Any:
    import mlm_onnx
    from mlm_onnx.bundle import open_bundle

    opened = open_bundle(bundle)
    predictor = getattr(mlm_onnx, opened.files.predictor)(opened, threads)
    if opened.task != "question-answering":
        return lambda texts, batch: predictor(texts)

    def answer(asked: Any, batch: int) -> Any:
        every = asked if isinstance(asked, list) else [asked]
        return predictor([each["question"] for each in every], [each["context"] for each in every])

    return answer


def optimum(bundle: str, threads: int) -> Any:
    import onnxruntime as ort
    import optimum.onnxruntime
    import torch
    from transformers import AutoTokenizer, pipeline

    torch.set_num_threads(threads)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    task = json.loads((Path(bundle) / "manifest.json").read_text())["task"]
    name, how = PIPELINES[task]
    kind = getattr(optimum.onnxruntime, name)
    model = kind.from_pretrained(bundle, subfolder="onnx", file_name="model.onnx", session_options=options)
    ask = pipeline(task, model=model, tokenizer=AutoTokenizer.from_pretrained(bundle), device="cpu", **how)
    return lambda texts, batch: ask(texts, batch_size=batch)


def worker(side: str, bundle: str, threads: int) -> None:
    """Answer lines {"texts", "batch", "times"} on stdin with seconds."""
    answer = {"ours": ours, "optimum": optimum}[side](bundle, threads)
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.perf_counter()
        for _ in range(asked["times"]):
            answer(asked["texts"], asked["batch"])
        print(json.dumps((time.perf_counter() - began) / asked["times"]), flush=True)


def answer_file(bundle: str, threads: int, source: str, target: str, batch: int) -> None:
    """Answer for a file as one does with optimum: in batches of as many rows, each written with its answer."""
    answer = optimum(bundle, threads)
    with open(source, encoding="utf-8") as rows, open(target, "w", encoding="utf-8") as out:
        while part := [json.loads(line) for line in itertools.islice(rows, max(batch, 32))]:
            asked = [row.get("text", row) for row in part]
            for row, found in zip(part, answer(asked, batch), strict=True):
                out.write(json.dumps({**row, "answer": found}, default=float) + "\n")


def file_seconds(python: str, task: str, bundle: Path, threads: int, source: Path, rows: int, batch: int) -> float:
    """Return how long a process takes to answer for a file; it is ours if the batch is 0."""
    target = source.with_suffix(".out.jsonl")
    if batch:
        line = [python, __file__, "file", str(bundle), str(threads), str(source), str(target), str(batch)]
    else:
        line = [python, "-m", "mlm_onnx", COMMANDS[task], str(bundle), "--file", str(source), "--out", str(target)]
        line += ["--threads", str(threads)]
    target.unlink(missing_ok=True)
    began = time.perf_counter()
    subprocess.run(line, env=environment(ours=not batch, threads=threads), check=True, capture_output=True)
    seconds = time.perf_counter() - began
    with open(target, encoding="utf-8") as lines:
        assert sum(1 for _ in lines) == rows
    return seconds


def environment(ours: bool, threads: int) -> dict[str, str]:
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    return {**env, "PYTHONPATH": os.pathsep.join([str(ROOT / "export"), str(ROOT)])} if ours else env


def launch(python: str, side: str, bundle: Path, threads: int) -> subprocess.Popen[str]:
    env = environment(side == "ours", threads)
    line = [python, __file__, "worker", side, str(bundle), str(threads)]
    process = subprocess.Popen(line, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while (said := process.stdout.readline()).strip() != "ready":
        if not said:
            raise SystemExit(f"error: {side} did not start")
    return process


def ask(process: subprocess.Popen[str], texts: Any, batch: int = 1, times: int = 1) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"texts": texts, "batch": batch, "times": times}) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


# ---- the comparison ------------------------------------------------------------------------------


def bundles(run: Path, folder: Path) -> dict[str, Path]:
    """Write the run's bundles, and a masked model of the same shape."""
    import jax
    from mlm_onnx.convert import Request, convert, write_bundle

    from jax_mlm.data.tokenizer import load_tokenizer
    from jax_mlm.model.heads import init_params
    from jax_mlm.run.directory import TOKENIZER_FILE, read_run

    model = read_run(run).model
    params = jax.device_get(init_params(model, jax.random.key(0)))
    origin = {"run": "benchmark", "preset": "", "step": 0, "versions": {}}
    for dtype in ("int8", "fp32"):
        convert(run, folder / dtype, Request(dtype, layout="hub"))
        tokenizer = load_tokenizer(run / TOKENIZER_FILE)
        write_bundle(folder / f"fill-{dtype}", model, params, tokenizer, Request(dtype), origin)
    return {name: folder / name for name in ("int8", "fp32", "fill-int8", "fill-fp32")}


def asked_of(task: str, row: list[str]) -> Any:
    """Return what is asked of a row of the table."""
    if task == "question-answering":
        return {"question": row[0].strip(), "context": row[1].strip()}
    return row[0].strip()


def text_of(asked: Any) -> str:
    return asked if isinstance(asked, str) else " ".join(asked.values())


def times_as_fast(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {
        f"{name} to optimum": statistics.median(b / a for a, b in zip(seconds[name], seconds["optimum"], strict=True))
        for name in ("ours int8", "ours fp32")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a fine-tuned run")
    parser.add_argument(
        "texts", type=Path, help="a table, whose first column holds texts, or questions about the second"
    )
    parser.add_argument("--peer-python", required=True, help="a Python that has the extra `peers`")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--rows", type=int, default=5000, help="of a whole file: the texts again and again")
    given = parser.parse_args()
    rows = [line.split("\t") for line in given.texts.read_text(encoding="utf-8").splitlines()[1:]]
    with tempfile.TemporaryDirectory() as folder:
        made = bundles(given.run, Path(folder))
        task = json.loads((made["fp32"] / "manifest.json").read_text())["task"]
        texts = [asked_of(task, row) for row in rows]
        one = sorted(texts, key=lambda asked: len(text_of(asked)))[len(texts) // 2]
        sides = {
            "ours int8": launch(sys.executable, "ours", made["int8"], given.threads),
            "ours fp32": launch(sys.executable, "ours", made["fp32"], given.threads),
            "optimum": launch(given.peer_python, "optimum", made["fp32"], given.threads),
            "fill int8": launch(sys.executable, "ours", made["fill-int8"], given.threads),
            "fill fp32": launch(sys.executable, "ours", made["fill-fp32"], given.threads),
        }
        mask = json.loads((made["fill-fp32"] / "manifest.json").read_text())["tokens"]["mask"]["text"]
        masked = " ".join([*text_of(one).split()[:-1], mask])
        for name, process in sides.items():  # warm
            ask(process, masked if name.startswith("fill") else texts[:64], 32)
        many: dict[str, list[float]] = {name: [] for name in ("ours int8", "ours fp32", "optimum")}
        single: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(given.turns):
            for name in many:
                batches = BATCHES if name == "optimum" else (1,)
                many[name].append(min(ask(sides[name], texts, batch) for batch in batches))
            for name in single:
                single[name].append(ask(sides[name], masked if name.startswith("fill") else one, 1, AT_A_TIME))
        for process in sides.values():
            process.kill()
        source = Path(folder) / "rows.jsonl"
        with open(source, "w", encoding="utf-8") as out:
            for asked in itertools.islice(itertools.cycle(texts), given.rows):
                out.write(json.dumps(asked if isinstance(asked, dict) else {"text": asked}) + "\n")
        files: dict[str, list[float]] = {name: [] for name in many}
        for _ in range(FILE_TURNS):
            for name, python, bundle in (
                ("ours int8", sys.executable, "int8"), ("ours fp32", sys.executable, "fp32"),
                ("optimum", given.peer_python, "fp32"),
            ):  # fmt: skip
                batches = BATCHES if name == "optimum" else (0,)
                files[name].append(
                    min(
                        file_seconds(python, task, made[bundle], given.threads, source, given.rows, batch)
                        for batch in batches
                    )
                )
    rate = {name: len(texts) / statistics.median(seconds) for name, seconds in many.items()}
    ms = {name: 1000 * statistics.median(seconds) for name, seconds in single.items()}
    ratios, file_ratios = times_as_fast(many), times_as_fast(files)
    against = {
        dtype: statistics.median(a / b for a, b in zip(single[f"ours {dtype}"], single[f"fill {dtype}"], strict=True))
        for dtype in ("int8", "fp32")
    }
    result = {
        "command": command(sys.argv),
        "processor": processor(),
        "threads": given.threads,
        "texts": len(texts),
        "texts a second": rate,
        "times as fast": ratios,
        "ms for one text": ms,
        "one text to a masked query": against,
        "seconds for a file": {name: statistics.median(seconds) for name, seconds in files.items()},
        "rows of the file": given.rows,
        "times as fast for a file": file_ratios,
    }
    body = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    RESULT.write_text(json.dumps({**body, task: result}, indent=1) + "\n", encoding="utf-8")
    for name, value in rate.items():
        print(f"{name:<12} {value:8.0f} texts a second")
    print(*(f"{name}: {value:.2f}" for name, value in {**ratios, **against}.items()), sep="\n")
    print(*(f"a file, {name}: {value:.2f}" for name, value in file_ratios.items()), sep="\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    elif sys.argv[1:2] == ["file"]:
        answer_file(sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5], int(sys.argv[6]))
    else:
        main()
