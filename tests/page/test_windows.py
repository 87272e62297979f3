"""The page's windows.js, in Node: texts are read as Python reads them, with every kind of tokenizer."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlm_onnx.answer.windows import WindowReader
from mlm_onnx.bundle.layout import Head
from support.bundles import KINDS, TEXTS, piecewise
from support.paths import ROOT
from support.tokenizers import MADE, bundle_of

from jax_mlm.data.tokenizer import vocabulary_of

SCRIPT = Path(__file__).parent / "windows_in_node.mjs"
PAGE = ROOT / "export" / "mlm_onnx" / "page"
LENGTH, OVERLAP = 24, 4
TOKENIZERS = {**MADE, **{f"{kind}, trained": lambda kind=kind: piecewise(kind) for kind in KINDS}}
SAMPLE = [
    *TEXTS[:2],
    " ".join(TEXTS[2:6]),
    "",
    "  spaces   around\tand\nwithin  \u3000",
    "a [MASK] and a [SEP] <mask> </s> in the text, [UNK] and <unk> too",
    "The CAFÉ's cafe\u0301 née ne\u0301e, ﬁne ½ Straße İstanbul ΟΔΟΣ ΟΔΟΣ.",
    "東京 is 我爱你们在家 x😀😀y 👩\u200d🚀 \u200bzero\u00adsoft",
    "the cat sat here; met Deniz and Denizli, (def) today: the\n    cat met the the",
    "x",
    "한국어 \u1112\u1161\u11ab नमस्ते ไทย e\u0323\u0301",
]


@pytest.fixture(scope="module")
def both(web_runtime: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what Python's reader needs for each kind of tokenizer, and what windows.js makes of the sample."""
    node = shutil.which("node") or pytest.skip("needs Node.js")
    folder = tmp_path_factory.mktemp("page")
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "tokenizers.js").write_bytes(web_runtime["tokenizers.js"])
    for name in ("problem.js", "tokenizer.js", "tasks/offsets.js", "tasks/windows.js"):
        (folder / Path(name).name).write_bytes((PAGE / name).read_bytes())
    bundles, questions = {}, {}
    for kind, make in TOKENIZERS.items():
        tokenizer, here = make(), folder / kind
        here.mkdir()
        unk = vocabulary_of(tokenizer).unk
        tokens = {} if unk is None else {"unk": {"text": tokenizer.id_to_token(unk), "id": unk}}
        bundles[kind] = bundle_of(tokenizer, here, LENGTH, tokens=tokens)
        manifest = {"limits": {"max_length": LENGTH}, "windows": {"overlap": OVERLAP}, "tokens": tokens}
        questions[kind] = {"tokenizer": json.loads(tokenizer.to_str()), "manifest": manifest, "texts": SAMPLE}
    (folder / "questions.json").write_text(json.dumps(questions))
    done = subprocess.run([node, SCRIPT, folder, folder / "questions.json"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return bundles, json.loads(done.stdout)


def head(types: bool = True) -> Head:
    return Head((), "single", False, OVERLAP, types, 6, False)


def rows_of(found: Any) -> list[Any]:
    return [(row["inputs"]["input_ids"], row["inputs"]["positions"]) for row in found["rows"]]


def plain(rows: Any) -> list[Any]:
    return [(row.ids.tolist(), row.at.tolist()) for row in rows]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_texts_words_and_questions_are_read_alike(kind: str, both: Any) -> None:
    bundle, found = both[0][kind], both[1][kind]
    alone, paired = WindowReader(bundle, head(), False), WindowReader(bundle, head(), True)
    for i, text in enumerate(SAMPLE):
        other = SAMPLE[(i + 1) % len(SAMPLE)]
        for theirs, ours in ((found["texts"][i], alone.texts(text)), (found["pairs"][i], paired.texts(text, other))):
            assert rows_of(theirs) == plain(part.row for part in ours.parts), text
            np.testing.assert_allclose(theirs["shares"], [part.share for part in ours.parts])
            assert theirs["leftOut"] == ours.left_out
        words = alone.words(text)
        assert [(each["start"], each["end"]) for each in found["words"][i]["words"]] == words.spans, text
        assert rows_of(found["words"][i]) == plain(words.rows), text
        asked = paired.question(text, other)
        assert rows_of(found["questions"][i]) == plain(asked.rows), text
        spans = [span or [0, 0] for row in found["questions"][i]["rows"] for span in row["spans"]]
        assert np.array_equal(np.reshape(spans, (-1, 2)), asked.offsets), other


def test_a_text_may_have_any_number_of_words(both: Any) -> None:
    assert both[1]["long"] == 150_000
