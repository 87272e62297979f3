"""`convert --for web`: the page answers in a real Chromium what `FillMask` answers in Python, from the same bundle."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from mlm_onnx import FillMask
from mlm_onnx.bundle.graph_check import check_onnx
from mlm_onnx.bundle.layout import FAST_GRAPH, WEB_GRAPH
from mlm_onnx.bundle.read import open_bundle
from mlm_onnx.bundle.write import seal
from mlm_onnx.convert import Request, web, write_bundle
from mlm_onnx.convert.request import Dtype
from support.bundles import ONE_SHAPE, ORIGIN
from support.models import CONFIGS, randomised
from support.pages import Driven
from support.tokenizers import byte_level, with_added

from jax_mlm.data.tokenizer import train_tokenizer
from jax_mlm.presets import SENTENCE

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TEXTS = (
    SENTENCE,
    "The café's  owner, Zoë, didn't know (yet) that 42 of the 1,000 croissants were stolen!",
    "“Naïve” readers — so they say — ask: what is a masked language model? 東京 is a city. 🎉 Enjoy it",
    "one two\tthree\nfour <unk> five [unk] six",
)
HIDDEN = ((2,), (0, 7), (1, 12, 4), (4,))
LONG = " ".join(f"{word}{number % 7}" for number in range(40) for word in ("alpha", "beta,", "gamma."))
FP32_TOLERANCE, INT8_TOLERANCE = 1e-3, 2e-2


class Beside(NamedTuple):
    """The page's answer at one mask beside Python's."""

    difference: float
    """The largest of a candidate's probability."""
    same: bool
    """The first candidate is."""
    lead: float
    """Lead of Python's first candidate over its second; within rounding they may be swapped."""


def beside(driven: Driven, fill: FillMask, text: str, hidden: Sequence[int]) -> list[Beside]:
    """Asks both; where one word is hidden, the sentence filled in must be the same too."""
    found = driven.ask(text, hidden)
    assert len(found) == len(hidden), driven.text("status")
    some = min(50, fill.bundle.vocab_size - len(fill.bundle.special.excluded))
    masks = fill(driven.text("masked"), top_k=some)["masks"]
    compared = []
    for theirs, mask in zip(found, masks, strict=True):
        ours = {candidate["id"]: candidate["probability"] for candidate in mask["candidates"]}
        first, second, *_ = ours.values()
        difference = max(abs(probability - ours[id]) for id, probability in theirs)
        compared.append(Beside(difference, theirs[0][0] == next(iter(ours)), first - second))
    if len(hidden) == 1 and compared[0].same:
        assert driven.text("filled") == masks[0]["candidates"][0]["text"]
    return compared


def check(compared: Sequence[Beside], tolerance: float) -> None:
    worst = max(each.difference for each in compared)
    assert worst <= tolerance
    assert all(each.same or each.lead <= 2 * worst for each in compared)


# ---- the same answers ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(web_runtime: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Dtype], Path]:
    """Bundles with random weights, by kind of tokenizer."""
    folder = tmp_path_factory.mktemp("web")
    letters = np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz"), (400, 5))
    sample = [*TEXTS, LONG, *("".join(word) for word in letters)]
    sizes = {"word": 32, "wordpiece": 256, "bpe": 320, "unigram": 256}

    def make(kind: str, dtype: Dtype) -> Path:
        path = folder / f"{kind}-{dtype}"
        if not path.exists():
            tokenizer = train_tokenizer(sample, kind, sizes[kind])
            config = CONFIGS["bert" if kind == "wordpiece" else "modernbert-local"]
            config = replace(config, vocab_size=tokenizer.get_vocab_size())
            request = Request(dtype, "web")  # its runtime is in the cache: `web_runtime` has seen to that
            write_bundle(path, config, randomised(config, 3), tokenizer, request, ORIGIN, ONE_SHAPE)
        return path

    return make


KINDS = ["wordpiece", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("word", "bpe", "unigram"))]


@pytest.mark.parametrize("kind", KINDS)
def test_float32_answers_are_pythons(kind: str, made: Any, asked: Callable[[Path], Driven]) -> None:
    path = made(kind, "fp32")
    driven, fill = asked(path), FillMask(path)
    for text, hidden in [*zip(TEXTS, HIDDEN, strict=True), (LONG, (3, 60, 115))]:
        check(beside(driven, fill, text, hidden), FP32_TOLERANCE)


