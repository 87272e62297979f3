"""The kind of tokenizer that fits a text is found by a sample of it."""

from __future__ import annotations

import random

import pytest

from jax_mlm.data.choice import FITS, choose_kind, misfit
from jax_mlm.presets import PRESETS
from jax_mlm.train.budget import SIZES

DRAW = random.Random(0)


def drawn(alphabet: str, low: int, high: int, lines: int = 200) -> list[str]:
    return ["".join(DRAW.choices(alphabet, k=DRAW.randint(low, high))) for _ in range(lines)]


PROSE = {
    "english": "The old river ran under the bridge (near the mill), and nobody crossed it; a boat waited.",
    "german": "Die Donaudampfschifffahrtsgesellschaft beschäftigte um 1900 viele Kapitäne und Matrosen.",
    "turkish": "İstanbul'da çok güzel bir gün geçirdik ve sonra eve döndük.",
    "hindi": "मैं घर जा रहा हूँ और वह स्कूल जाती है।",
    "arabic": "ذهبت إلى السوق واشتريت بعض الخبز الطازج.",
    "korean": "백신을 맞았다. 그리고 집에 가서 쉬었다.",
    "amharic": "ወደ ቤት እየሄድኩ ነው እና እሷ ወደ ትምህርት ቤት ትሄዳለች።",
    "wikitext": " = = Plot = = \n The game 's battle system , the <unk> system , is carried over @-@ directly from "
    "During missions , players select each unit using a top @-@ down perspective of the battlefield map",
    "some chinese": "The word for river is 河 and that for mountain is 山, as every traveller in China knows.",
    "kmers": "ATGCGA TGCGAT GCGATT CGATTA GATTAC ATTACA",
    "residues": "M K T A Y I A K Q R Q I S F V K S H F S R Q",
}
UNSPACED = {
    "chinese": "我感染了新冠肺炎病毒，我在家休息。",
    "japanese": "私は昨日東京に行きました。とても楽しかったです。",
    "thai": "ฉันติดเชื้อโควิดเมื่อวานนี้และพักอยู่ที่บ้าน",
    "lao": "ຂ້ອຍຢູ່ເຮືອນ", "khmer": "ខ្ញុំនៅផ្ទះ", "burmese": "ကျွန်တော်အိမ်မှာနေတယ်", "tibetan": "བོད་སྐད་ཀྱི་ཡི་གེ།",
    "chinese with english": "我在家休息，然后用 Python 写代码，很开心。",
}  # fmt: skip
LETTERS = {
    "proteins": drawn("ACDEFGHIKLMNPQRSTVWY", 30, 400),
    "peptides": drawn("ACDEFGHIKLMNPQRSTVWY", 8, 12),
    "dna": drawn("ACGT", 60, 60),
    "soft-masked dna": drawn("acgt", 8, 11),
    "fasta": [line for part in drawn("ACDEFGHIKLMNPQRSTVWY", 60, 60) for line in (">sp|P1|X", part)],
    "smiles": ["CC(=O)Oc1ccccc1C(=O)O", "CCO", "c1ccccc1", "CN1C=NC2=C1C(=O)N(C(=O)N2C)C", "O=C(O)c1ccccc1"],
    "hashes": drawn("0123456789abcdef", 40, 40),
}
CODE = {
    "python": "def f(x: list[int]) -> int:\n    return sum(x[i] for i in range(len(x)))\n\nprint(f([1, 2, 3]))",
    "c": 'int main(void) {\n\tfor (int i = 0; i < 10; i++) { printf("%d", i); }\n\treturn 0;\n}',
    "html": '<div class="a"><p>some words</p><a href="x">more words of a page</a></div>',
    "json": '{"name": "x", "values": [1, 2, 3], "nested": {"a": true}}',
}
CASES = [
    *(("prose", name, [text] * 9) for name, text in PROSE.items()),
    *(("unspaced", name, [text] * 9) for name, text in UNSPACED.items()),
    *(("letters", name, texts) for name, texts in LETTERS.items()),
    *(("code", name, [text] * 9) for name, text in CODE.items()),
]


@pytest.mark.parametrize(("nature", "name", "texts"), CASES, ids=[name for _, name, _ in CASES])
def test_the_kind_follows_what_the_text_is(nature: str, name: str, texts: list[str]) -> None:
    choice = choose_kind(texts)
    assert (choice.nature, choice.kind) == (nature, FITS[nature])
    assert misfit(choice.kind, choice) is None


def test_a_kind_that_does_not_fit_is_told_what_is_lost() -> None:
    bad = {
        "unspaced": ("word", "wordpiece"),
        "letters": ("word", "wordpiece"),
        "code": ("word", "wordpiece", "unigram"),
    }
    for nature, _, texts in CASES:
        choice = choose_kind(texts)
        if not choice.reason.endswith("(mostly Han)"):
            for kind in bad.get(nature, ()):
                assert choice.reason in str(misfit(kind, choice))
    han = choose_kind([UNSPACED["chinese"]] * 9)
    assert misfit("wordpiece", han) is None, "BERT's WordPiece lets each Han character stand alone"
    assert misfit("word", han)


def test_the_presets_of_published_models_keep_their_kinds() -> None:
    kinds = {name: config.corpus.tokenizer_kind for name, config in PRESETS.items()}
    assert {name for name, kind in kinds.items() if kind == "auto"} == set(SIZES)
    published = {"bert": "wordpiece", "distilbert": "wordpiece", "roberta": "bpe", "albert": "unigram"}
    for name, kind in kinds.items():
        assert kind == published.get(name.split("-")[0], kind)
