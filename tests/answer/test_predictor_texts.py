"""Long texts through windows, several masks together, and which words an answer depends on."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlm_onnx import FillMask, QueryError
from mlm_onnx.__main__ import main
from mlm_onnx.answer.explain import words_of
from mlm_onnx.answer.joint import fill_jointly
from mlm_onnx.answer.reader import Reader, Text
from mlm_onnx.answer.words import words_among
from mlm_onnx.bundle.layout import MANIFEST, TOKENIZER, Limits, Special
from mlm_onnx.bundle.read import Bundle
from mlm_onnx.bundle.write import seal
from mlm_onnx.convert import Request, write_bundle
from support.bundles import KINDS, ONE_SHAPE, ORIGIN, SENTENCE_MODEL, TEXTS, piecewise
from support.models import randomised
from support.scripts import lines_of
from support.texts import ROOM, long_text
from support.tokenizers import byte_level

from jax_mlm.data.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def fill(sentence_bundles: dict[str, Path]) -> FillMask:
    return FillMask(sentence_bundles["fp32"], threads=1)


@pytest.fixture(scope="session")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    """Tokenizers that frame a text, in a window of twenty tokens; there is no model."""
    found = {}
    for kind in KINDS:
        folder, tokenizer = tmp_path_factory.mktemp(kind), piecewise(kind)
        tokenizer.save(str(folder / TOKENIZER))
        seal(folder, {})
        special = Special("[MASK]", tokenizer.token_to_id("[MASK]"), tokenizer.token_to_id("[PAD]"), ())
        manifest = json.loads((folder / MANIFEST).read_text())
        found[kind] = Reader(Bundle(folder, manifest, Limits(20, 5), special, tokenizer.get_vocab_size()))
    return found


def candidates(mask: dict) -> dict[str, float]:
    return {each["token"]: each["probability"] for each in mask["candidates"]}


# ---- windows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 5, 31, 32, 150, 268, 269, 299])
def test_a_long_text_is_answered_as_the_window_around_its_mask(fill: FillMask, at: int) -> None:
    words = long_text(300, at)
    first = min(max(0, at - ROOM // 2), 300 - ROOM)
    near = " ".join(words[first : first + ROOM])
    (mask,), (expected,) = fill(" ".join(words))["masks"], fill(near)["masks"]
    assert "window" not in expected
    assert " ".join(words)[mask["window"]["start"] : mask["window"]["end"]] == near
    assert mask["position"] == at
    assert candidates(mask) == pytest.approx(candidates(expected), abs=1e-6)
    changed = [*words[:first], "x", *words[first:]] if first else [*words, "x"]
    assert candidates(fill(" ".join(changed))["masks"][0]) == pytest.approx(candidates(expected), abs=1e-6)


def test_each_mask_has_its_own_window_and_sees_the_others(fill: FillMask) -> None:
    words = long_text(200, 10, 20, 190)
    masks = fill(" ".join(words))["masks"]
    assert [mask["position"] for mask in masks] == [10, 20, 190]
    first, second = fill(" ".join(words[:ROOM]))["masks"]
    assert candidates(masks[0]) == pytest.approx(candidates(first), abs=1e-6)
    assert candidates(masks[1]) == pytest.approx(candidates(second), abs=1e-6)
    assert masks[2]["candidates"][0]["text"].count("[MASK]") == 2


def test_windows_begin_where_texts_no_longer_fit(fill: FillMask) -> None:
    assert "window" not in fill(" ".join(long_text(ROOM, 3)))["masks"][0]
    assert "window" in fill(" ".join(long_text(ROOM + 1, 3)))["masks"][0]
    short, long = " ".join(long_text(9, 3)), " ".join(long_text(400, 200))
    together = fill([short, long, short])
    assert [answer["text"] for answer in together] == [short, long, short]
    assert "window" in together[1]["masks"][0]
    assert candidates(together[1]["masks"][0]) == pytest.approx(candidates(fill(long)["masks"][0]), abs=1e-5)


def test_a_long_score_hides_each_token_in_its_window(fill: FillMask) -> None:
    words = long_text(150)
    answer = fill.score(" ".join(words))
    assert [token["token"] for token in answer["tokens"]] == words
    for at in (0, 40, 100, 149):
        hidden = " ".join("[MASK]" if i == at else word for i, word in enumerate(words))
        (found,) = fill(hidden, targets=[words[at]])["masks"][0]["candidates"]
        assert answer["tokens"][at]["logprob"] == pytest.approx(math.log(found["probability"]), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_window_keeps_the_frame(readers: dict[str, Reader], kind: str) -> None:
    reader = readers[kind]
    frame = reader.tokenizer.encode("").ids
    assert len(frame) == 2
    for before, after in ((0, 60), (3, 60), (30, 30), (60, 3), (60, 0)):
        text = reader.masked("the cat " * before + "[MASK]" + " was playing" * after)
        row = reader.row(text, int(text.at[0]))
        assert len(row.ids) == 20
        assert [row.ids[0], row.ids[-1]] == frame
        assert row.ids[row.at[0]] == reader.bundle.special.mask_id
        assert not np.isin(row.ids[1:-1], frame).any()
        if min(before, after) >= 30:
            assert abs(int(row.at[0]) - 10) <= 1, "in the middle"
    short = reader.masked("the cat [MASK]")
    assert reader.row(short, int(short.at[0])).ids.tolist() == short.ids.tolist()


# ---- several masks together -------------------------------------------------------------------------


def test_a_wide_beam_finds_the_best_order_of_all(fill: FillMask) -> None:
    """With room for every filling, the beam is the brute force: each filling at its best order."""
    text = "[MASK] model creates [MASK] super [MASK]"
    query = fill.reader.masked(text)
    ids = [id for id in range(16) if id not in fill.bundle.special.excluded][:4]
    found = fill_jointly(query, fill._ask, [lambda row, k: np.array(ids)] * 3, 10_000)
    assert len(found) == 4**3
    best: dict[tuple[int, ...], float] = {}
    for order in itertools.permutations(range(3)):
        for filling in itertools.product(ids, repeat=3):
            tokens, total = query.ids.copy(), 0.0
            for mask in order:
                asked = [(query.with_ids(tokens), query.at[[mask]])]
                ((logprob,),) = fill._ask(asked, lambda _text, _mask, row, id=filling[mask]: float(row[id]))
                total += logprob
                tokens[query.at[mask]] = filling[mask]
            best[filling] = max(total, best.get(filling, -math.inf))
    for filling in found:
        assert filling.logprob == pytest.approx(best[tuple(id for _, id in sorted(filling.ids))], abs=1e-4)
    assert [filling.logprob for filling in found] == sorted((filling.logprob for filling in found), reverse=True)


def test_joint_answers_follow_their_own_order(fill: FillMask) -> None:
    text = "This [MASK] creates a [MASK]"
    answer = fill(text, top_k=4, joint=True)
    assert answer["masks"] == fill(text, top_k=4)["masks"], "marginals stay"
    assert len(answer["pseudo_joint"]) == 4
    for filling in answer["pseudo_joint"]:
        first, second = filling["order"]
        tokens = filling["tokens"]
        chosen = fill(text, targets=[tokens[first]])["masks"][first]["candidates"][0]
        left = fill(chosen["text"], targets=[tokens[second]])["masks"][0]["candidates"][0]
        total = math.log(chosen["probability"]) + math.log(left["probability"])
        assert filling["logprob"] == pytest.approx(total, abs=1e-4)
        assert filling["text"] == f"This {tokens[0]} creates a {tokens[1]}"
    assert fill("a [MASK]", joint=True)["pseudo_joint"][0]["order"] == [0]
    chosen = fill(text, targets=["words", "model"], joint=True)["pseudo_joint"]
    assert {token for filling in chosen for token in filling["tokens"]} == {"words", "model"}
    with pytest.raises(QueryError, match="17 masks; the limit for joint answers and explanations is 16"):
        fill("a [MASK] " * 17, joint=True)


def test_joint_works_through_windows(fill: FillMask) -> None:
    words = long_text(200, 100, 102)
    (best, *_) = fill(" ".join(words), joint=True)["pseudo_joint"]
    (near, *_) = fill(" ".join(words[69:133]), joint=True)["pseudo_joint"]
    assert len(best["text"].split()) == 200
    assert best["tokens"] == near["tokens"]


# ---- which words an answer depends on -----------------------------------------------------------------


def test_explain_hides_each_other_word(fill: FillMask) -> None:
    text = "This [MASK] creates a super [MASK]"
    answer = fill.explain(text)
    plain = fill(text, top_k=1)["masks"]
    for at, (mask, known) in enumerate(zip(answer["masks"], plain, strict=True)):
        assert mask["token"] == known["candidates"][0]["token"]
        assert mask["probability"] == pytest.approx(known["candidates"][0]["probability"], abs=1e-5)
        assert [word["word"] for word in mask["words"]] == ["This", "creates", "a", "super"]
        for word in mask["words"]:
            assert text[word["start"] : word["end"]] == word["word"]
            hidden = text[: word["start"]] + "[MASK]" + text[word["end"] :]
            masks = fill(hidden, targets=[mask["token"]])["masks"]
            found = next(m for m in masks if m["position"] == mask["position"])["candidates"][0]["probability"]
            assert word["probability"] == pytest.approx(found, abs=1e-5)
            assert word["effect"] == pytest.approx(math.log(mask["probability"] / found), abs=1e-3)
            likeliest = next(m for m in fill(hidden, top_k=1)["masks"] if m["position"] == mask["position"])
            assert word["instead"] == likeliest["candidates"][0]["token"]
        assert mask["start"] == plain[at]["start"]
    chosen = fill.explain(text, "words")["masks"][0]
    assert chosen["token"] == "words"
    assert fill.explain([text, text])[1] == answer
    assert fill.explain(["a [MASK]"])[0]["masks"][0]["words"][0]["word"] == "a"


def test_explain_sees_what_the_window_holds(fill: FillMask) -> None:
    words = long_text(200, 100, 3)
    first, second = fill.explain(" ".join(words))["masks"]
    assert [word["word"] for word in second["words"]] == [*words[68:100], *words[101:132]]
    assert len(first["words"]) == ROOM - 1


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_whole(readers: dict[str, Reader], kind: str) -> None:
    text = "The cat was [MASK] in the gardening, playing."
    found = words_of(readers[kind].masked(text))
    shown = [text[word.start : word.end] for word in found]
    assert "".join(shown) == text.replace("[MASK]", "").replace(" ", "")
    assert {"cat", "was"} <= set(shown)
    assert max(len(word.positions) for word in found) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_clause_without_spaces_is_explained_by_its_tokens(kind: str) -> None:
    lines = lines_of("Chinese", 300, seed=0)
    tokenizer = train_tokenizer([*lines, *TEXTS[:300]], kind, 320)
    clause = "我喜欢学习中文。他们在家休息。"
    read = tokenizer.encode(clause, add_special_tokens=False)
    found = words_of(Text(clause, np.array(read.ids), read.offsets, (0, 0), np.array([], int), ()))
    shown = [clause[word.start : word.end] for word in found]
    assert "".join(shown) == clause
    assert "。" in shown
    assert len(shown) > 6, "not two clauses"


# ---- targets that are more than one token -----------------------------------------------------------


def test_first_pieces_are_said_so(tmp_path: Path) -> None:
    tokenizer = piecewise("wordpiece")
    model = replace(SENTENCE_MODEL, vocab_size=tokenizer.get_vocab_size())
    write_bundle(tmp_path / "b", model, randomised(model), tokenizer, Request(), ORIGIN, ONE_SHAPE)
    fill, text = FillMask(tmp_path / "b"), "The cat [MASK] in the garden."
    with pytest.raises(QueryError, match=r"'gardener' is not one token .* split into garden ##.* first_piece"):
        fill(text, targets=["gardener"])
    words = ["gardener", "cat", "gardens"]
    found = fill(text, targets=words, first_piece=True)["masks"][0]["candidates"]
    said = {each["token"]: each.get("first_piece_of") for each in found}
    assert said == {"garden": ["gardener", "gardens"], "cat": None}
    with pytest.raises(QueryError, match="not one token"):
        fill(text, targets=["\u4e00\u4e01"], first_piece=True)
    assert fill.explain(text, "gardener", first_piece=True)["masks"][0]["first_piece_of"] == ["gardener"]
    assert main(["fill", str(tmp_path / "b"), text, "--targets", "gardener", "--first-piece"]) == 0


def test_a_protein_is_explained_by_its_tokens_and_a_word_stays_whole() -> None:
    protein, word = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEK", "unbelievably"
    every = [(at, at + 1) for at in range(len(protein))]
    assert words_among(protein, every, range(len(protein))) == [[at] for at in range(len(protein))]
    assert words_among(word, every[: len(word)], range(len(word))) == [list(range(len(word)))]


# ---- targets where the mask stands -----------------------------------------------------------------


def test_a_target_is_the_piece_that_is_written_where_the_mask_stands(tmp_path: Path) -> None:
    """With a vocabulary that marks spaces, a word is another piece at the start of a text than after a space."""
    tokenizer = byte_level()
    model = replace(SENTENCE_MODEL, vocab_size=tokenizer.get_vocab_size())
    write_bundle(tmp_path / "b", model, randomised(model), tokenizer, Request("fp32"), ORIGIN, ONE_SHAPE)
    fill = FillMask(tmp_path / "b")
    start, spaced = tokenizer.token_to_id("the"), tokenizer.token_to_id("Ġthe")
    for text, id in (("<mask> cat", start), ("cat <mask> sat", spaced), ("cat\n<mask>", start), ("(<mask>)", start)):
        (found,) = fill(text, targets=["the"])["masks"][0]["candidates"]
        assert found["id"] == id, text
        assert found["text"] == text.replace("<mask>", "the")
        assert fill.explain(text, "the")["masks"][0]["id"] == id
        everything = fill(text, top_k=len(tokenizer.get_vocab()) - 5)["masks"][0]["candidates"]
        assert found["probability"] == pytest.approx(
            next(each["probability"] for each in everything if each["id"] == id), abs=1e-6
        )
    assert fill("<mask> cat", targets=[" the"])["masks"][0]["candidates"][0]["id"] == spaced
    assert {each["id"] for each in fill("<mask> cat", targets=iter(["the", " the"]))["masks"][0]["candidates"]} == {
        start,
        spaced,
    }
    both = fill("<mask> cat <mask> sat", targets=["the", "here"], joint=True)
    here = tokenizer.token_to_id("Ġhere")
    for filling in both["pseudo_joint"]:
        assert set(filling["ids"][:1]) <= {start, here}
        assert set(filling["ids"][1:]) <= {spaced, here}


# ---- commands ---------------------------------------------------------------------------------------


def test_joint_and_explain_print(sentence_bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    bundle, text = str(sentence_bundles["int8"]), "This [MASK] creates a [MASK]"
    assert main(["fill", bundle, text, "--joint", "--top-k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].startswith("together (pseudo-joint")
    assert lines[-1].split(maxsplit=1)[1].startswith("This ")
    assert main(["fill", bundle, text, "--joint", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"text", "masks", "pseudo_joint"}
    assert main(["explain", bundle, text]) == 0
    assert "without each other word" in capsys.readouterr().out
    assert main(["explain", bundle, text, "--target", "words", "--json"]) == 0
    (first, _) = json.loads(capsys.readouterr().out)["masks"]
    assert first["token"] == "words"
    assert set(first["words"][0]) == {"word", "start", "end", "probability", "effect", "instead"}