@pytest.mark.slow
def test_characters_without_spaces_are_words_and_added_ones_are_whole(
    web_runtime: dict[str, bytes], tmp_path: Path, open_page: Callable[..., Driven]
) -> None:
    """Chinese is not one button a clause; a line end is read as in training; an added word is found and filled in."""
    tokenizer = with_added(byte_level(), lstrip=True)
    config = replace(CONFIGS["modernbert-local"], vocab_size=tokenizer.get_vocab_size())
    request = Request("fp32", "web")
    write_bundle(tmp_path / "b", config, randomised(config, 3), tokenizer, request, ORIGIN, ONE_SHAPE)
    driven, fill = open_page(tmp_path / "b"), FillMask(tmp_path / "b")
    for text, hidden, asked in (
        ("我感染了，你好 ok", (1,), "我<mask>染了，你好 ok"),
        ("ฉันไปบ้าน", (1,), "ฉั<mask>ไปบ้าน"),
        ("the cat\n    sat here", (2,), "the cat\n    <mask> here"),
        ("we met Deniz and Denizli", (2,), "we met <mask> and Denizli"),
    ):
        check(beside(driven, fill, text, hidden), FP32_TOLERANCE)
        assert driven.text("masked") == asked
    assert "“Deniz” itself is" in driven.text("answers")


@pytest.mark.slow
def test_int8_answers_are_near_pythons(made: Any, open_page: Callable[..., Driven]) -> None:
    path = made("wordpiece", "int8")
    driven, fill = open_page(path), FillMask(path)
    for text, hidden in zip(TEXTS, HIDDEN, strict=True):
        check(beside(driven, fill, text, hidden), INT8_TOLERANCE)


def test_the_hidden_words_rank_is_pythons(made: Any, asked: Callable[[Path], Driven]) -> None:
    path, text, ranks = made("word", "fp32"), " ".join(LONG.split()[:12]), set()
    driven, fill = asked(path), FillMask(path)
    for index, word in enumerate(text.split()):
        driven.ask(text, (index,))
        (target,) = fill(driven.text("masked"), targets=[word])["masks"][0]["candidates"]
        said = "is the first answer" if target["rank"] == 1 else f"is number {target['rank']}, at "
        assert f"“{word}” itself {said}" in driven.page.text_content("#answers .note")
        ranks.add(target["rank"])
    assert len(ranks) > 3


def test_a_hidden_word_of_several_pieces_has_no_rank(made: Any, asked: Callable[[Path], Driven]) -> None:
    driven = asked(made("wordpiece", "fp32"))
    driven.ask("a relationships here", (1,))
    said = driven.page.text_content("#answers .note")
    assert re.fullmatch(
        r"“relationships” is not a single token here \(r\S*( ##\w+)+\), so it cannot be one answer\.", said
    )


def test_the_int8_graph_for_wasm_stores_no_weight_again(made: Any) -> None:
    path = made("wordpiece", "int8")
    manifest = open_bundle(path).manifest
    sizes = {file.name: file.stat().st_size for file in (path / "fast").iterdir()}
    check_onnx(path / WEB_GRAPH, sizes)
    assert sizes["fill_mask_web.onnx"] < sizes["fill_mask.onnx"] + 2000
    assert manifest["parity"]["web"]["int8"]["rms_difference"] < 0.1 * manifest["parity"]["web"]["int8"]["logit_std"]
    assert manifest["graphs"][WEB_GRAPH]["outputs"] == manifest["graphs"][FAST_GRAPH]["outputs"]
    assert WEB_GRAPH not in open_bundle(made("wordpiece", "fp32")).manifest["files"]


