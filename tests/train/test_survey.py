"""What was read is said before a run, kept in run.json, and refused where there is nothing to learn."""

from __future__ import annotations

import io
import json
import random
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.rows import prepared
from support.runs import train_line

from jax_mlm.config import DataConfig, MaskConfig, TrainConfig
from jax_mlm.data.batches import batch_of, pack_rows
from jax_mlm.data.tokenizer import train_tokenizer, vocabulary_of
from jax_mlm.report import outcome
from jax_mlm.tasks.masking import make_mask, row_keys
from jax_mlm.train import loop
from jax_mlm.train import survey as looking
from jax_mlm.train.record import write_run_files
from jax_mlm.train.setup import claimed, set_up
from jax_mlm.train.survey import expected_targets

SHORT = [
    "--preset", "tiny", "--width", "16", "--layers", "1", "--heads", "1", "--ff-width", "16", "--length", "24",
    "--batch", "4", "--steps", "1", "--eval-rows", "4", "--tokenizer-limit", "320",
]  # fmt: skip
DRAW = random.Random(0)
WORDS = ["".join(DRAW.choices("abcdefghijklmnop", k=DRAW.randint(2, 7))) for _ in range(80)]


def prose(lines: int = 200, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=9)) for _ in range(lines)]


@pytest.fixture(autouse=True)
def up_to_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run goes as far as its run.json: nothing is compiled."""

    def begun(config: TrainConfig, stopping: object) -> Path:
        with claimed(config) as (config, run, _):
            write_run_files(set_up(config, run))
        return run

    monkeypatch.setenv("JAX_MLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loop, "train", begun)
    monkeypatch.setattr(outcome, "print_next", lambda run, own_text: None)


def written(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def refused(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """The one line of a run that is refused before anything is written."""
    out = Path(str(arguments[arguments.index("--out") + 1]))
    assert train_line(*arguments) == 2
    assert not out.exists()
    return capsys.readouterr().err.splitlines()[-1]


def test_what_was_read_is_said_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    written(tmp_path / "text/a.md", prose())
    written(tmp_path / "text/src/b.py", prose())
    run = tmp_path / "run"
    assert train_line(*SHORT, "--data", tmp_path / "text", "--out", run) == 0
    err = capsys.readouterr().err
    summary = next(line for line in err.splitlines() if line.startswith("text:"))
    assert "1 file, 198 documents to train on, 2 to validate" in summary
    assert f"left out: 1 file (.py), which a glob takes: --data '{tmp_path}/text/**/*.py'" in err
    assert "chosen: words between spaces" in err
    data = json.loads((run / "run.json").read_text())["data"]
    text = data["text"]
    assert data["tokenizer"] == {"kind": "wordpiece", "reason": "words between spaces"}
    assert (text["files"], text["documents"], text["validation_documents"], text["unknown"]) == (1, 198, 2, 0)
    assert text["left_out"] == {f"{tmp_path}/text/**/*.py": 1}
    assert text["characters_per_token"] == pytest.approx(sum(map(len, prose())) / text["tokens"], abs=1e-3)
    assert f"about {text['targets_per_step']:.0f} targets a step" in summary
    assert train_line("--resume", "--out", run, "--steps", 2) == 0
    assert json.loads((run / "run.json").read_text())["data"] == data


def test_standard_input_is_resumed_without_being_read_again(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Input:
        buffer, isatty = io.BytesIO("\n".join(prose()).encode()), staticmethod(lambda: False)

    monkeypatch.setattr(sys, "stdin", Input)
    assert train_line(*SHORT, "--data", "-", "--out", tmp_path / "run") == 0
    assert train_line("--resume", "--out", tmp_path / "run", "--steps", 2) == 0
    assert refused(capsys, *SHORT, "--data", "-", "--out", tmp_path / "b") == "error: --data -: standard input is empty"


UNREADABLE = {"thai": "กขคงจชซดตถทนบปพมยรลวสหอ", "greek": "αβγδεζηθικλμνξοπρστυφχψω", "han": "天地玄黄宇宙洪荒日月盈昃"}


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("side", ["--data", "--valid"])
def test_mostly_unknown_text_is_refused_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture, name: str, side: str
) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    train_tokenizer(prose(), "wordpiece", 192).save(str(tokenizer))
    foreign = written(
        tmp_path / "a.txt", [" ".join("".join(DRAW.choices(UNREADABLE[name], k=4)) for _ in range(6))] * 90
    )
    known = written(tmp_path / "b.txt", prose())
    data = ["--data", foreign] if side == "--data" else ["--data", known, "--valid", foreign]
    error = refused(capsys, *SHORT, *data, "--tokenizer", tokenizer, "--out", tmp_path / "run")
    assert re.search(rf"error: {side}: 100 % of the tokens are unknown.*--tokenizer was made for other text", error)


def test_words_that_are_all_different_are_refused_as_words(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    draw = random.Random(0)
    lines = ["".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=150)) for _ in range(400)]
    path = written(tmp_path / "a.txt", lines)
    error = refused(
        capsys, *SHORT, "--data", path, "--tokenizer-kind", "word", "--tokenizer-size", "100", "--out", tmp_path / "run"
    )
    assert "76 % of the tokens are unknown" in error
    assert "--tokenizer-kind bpe" in error


def test_whole_words_too_long_to_hide_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    draw = random.Random(0)
    path = written(tmp_path / "a.txt", ["".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=150)) for _ in range(60)])
    line = [*SHORT, "--length", "48", "--data", path, "--mask-rule", "whole-word"]
    error = refused(capsys, *line, "--tokenizer-kind", "wordpiece", "--tokenizer-size", "64", "--out", tmp_path / "run")
    assert "of the tokens can be hidden" in error
    assert "--mask-rule token" in error
    assert train_line(*line, "--out", tmp_path / "run") == 0  # larger pieces, and rows that end with a few of them
    assert re.search(r"warning: --mask-rule whole-word can hide only \d+ % of the tokens", capsys.readouterr().err)


def test_the_remedy_names_the_option_that_was_given_and_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    draw = random.Random(0)
    path = written(
        tmp_path / "a.txt", ["".join(chr(0x4E00 + draw.randrange(900)) for _ in range(30)) for _ in range(300)]
    )
    line = [
        *SHORT,
        "--data",
        path,
        "--tokenizer-kind",
        "wordpiece",
        "--tokenizer-size",
        "128",
        "--out",
        tmp_path / "run",
    ]
    assert train_line(*line) == 2
    err = capsys.readouterr().err
    assert err.count("of the tokens are unknown") == 1
    assert "a larger --tokenizer-size" in err


def test_bytes_instead_of_letters_and_steps_without_targets_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    train_tokenizer(prose(), "bpe", 320).save(str(tokenizer))
    path = written(tmp_path / "a.txt", [f"मैं कल बाज़ार गया था {n}" for n in range(200)])
    line = [*SHORT, "--data", path, "--tokenizer", tokenizer, "--mask-rate", "0.001", "--out", tmp_path / "run"]
    assert train_line(*line) == 0
    err = capsys.readouterr().err
    assert re.search(r"warning: --data: each character takes [12]\.\d tokens: .*--tokenizer was made for other", err)
    assert re.search(r"about 0\.\d+ targets a step", err)
    assert "warning: most steps hide nothing" in err


def test_copies_that_are_dropped_are_not_counted_and_never_all_of_the_text(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    once, thrice = written(tmp_path / "a.txt", prose(60)), written(tmp_path / "b.txt", prose(60) * 3)
    counts = []
    for number, line in enumerate(([once], [thrice, "--dedup"])):
        assert train_line(*SHORT, "--data", *line, "--out", tmp_path / str(number)) == 0
        counts.append(json.loads((tmp_path / str(number) / "run.json").read_text())["data"]["text"]["tokens"])
    assert counts[0] == counts[1]
    both = [*SHORT, "--data", once, "--valid", thrice, "--dedup", "--out", tmp_path / "run"]
    assert refused(capsys, *both).startswith("error: --dedup leaves nothing to train on")


def test_a_folder_of_many_suffixes_is_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    written(tmp_path / "text/a.txt", prose())
    for number in range(20):
        (tmp_path / f"text/b.x{number:02}").write_bytes(b"\0\1" if number == 0 else b"x")
    assert train_line(*SHORT, "--data", tmp_path / "text", "--out", tmp_path / "run") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out")]
    assert lines[0] == "left out: 1 file (.x00), not text"
    assert lines[1].endswith("/text/**/*.x01'")
    assert lines[-1] == "left out: 14 files more, of 14 suffixes"
    assert len(json.loads((tmp_path / "run/run.json").read_text())["data"]["text"]["left_out"]) == 20


def test_some_unknown_tokens_and_copies_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    train_tokenizer(prose(), "wordpiece", 192).save(str(tokenizer))
    path = written(tmp_path / "a.txt", [line + " щ" for line in prose(40)] * 5)
    line = [*SHORT, "--data", path, "--tokenizer", tokenizer]
    assert train_line(*line, "--out", tmp_path / "run") == 0
    err = capsys.readouterr().err
    assert re.search(r"warning: --data: [\d.]+ % of the tokens are unknown and never learned: .*--tokenizer", err)
    assert "warning: 100 % of the validation documents stand in the training text as well" in err
    assert train_line(*line, "--dedup", "--out", tmp_path / "once") == 0
    err = capsys.readouterr().err
    assert "160 copies dropped" in err
    assert "stand in the training text" not in err


def test_unknown_words_that_the_text_writes_itself_have_another_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = written(tmp_path / "a.txt", [f"{line} <unk>" for line in prose()])
    assert train_line(*SHORT, "--data", path, "--out", tmp_path / "run") == 0
    assert re.search(
        r"warning: --data: .* unknown .*the text itself says <unk> there; take the raw", capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--preset", "roberta-base", "--accumulate", "1"), ""),
        (("--preset", "albert-base", "--accumulate", "1"), ""),
        (("--preset", "bert-base"), "--tokenizer-kind wordpiece: 100% of the letters"),
        (("--tokenizer-kind", "word"), "--tokenizer-kind word: 100% of the letters"),
    ],
)
def test_a_kind_that_is_given_is_kept_and_only_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture, arguments: tuple[str, ...], said: str
) -> None:
    draw = random.Random(0)
    path = written(tmp_path / "a.txt", ["".join(draw.choices("กขคงจชซดตถ", k=61)) for _ in range(60)])
    small = [*SHORT[2:], "--tokenizer-limit", "320"]
    assert train_line(*arguments, *small, "--data", path, "--out", tmp_path / "run") == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if "fits better" in line]
    assert (said in warned[0] and "--tokenizer-kind unigram fits better" in warned[0]) if said else not warned
    kind = json.loads((tmp_path / "run/run.json").read_text())["config"]["corpus"]["tokenizer_kind"]
    assert kind == {"roberta-base": "bpe", "albert-base": "unigram", "bert-base": "wordpiece"}.get(arguments[1], "word")


@pytest.mark.parametrize(
    "rule", [pytest.param("token", marks=pytest.mark.slow), pytest.param("span", marks=pytest.mark.slow), "whole-word"]
)
def test_the_targets_of_a_step_are_what_masking_makes(tmp_path: Path, rule: str) -> None:
    path = written(tmp_path / "a.txt", [*prose(300), *("".join(DRAW.choices(WORDS, k=60)) for _ in range(40))])
    tokenizer = train_tokenizer(prose(), "wordpiece", 128)
    rows = pack_rows(prepared([path], tokenizer, DataConfig(), tmp_path), vocabulary_of(tokenizer), 64, "document")
    config = MaskConfig(mask_rule=rule)
    batch = batch_of(rows, np.arange(len(rows)))
    mask = jax.jit(make_mask(config, rows.vocabulary, 64))
    keys = row_keys(jax.random.key(0), 0, jnp.asarray(batch.rows))
    masked = mask(keys, jnp.asarray(batch.tokens), jnp.asarray(batch.words), jnp.float32(0.15))
    expected = expected_targets(rows, config, len(rows))
    assert len(rows) <= looking.LOOKED_AT
    assert float(masked.weights.sum()) == pytest.approx(expected.hidden, rel=0.05)
    assert expected.reachable == 1 if rule != "whole-word" else 0.3 < expected.reachable < 0.95
