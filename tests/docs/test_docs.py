"""Hold the README and docs/ to what is there: files, tests, and every command.

The commands of `bash` fences run in one folder for each page, on made-up text, in this order; those of ours that need
no shell are forked from a process that has imported what they import. They run with these changes: `--budget TIME`
becomes three steps, as does a script that trains; training on `--data`, and that of docs/extending.md, is of a small
model. A word after `bash` or `python` says what else a fence needs: of those in `READ_ONLY` only the options are read,
a server is asked for its page and ended, what installs is left to .ci/run, and `slow` is left to the slow tests. Pages
with output (`console`) are run again by docs/tools/run.py.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import lzma
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.forked import Server, running, serving_forks
from support.paths import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
READ_ONLY = {"needs-accelerator", "needs-pod", "needs-tpu", "needs-npm", "needs-peers"}
REMARKS = {*READ_ONLY, "serves", "install", "varies", "slow", "extended"}
FEW = "--batch 8 --accumulate 1 --length 32 --eval-rows 8"
SMALL = f"--layers 1 --width 32 --heads 2 --ff-width 32 --tokenizer-limit 512 {FEW}"
BRIEF = "--layers 1 --width 128 --heads 2 --ff-width 64 --batch 16"
IMPORTS = (
    *("jax_mlm.train.loop", "jax_mlm.train.__main__", "jax_mlm.train.finetuning", "jax_mlm.report.outcome"),
    *("jax_mlm.evals.heldout", "jax_mlm.hf.directory", "mlm_onnx.convert.pipeline", "mlm_onnx.__main__"),
    "mlm_onnx.answer.predictor",
)
"""What the commands are forked with: what all of them import."""
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info", "node_modules")
INSTALLS = re.compile(r"pip install|^python3 -m venv |^\. \.venv/|^python -m pytest$|^ruff ", re.M)
"""What .ci/run runs, and the pages' tests do not."""


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    """Return docs/tools/run.py as a module."""
    spec = importlib.util.spec_from_file_location("run_docs", ROOT / "docs" / "tools" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_docs"] = module
    spec.loader.exec_module(module)
    return module


def lines(body: str) -> list[str]:
    """The commands of a shell block; a loop is one command."""
    joined = body.replace("\\\n", " ")
    if re.search(r"^for ", joined, re.M):
        return [joined]
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def ours(command: str) -> list[list[str]]:
    """The modules that a command runs, with their arguments: [["jax_mlm.train", "--data", …]]."""
    command = command.replace("\\\n", " ")
    inner = re.findall(r'--command="([^"]+)"', command)
    found = []
    for text in inner or [command]:
        for part in re.split(r"[;&|]+|(?<=\s)do\s|\$ ", re.sub(r"[<>]+ ?\S+", "", text.replace("done", ""))):
            words = shlex.split(part, comments=True)
            for at, word in enumerate(words):
                if word == "-m" and at and words[at - 1].endswith("python"):
                    found.append(words[at + 1 :])
    return [each for each in found if each[0].split(".")[0] in ("jax_mlm", "mlm_onnx")]


def read(module: str, argv: list[str]) -> None:
    """Reads the options as the command would, and runs nothing."""
    from mlm_onnx import __main__ as answers

    from jax_mlm import compare, evaluate, finetune, plan
    from jax_mlm.cli.options import build
    from jax_mlm.config import TrainConfig
    from jax_mlm.hf import __main__ as commands
    from jax_mlm.presets import PRESETS
    from jax_mlm.train.__main__ import COMMAND

    match module, argv:
        case "jax_mlm.train", _:
            given = COMMAND.parser().read(argv)
            preset = PRESETS[given.get("preset", "tiny")]
            build(TrainConfig, given, replace(preset, steps=0) if "budget" in given else preset)
        case "jax_mlm.evaluate", _:
            evaluate.COMMAND.read(argv)
        case "jax_mlm.finetune", _:
            finetune.COMMAND.read(argv)
        case "jax_mlm.compare", _:
            compare.COMMAND.read(argv)
        case "jax_mlm.plan", _:
            plan.COMMAND.read(argv)
        case "jax_mlm.hf", ["import" | "export" as which, *rest]:
            commands.COMMANDS[which].read(rest)
        case "mlm_onnx", [name, *rest]:
            answers.read(answers.COMMANDS, name, rest)
        case "jax_mlm" | "mlm_onnx" | "jax_mlm.hf", []:
            pass
        case _:
            raise AssertionError(f"the pages show {module} {argv}: read its options here")


def shown(page: Path, runner: ModuleType) -> Iterator[tuple[Any, str]]:
    """Each shell command of a page, with its fence."""
    for fence in runner.fences(page.read_text()):
        if fence.info[:1] == ("bash",) and "extended" not in fence.info:
            yield from ((fence, line) for line in lines(fence.body))
        if fence.info[:1] == ("console",):
            yield from ((fence, command) for command, _ in runner.commands(fence.body))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_has_options_that_exist(page: Path, runner: ModuleType) -> None:
    for fence in runner.fences(page.read_text()):
        assert fence.info[:1] in [(), ("bash",), ("console",), ("python",), ("diff",), ("json",), ("mermaid",)], (
            fence.info
        )
        assert set(fence.info[1:]) <= REMARKS, fence.info
        assert fence.info or not re.search("^python -m ", fence.body, re.M), f"which no test looks at: {fence.body}"
    for _, command in shown(page, runner):
        for module, *argv in ours(command):
            read(module, argv)
    for module, options in re.findall(r"`python -m ((?:jax_mlm|mlm_onnx)[\w.]*)([^`]*)`", page.read_text()):
        first = options.split()[0] if module in ("mlm_onnx", "jax_mlm.hf") and options.strip() else ""
        for option in re.findall(r"(?<= )--[\w-]+", options):
            assert option in all_options(module, first), f"`python -m {module}{options}`"


@cache
def all_options(module: str, command: str) -> str:
    """Every option, as the help lists them."""
    line = [sys.executable, "-m", module, *command.split(), "--help" if command else "--help-all"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + "--help --help-all --version"


# ---- running them --------------------------------------------------------------------------------


def shortened(command: str) -> str:
    """The command with little to do, as this file's docstring says."""
    command = re.sub(r"--budget \S+", "--steps 3", command)
    command = re.sub(r"XLA_FLAGS=(\S+)", r'XLA_FLAGS="$XLA_FLAGS \1"', command)
    if "jax_mlm.train" in command and "--data" in command:
        own = "--init" in command or ("--distil" in command and "--preset" not in command)  # a shape of its own
        small = FEW if own else SMALL
        if re.search("--(distil|tokenizer) ", command):  # a tokenizer of its own
            small = small.replace("--tokenizer-limit 512 ", "")
        small += "" if "--steps" in command else " --steps 3"
        command = re.sub(r"jax_mlm\.train", f"jax_mlm.train {small}", command)
        for option in re.findall(r"--[\w-]+", small):  # what the page asks for is replaced, not asked for twice
            head, tail = command.split(small, 1)
            command = head + small + re.sub(rf" {option} \S+", "", tail)
        command = re.sub(r"--steps (?!3\b)\d+", "--steps 3", command)
    command = re.sub(r"(jax_mlm\.finetune .*) --epochs \S+", r"\1", command)
    return command.replace("jax_mlm.finetune", "jax_mlm.finetune --epochs 1 --length 32")


@pytest.fixture
def scratch(tmp_path: Path, environment: dict[str, str], sentence_run: Any) -> Path:
    """A folder with the files that the pages speak of, and the founding sentence trained."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghilmnoprstu", k=draw.randint(2, 9))) for _ in range(400)]
    lines = [" ".join(["text", "with", *draw.choices(words, k=12)]) for _ in range(200)]
    (tmp_path / "my-text").mkdir()
    (tmp_path / "my-text" / "a.txt").write_text("\n\n".join(lines))
    (tmp_path / "held-out.txt").write_text("\n\n".join(lines[:40]))
    (tmp_path / "words.txt").write_text("bridge\nfishes\n")
    (tmp_path / "my-pairs").mkdir()
    pair = {"sentence_good": lines[0], "sentence_bad": " ".join(reversed(lines[0].split())), "UID": "order"}
    (tmp_path / "my-pairs" / "order.jsonl").write_text(json.dumps(pair) + "\n")
    thai = ["".join(draw.choices("กขคงจชซดตถทนบปพมยรลวสหอ", k=40)) for _ in range(300)]
    (tmp_path / "thai.txt").write_text("\n".join(thai))
    sequences = ["MKT" + "".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=60)) for _ in range(200)]
    (tmp_path / "sequences.txt").write_text("\n".join(sequences))
    (tmp_path / "proteins.csv").write_text("id,sequence\n" + "".join(f"{i},{s}\n" for i, s in enumerate(sequences)))
    (tmp_path / "my-code" / "inner").mkdir(parents=True)
    for i in range(9):
        body = "\n".join(
            f"def {a}(x):\n    return [{b}(y) for y in x]\n" for a, b in zip(words, words[i:], strict=False)
        )
        (tmp_path / "my-code" / "inner" / f"{i}.py").write_text(body)
    shutil.copytree(sentence_run.path, tmp_path / "runs" / "sentence")
    return tmp_path


def with_python(environment: dict[str, str]) -> dict[str, str]:
    """`python` is the one that runs the tests."""
    return {**environment, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}


def run(command: str, folder: Path, environment: dict[str, str]) -> str:
    """What the command prints; it must end well."""
    line, env = ["bash", "-euo", "pipefail", "-c", command], with_python(environment)
    done = subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def words_of(command: str) -> list[str]:
    """The module and arguments of a command of ours that needs no shell; of any other, nothing."""
    alone = re.match(r"python -m (jax_mlm|mlm_onnx)\b", command) and not re.search(r"[|;&<>$*?~{]", command)
    return shlex.split(command, comments=True)[2:] if alone else []


@pytest.fixture(scope="module")
def server(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """What the commands are forked from, so that each need not import anew what all import."""
    with serving_forks(environment, tmp_path_factory.mktemp("forks"), *IMPORTS) as server:
        yield server


def run_forked(command: str, folder: Path, environment: dict[str, str], server: Server) -> str:
    """What the command prints, as `run` returns it; without a shell if it needs none."""
    if not (words := words_of(command)):
        return run(command, folder, environment)
    spec = importlib.util.find_spec(words[0])
    assert spec is not None, words[0]
    main = f"{words[0]}.__main__" if spec.submodule_search_locations else words[0]
    child, until = server.start(main, *words[1:], cwd=folder), time.monotonic() + 300
    while running(child.pid):
        if time.monotonic() > until:
            child.signal(signal.SIGKILL)
        time.sleep(0.01)
    assert child.wait() == 0, f"{command}\n{child.out()}{child.err()}"
    return child.out()


def answers_http(command: str, folder: Path, environment: dict[str, str]) -> None:
    """Starts a server, reads its page, ends it."""
    port = 7860 if "demo" in command else 8000
    line = ["bash", "-c", f"exec {command}"]
    process = subprocess.Popen(
        line, cwd=folder, env=with_python(environment), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        for _ in range(600):
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5) as page:
                    assert page.status == 200
                return
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.1)
        raise AssertionError(f"{command} shows no page")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


def run_page(
    page: Path, runner: ModuleType, folder: Path, environment: dict[str, str], server: Server, slow: bool
) -> dict[str, str]:
    """Runs the commands of a page, those of fences marked slow or all others: command → what it printed."""
    printed = {}
    trained = "python -m jax_mlm.train --out runs/sentence"  # the fixture's, without --out
    for fence in runner.fences(page.read_text()):
        remarks = set(fence.info[1:])
        if ("slow" in remarks) != slow or remarks & {*READ_ONLY, "install"}:
            continue
        if fence.info[:1] == ("python",) and "sys.argv" not in fence.body:  # that script is test_bundle_docs.py's
            (folder / "script.py").write_text(
                fence.body.replace('PRESETS["sentence"],', 'PRESETS["sentence"], steps=3,')
            )
            run("python script.py", folder, environment)
        if fence.info[:1] != ("bash",):
            continue
        for command in (part for line in lines(fence.body) for part in line.split(" && ")):
            if command == trained or INSTALLS.search(command):
                continue
            if "serves" in remarks:
                if "demo" not in command or importlib.util.find_spec("gradio"):
                    answers_http(command, folder, environment)
                continue
            printed[command] = run_forked(shortened(command), folder, environment, server)
    return printed


@pytest.mark.slow
def test_the_commands_of_the_readme_run(
    runner: ModuleType, scratch: Path, environment: dict[str, str], server: Server
) -> None:
    printed = run_page(ROOT / "README.md", runner, scratch, environment, server, slow=False)
    (answer,) = (text for command, text in printed.items() if "fill bundles/sentence" in command)
    first = answer.splitlines()[1].split()
    assert first[0] == "creates"
    assert float(first[1].rstrip("%")) >= 98
    (asked,) = (text for command, text in printed.items() if "fill bundles/mine" in command)
    assert len(asked.splitlines()) == 6, "the sentence filled in, and five candidates"
    assert (scratch / "runs" / "mine" / "report.html").is_file()
    run_page(ROOT / "docs" / "python.md", runner, scratch, environment, server, slow=False)


@pytest.fixture
def with_bert(scratch: Path, environment: dict[str, str], server: Server) -> Path:
    """Also Hugging Face directories of a BERT."""
    train = f"python -m jax_mlm.train --preset bert-base --data my-text/ {SMALL} --steps 1 --out runs/of-bert"
    run_forked(train, scratch, environment, server)
    for name in ("bert-base", "bert-base-uncased"):
        run_forked(f"python -m jax_mlm.hf export runs/of-bert {name}/", scratch, environment, server)
    return scratch


@pytest.mark.slow
def test_the_notebook_example_of_the_readme_runs(
    runner: ModuleType, scratch: Path, environment: dict[str, str], server: Server, trained_bundle: Callable[..., Path]
) -> None:
    shutil.copytree(trained_bundle("--dtype", "int8"), scratch / "bundles" / "sentence")
    run_page(ROOT / "README.md", runner, scratch, environment, server, slow=True)
    assert list((scratch / "runs" / "notebook" / "checkpoints").iterdir())


@pytest.mark.slow
def test_the_commands_of_the_bert_family_run(
    runner: ModuleType, with_bert: Path, environment: dict[str, str], server: Server
) -> None:
    printed = run_page(ROOT / "docs" / "bert-family.md", runner, with_bert, environment, server, slow=True)
    for word in ("--preset roberta-base", "--init", "--distil", "hf export"):
        assert any(word in command for command in printed), word
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md"):
        assert (with_bert / "my-model" / name).is_file(), name


@pytest.mark.slow
def test_the_recipes_run(runner: ModuleType, with_bert: Path, environment: dict[str, str], server: Server) -> None:
    printed = run_page(ROOT / "docs" / "recipes.md", runner, with_bert, environment, server, slow=False)
    trained = {name for command in printed for name in re.findall(r"--out (runs/[\w-]+)", command)}
    assert len(trained) >= 6
    for name in trained:
        assert list((with_bert / name / "checkpoints").iterdir()), name


@pytest.mark.slow
def test_the_commands_of_fine_tuning_run(
    runner: ModuleType, scratch: Path, environment: dict[str, str], server: Server
) -> None:
    train = f"python -m jax_mlm.train --data my-text/ {SMALL} --tokenizer-kind wordpiece --steps 1 --out runs/domain"
    run_forked(train, scratch, environment, server)
    texts = (scratch / "held-out.txt").read_text().split("\n\n")
    rows = [f"{text},{'good' if i % 2 else 'bad'}\n" for i, text in enumerate(texts)]
    for name in ("reviews", "reviews-dev", "new-reviews"):
        (scratch / f"{name}.csv").write_text("text,label\n" + "".join(rows))
    words = ["".join(f"{word}\t{'B-x' if word == 'with' else 'O'}\n" for word in text.split()) for text in texts]
    for name in ("people", "people-dev", "wnut17train", "emerging.dev"):
        (scratch / f"{name}.conll").write_text("\n".join(words))
    asked = [{"question": "What?", "context": text, "answer": text[:4], "answer_start": 0} for text in texts]
    for name in ("asked", "asked-dev", "squad_sample_train", "squad_sample_valid"):
        (scratch / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (scratch / "sst2").mkdir()
    for name in ("train", "dev"):
        (scratch / "sst2" / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(rows).replace(",", "\t"))
    (scratch / "books").mkdir()
    (scratch / "books" / "train-00.txt.xz").write_bytes(lzma.compress("\n".join(texts).encode()))
    (scratch / "books" / "valid.txt").write_text("\n".join(texts[:9]))
    run_page(ROOT / "docs" / "finetuning.md", runner, scratch, environment, server, slow=False)
    for name in ("answers", "labelled", "found"):
        assert len((scratch / f"{name}.jsonl").read_text().splitlines()) == len(texts)
    assert (scratch / "reviews-hf" / "config.json").is_file()


@pytest.fixture
def extended(tmp_path: Path, runner: ModuleType) -> Path:
    """A copy of the project with every change of docs/extending.md made."""
    for part in ("jax_mlm", "export/mlm_onnx", "tests", "README.md", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / part, **({"ignore": IGNORED} if copy is shutil.copytree else {}))
    changes = [
        fence.body for fence in runner.fences((ROOT / "docs/extending.md").read_text()) if fence.info == ("diff",)
    ]
    assert len(changes) == 4
    for change in changes:
        line = ["git", "apply", "-"]
        done = subprocess.run(line, cwd=tmp_path, input=change, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stderr}{change}"
    return tmp_path


def test_each_addition_touches_few_files() -> None:
    most = {"An architecture": 3, "A masking rule": 1, "An optimizer": 1, "An export target": 2}
    for section in (ROOT / "docs" / "extending.md").read_text().split("\n## ")[1:]:
        title, body = section.split("\n", 1)
        files = set(re.findall(r"^\+\+\+ b/(.+)$", body, re.M))
        assert 0 < len(files) <= most.pop(title), f"{title}: {files}"
    assert not most


def test_what_extending_adds_is_there(extended: Path, environment: dict[str, str]) -> None:
    here = {**environment, "PYTHONPATH": f"{extended}{os.pathsep}{extended / 'export'}"}
    for module, new in (("jax_mlm.train", ["relu2", "pair", "lion"]), ("mlm_onnx", ["states"])):
        line = [sys.executable, "-m", module, *(["convert", "--help"] if module == "mlm_onnx" else ["--help-all"])]
        done = subprocess.run(line, cwd=extended, env=here, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert all(word in done.stdout for word in new), done.stdout


@pytest.mark.slow
def test_what_extending_adds_works(
    extended: Path, runner: ModuleType, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    here = {**environment, "PYTHONPATH": f"{extended}{os.pathsep}{extended / 'export'}"}
    printed = {}
    with serving_forks(here, tmp_path_factory.mktemp("forks"), *IMPORTS) as server:
        for fence in runner.fences((ROOT / "docs" / "extending.md").read_text()):
            for command in lines(fence.body) if "extended" in fence.info else ():
                brief = BRIEF if "--lr" in command else f"{BRIEF} --lr 3e-3"
                brief = command.replace("jax_mlm.train", f"jax_mlm.train {brief}")
                printed[command] = run_forked(brief, extended, here, server)
    for name, part, field, value in (
        ("relu2", "model", "activation", "relu2"),
        ("pair", "mask", "mask_rule", "pair"),
        ("lion", "optim", "optimizer", "lion"),
    ):
        folder = extended / "runs" / name
        assert json.loads((folder / "run.json").read_text())["config"][part][field] == value
        final = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        assert final["kind"] == "final"
        assert final["accuracy"] > 0.5, f"{name}: the sentence is learned"
    graphs = json.loads((extended / "bundles" / "states" / "manifest.json").read_text())["graphs"]
    assert any("states" in graph for graph in graphs), list(graphs)
    assert any("states" in text for command, text in printed.items() if " info " in command)


@pytest.mark.campaign
@pytest.mark.parametrize("name", ["how-masked-language-models-work"])
def test_the_output_that_pages_show_is_what_comes_out(name: str, environment: dict[str, str]) -> None:
    line = [sys.executable, "docs/tools/run.py", "--check", f"docs/{name}.md"]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- names ---------------------------------------------------------------------------------------


def test_the_contract_names_tests_that_exist() -> None:
    named = re.findall(r"`(tests/\w+/test_\w+\.py)::(test_\w+)`", (ROOT / "docs" / "contract.md").read_text())
    assert len(named) >= 20
    for file, test in named:
        assert f"\ndef {test}(" in (ROOT / file).read_text(), f"{file} has no {test}"


def rooms() -> set[str]:
    """Return the folders of both packages that hold code, as the README writes them."""
    there = set()
    for top in ("jax_mlm", "export/mlm_onnx"):
        inside = (file for kind in ("*.py", "*.js") for file in (ROOT / top).glob(f"*/{kind}"))
        there |= {f"{file.parent.relative_to(ROOT).as_posix()}/" for file in inside}
    return there


def test_the_map_names_every_room_and_nothing_that_is_not_there() -> None:
    table = (ROOT / "README.md").read_text().split("## Where things are")[1].split("\n## ")[0]
    lines = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    named = [name for room, _ in lines for name in re.findall(r"`([^`]+)`", room)]
    assert len(named) == len(set(named))
    for name in named:
        assert (ROOT / name).is_dir() if name.endswith("/") else (ROOT / name).is_file(), name
    assert rooms() <= set(named)
    for room, question in lines:
        (first, *_) = re.findall(r"`([^`]+)`", room)
        for file in re.findall(r"`([\w/]+\.py)`", question):
            assert (ROOT / first / file).is_file(), f"{first} has no {file}"


def test_the_architecture_names_every_room_and_what_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    drawing = page.split("```mermaid")[1].split("```")[0]
    for room in rooms():
        assert f"{Path(room).name}/" in drawing, f"{room} is not drawn"
    named = re.findall(r"`([\w/]+\.py):(\w+)`", page)
    assert len(named) >= 35
    for file, name in named:
        assert re.search(rf"^(def|class) {name}\b", (ROOT / file).read_text(), re.M), f"{file} has no {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_paths_in_pages_exist(page: Path) -> None:
    for path in re.findall(r"`((?:jax_mlm|export|docs|tests|benchmarks)/[\w/.-]+)`", page.read_text()):
        assert (ROOT / path).exists(), path


def test_the_pages_that_greet_a_contributor_are_short() -> None:
    for name, most in (("README.md", 150), ("CONTRIBUTING.md", 60), ("SECURITY.md", 30)):
        assert len((ROOT / name).read_text().splitlines()) <= most, name


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