def run(environment: dict[str, str], *words: Any) -> str:
    line = [sys.executable, "-m", *map(str, words)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_real_checkpoint(
    shared_data: Path,
    environment: dict[str, str],
    node_modules: Path,
    tmp_path: Path,
    open_page: Callable[..., Driven],
) -> None:
    run(environment, "jax_mlm.hf", "import", shared_data / "weights" / "bert-tiny-english", tmp_path / "run")
    lines = (shared_data / "wikitext-2" / "wiki.valid.tokens").read_text(encoding="utf-8").splitlines()
    paragraphs = [line.strip() for line in lines if len(line) > 200][:10]
    queries = [(" ".join(text.split()[:60]), (5, 20, 33)) for text in paragraphs]
    queries.append((" ".join(paragraphs), (3, 300, 900)))  # longer than the window
    for dtype, tolerance in (("fp32", FP32_TOLERANCE), ("int8", INT8_TOLERANCE)):
        options = ("--dtype", dtype, "--for", "web", "--web-runtime", node_modules)
        run(environment, "mlm_onnx", "convert", tmp_path / "run", tmp_path / dtype, *options)
        driven, fill = open_page(tmp_path / dtype), FillMask(tmp_path / dtype)
        compared = [each for query in queries for each in beside(driven, fill, *query)]
        check(compared, tolerance)
        worst, same = max(each.difference for each in compared), sum(each.same for each in compared)
        print(f"{dtype}: probabilities differ by {worst:.1e} at most, {same} of {len(compared)} first answers agree")


# ---- what people do ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def node_modules(web_runtime: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runtime as `npm install` lays it out."""
    folder = tmp_path_factory.mktemp("node_modules")
    for part in web.PARTS:
        file = folder / part.package / part.inside
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(web_runtime[part.name])
    return folder


@pytest.fixture(scope="module")
def sentence(sentence_run: Any, environment: dict[str, str], node_modules: Path, tmp_path_factory: Any) -> Path:
    """The founding sentence, as its user would convert it."""
    path = tmp_path_factory.mktemp("sentence") / "bundle"
    said = run(
        environment,
        *("mlm_onnx", "convert", sentence_run.path, path, "--for", "web", "--web-runtime", node_modules),
    )
    assert f"python -m http.server --directory {path}" in said
    return path


def test_every_word_of_the_sentence_clicked(sentence: Path, open_page: Callable[..., Driven]) -> None:
    driven, fill = open_page(sentence), FillMask(sentence)
    assert driven.text("sentences").count("creates") >= 1, "the sentence is the example it starts with"
    assert driven.page.get_by_text("measures nothing beyond that sentence").is_visible()
    driven.page.get_by_role("button", name="Show all words").click()
    assert driven.settle().text("status") == "Click a word to hide it."
    for index, word in enumerate(SENTENCE.split()):
        driven.page.locator("#words button").nth(index).click()
        ((first, *_),) = driven.settle().answers()
        expected = fill(driven.text("masked"))["masks"][0]["candidates"][0]
        assert (first[0], expected["token"]) == (expected["id"], word)
        assert first[1] == pytest.approx(expected["probability"], abs=INT8_TOLERANCE)
        assert first[1] >= 0.98
        assert f"“{word}” itself is the first answer." in driven.text("answers")
        driven.page.locator("#words button").nth(index).click()


def test_keyboard_and_screen_reader(sentence: Path, open_page: Callable[..., Driven]) -> None:
    driven = open_page(sentence)
    driven.page.get_by_role("textbox", name="Your sentence").focus()
    for key in ("Tab", "ArrowRight", "ArrowRight", "ArrowRight", "Space"):  # creates is hidden at first; so now is a
        driven.page.keyboard.press(key)
    assert len(driven.settle().answers()) == 2
    assert driven.page.evaluate("document.activeElement.textContent") == "a", "the focus stays"
    assert driven.chip("a").get_attribute("aria-pressed") == "true"
    assert driven.chip("super").get_attribute("aria-pressed") == "false"
    driven.page.keyboard.press("End")
    assert driven.page.evaluate("document.activeElement.textContent") == "word"
    driven.page.keyboard.press("Tab")
    assert driven.page.evaluate("document.activeElement.id") == "count"
    assert driven.page.get_by_role("status").text_content().startswith("First answers: creates ")
    assert driven.page.get_by_role("list", name="Answers 2. Instead of “a”").count() == 1
    unnamed = "nodes => nodes.filter(({ labels, textContent }) => !labels?.length && !textContent.trim()).length"
    assert driven.page.eval_on_selector_all("button, input, select, textarea", unnamed) == 0


@pytest.mark.slow
def test_the_address_carries_what_is_shown(sentence: Path, open_page: Callable[..., Driven]) -> None:
    driven = open_page(sentence)
    driven.page.fill("#sentence", "This model creates a super word")
    driven.chip("super").click()
    driven.page.fill("#count", "5")
    driven.page.press("#count", "Enter")
    first = driven.settle().answers()
    assert [len(candidates) for candidates in first] == [5, 5]
    again = open_page(sentence, driven.page.evaluate("location.hash"))
    assert again.answers() == first
    assert again.page.input_value("#sentence") == "This model creates a super word"


@pytest.mark.slow
def test_examples_can_be_chosen(made: Any, tmp_path: Path, open_page: Callable[..., Driven]) -> None:
    path = Path(shutil.copytree(made("wordpiece", "fp32"), tmp_path / "b"))
    examples = ["one two three four", "five six"]
    manifest = open_bundle(path).manifest
    seal(path, {**manifest, "examples": examples})
    driven = open_page(path)
    chosen = driven.page.get_by_role("combobox", name="Examples")
    assert chosen.input_value() == examples[0]
    assert driven.text("masked") == "one two [MASK] four"
    chosen.select_option(examples[1])
    assert driven.settle().text("masked") == "five [MASK]"
    driven.page.fill("#sentence", "seven eight")
    assert driven.settle().text("status") == "Click a word to hide it."
    assert chosen.input_value() == "", "so that any can be chosen"
    assert open_page(made("bpe", "fp32")).text("status") == "Write a sentence first.", "no examples"


@pytest.mark.slow
def test_typing_keeps_the_words_that_stay(sentence: Path, open_page: Callable[..., Driven]) -> None:
    driven = open_page(sentence)
    driven.page.press("#sentence", "End")
    driven.page.type("#sentence", " and")
    assert driven.settle().text("masked") == SENTENCE.replace("creates", "[MASK]") + " and"
    assert "read as unknown: and" in driven.text("notes")
    driven.page.fill("#sentence", "This [MASK] creates")
    assert driven.settle().text("masked") == "This [MASK] [MASK]", "a mask that was typed, and the word clicked before"
    assert "At [MASK]" in driven.text("answers")


@pytest.mark.slow
def test_what_is_typed_while_the_model_loads_stays(sentence: Path, chromium: Browser, serve: Any) -> None:
    page, held = chromium.new_page(), []
    page.route("**/fast/fill_mask.onnx.data*", lambda route: held.append(route))
    page.goto(serve(sentence))
    page.get_by_text(re.compile("Loading the model: [1-9][0-9]* %")).wait_for()
    page.fill("#sentence", "This model creates")
    assert page.is_disabled("#count")
    while not held:
        page.wait_for_timeout(20)
    held[0].continue_()
    page.wait_for_selector("#results[aria-busy=false]", state="attached")
    assert page.text_content("#masked") == "This model [MASK]"
    assert page.is_enabled("#count")
    page.close()


BAD: Sequence[tuple[str, Sequence[int], str]] = (
    ("", (), "Write a sentence first."),
    ("This model creates", (), "Click a word to hide it."),
    ("This model creates", (0, 1, 2), "Every word is hidden: leave the model some"),
    ("This <mask> creates", (), "<mask> is not this model's mask: write [MASK]"),
    ("word " * 40, range(33), "33 words are hidden; the limit is 32."),
)


def test_bad_input_gets_a_friendly_line(sentence: Path, open_page: Callable[..., Driven]) -> None:
    driven = open_page(sentence)
    for text, hidden, said in BAD:
        assert driven.ask(text, hidden) == []
        assert said in driven.text("status")
        assert driven.ask("This model creates", (1,)), "it goes on"
    driven.page.fill("#sentence", "x" * 20_001)
    assert "this page takes up to 20000" in driven.settle().text("status")


@pytest.mark.slow
def test_nothing_overflows_a_narrow_screen(sentence: Path, open_page: Callable[..., Driven]) -> None:
    driven = open_page(sentence, viewport={"width": 375, "height": 700})
    for text in (SENTENCE, f"This {'very' * 60} {'x' * 300} word", "This model creates a word, " * 40):
        driven.ask(text, (2, 3))
        for scheme in ("light", "dark"):
            driven.page.emulate_media(color_scheme=scheme)
            widths = "[document.documentElement.scrollWidth, innerWidth]"
            assert driven.page.evaluate(widths) == [375, 375]
            assert driven.contrast("h1", "header p", ".note", "#status", ".words [aria-pressed=true]") >= 4.5


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("fast/fill_mask.onnx.data", lambda file: os.truncate(file, 1000), "has 1000 bytes, not"),
        ("tokenizer.json", Path.unlink, "The server has no tokenizer.json (404)"),
    ],
)
def test_a_damaged_bundle_is_named(
    name: str,
    change: Callable[[Path], object],
    said: str,
    sentence: Path,
    tmp_path: Path,
    chromium: Browser,
    serve: Any,
) -> None:
    change(Path(shutil.copytree(sentence, tmp_path / "copy")) / name)
    page = chromium.new_page()
    page.goto(serve(tmp_path / "copy"))
    page.wait_for_selector("#status.problem")
    assert said in page.text_content("#status")
    assert page.is_hidden("#loading")
    page.close()
