"""Every kind of tokenizer.json that people have: one table of cases, which tests/page reads as well."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from mlm_onnx.answer.pieces import Pieces
from support.tokenizers import CASES, MADE, reader_of

from jax_mlm.data.tokenizer import load_tokenizer, mask_of


@pytest.mark.parametrize("kind", MADE)
def test_queries_pieces_and_targets_are_those_of_the_table(kind: str, tmp_path: Path) -> None:
    tokenizer: Any = MADE[kind]()
    cases, mask = CASES[kind], tokenizer.id_to_token(mask_of(tokenizer))
    reader, pieces = reader_of(tokenizer, tmp_path), Pieces(tokenizer)
    for text, tokens in cases["reads"].items():
        read = reader.masked(text.replace("M", mask))
        assert read.ids.tolist() == [tokenizer.token_to_id(token) for token in tokens], text
        starts = [at for at, _ in read.spans]
        assert all(text.replace("M", mask)[at : at + len(mask)] == mask for at in starts)
        assert all(0 <= start <= end <= len(read.text) for start, end in read.offsets)
    for piece, expected in cases["pieces"].items():
        id = tokenizer.token_to_id(piece)
        assert pieces.shown(id) == expected["shown"], piece
        for text, filled in expected["filled"].items():
            start = text.index("M")
            real = text.replace("M", mask)
            assert pieces.fill(real, start, start + len(mask), id) == filled, (piece, text)
    for text, filling, filled in cases.get("several", ()):
        real = text.replace("M", mask)
        spans = [found.span() for found in re.finditer(re.escape(mask), real)]
        assert pieces.fill_all(real, spans, [tokenizer.token_to_id(piece) for piece in filling]) == filled, text
    for word, places in cases["targets"].items():
        for before, token in places.items():
            ids = pieces.of(word, before)
            known = len(ids) == 1 and ids[0] != tokenizer.token_to_id("[UNK]")
            assert (ids[0] if known else None) == (token and tokenizer.token_to_id(token)), (word, before)


def test_no_marker_is_shown_and_nothing_but_one_space_changes() -> None:
    marks = ("Ġ", "▁", "</w>", "Ċ", "<0x")
    for kind, cases in CASES.items():
        for piece, expected in cases["pieces"].items():
            assert not any(mark in expected["shown"] for mark in marks), kind
            surface = expected["shown"].removeprefix("##").strip(" ") or " "
            for text, filled in expected["filled"].items():
                before, after = text.split("M")
                allowed = {
                    before + left + surface + right + after[cut:]
                    for left in ("", " ")
                    for right in ("", " ")
                    for cut in (0, 1)
                } | {before[:-1] + surface + after}
                assert filled in allowed or filled.strip() == text.replace("M", "").strip(), (kind, piece, text)


def test_the_table_has_every_kind() -> None:
    assert set(CASES) == set(MADE)


@pytest.mark.parametrize("kind", ["byte-level", "gemma", "unigram", "bpe with ▁"])
def test_what_stands_before_a_mask_is_read_as_before_a_word(kind: str, tmp_path: Path) -> None:
    """Line ends and indentation are in the query as they are in training, where a word was masked after encoding."""
    tokenizer: Any = MADE[kind]()
    reader, mask = reader_of(tokenizer, tmp_path), tokenizer.id_to_token(mask_of(tokenizer))
    for layout in ("\n", "\n    ", "\n\n  ", "\t", "\n\t", "  \n "):
        text = f"sat{layout}the cat"
        trained = tokenizer.encode(text)
        at = next(i for i, (start, end) in enumerate(trained.offsets) if start <= len(f"sat{layout}") < end)
        query = reader.masked(text.replace("the", mask))
        assert query.ids[: query.at[0]].tolist() == trained.ids[:at], repr(layout)
        assert query.spans == ((len(f"sat{layout}"), len(f"sat{layout}") + len(mask)),)
        assert [text[a:b] for a, b in query.offsets[1 : query.at[0]]] == [text[a:b] for a, b in trained.offsets[1:at]]


@pytest.mark.parametrize("kind", MADE)
def test_a_file_without_a_decoder_is_read_as_its_marks_say(kind: str, tmp_path: Path) -> None:
    tokenizer: Any = MADE[kind]()
    content = json.loads(tokenizer.to_str())
    if content["decoder"] is None or content["decoder"]["type"] == "Fuse":
        return
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, "decoder": None}))
    ours, theirs = Pieces(load_tokenizer(tmp_path / "tokenizer.json")), Pieces(tokenizer)
    for id in range(tokenizer.get_vocab_size()):
        assert (ours.shown(id), ours.read(id)) == (theirs.shown(id), theirs.read(id))
