"""The page's pieces.js, in Node: the table of cases that tests/answer reads gives the same there."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT
from support.tokenizers import CASES, MADE

from jax_mlm.data.tokenizer import mask_of

SCRIPT = Path(__file__).parent / "pieces_in_node.mjs"
PAGE = ROOT / "export" / "mlm_onnx" / "page"


@pytest.fixture(scope="module")
def answers(web_runtime: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What pieces.js makes of the whole table."""
    node = shutil.which("node") or pytest.skip("needs Node.js")
    folder = tmp_path_factory.mktemp("page")
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "tokenizers.js").write_bytes(web_runtime["tokenizers.js"])
    for file in (PAGE / "tokenizer.js", PAGE / "fill" / "pieces.js"):
        (folder / file.name).write_bytes(file.read_bytes())
    questions = {}
    for kind, make in MADE.items():
        tokenizer = make()
        mask = mask_of(tokenizer)
        named = {"id": mask, "text": tokenizer.id_to_token(mask)}
        questions[kind] = {"tokenizer": json.loads(tokenizer.to_str()), "mask": named, "cases": CASES[kind]}
    (folder / "questions.json").write_text(json.dumps(questions))
    done = subprocess.run([node, SCRIPT, folder, folder / "questions.json"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", MADE)
def test_the_page_reads_the_table_alike(kind: str, answers: dict[str, Any]) -> None:
    tokenizer, cases, found = MADE[kind](), CASES[kind], answers[kind]
    for text, tokens in cases["reads"].items():
        assert found["reads"][text] == [tokenizer.token_to_id(token) for token in tokens], text
    for piece, expected in cases["pieces"].items():
        shown = expected["shown"].replace("\n", "\\n")  # a page has no line for it
        assert found["pieces"][piece] == {**expected, "shown": shown}
    assert found["several"] == [filled for _, _, filled in cases.get("several", ())]
    for word, places in cases["targets"].items():
        for before, token in places.items():
            ids = found["targets"][word][before]
            known = len(ids) == 1 and ids[0] != tokenizer.token_to_id("[UNK]")
            assert (ids[0] if known else None) == (token and tokenizer.token_to_id(token)), (word, before)
