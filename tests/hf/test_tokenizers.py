"""The tokenizer files of a directory: what they say is done, what they leave open is said, the rest is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.bundles import TEXTS
from support.models import HF_BERT, MODELS, randomised
from tokenizers import Tokenizer

from jax_mlm.data.alphabet import ESM, alphabet_tokenizer
from jax_mlm.data.tokenizer import mask_of, train_tokenizer, vocabulary_of
from jax_mlm.errors import UserError
from jax_mlm.hf.__main__ import main
from jax_mlm.hf.config import hf_config
from jax_mlm.hf.tokenizer import hf_tokenizer, read_tokenizer
from jax_mlm.hf.weights import write_params

BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ATOMS = (*BERT, *dict.fromkeys("CcNnOo()=123#lBr"))
ROLES = ("pad", "unk", "cls", "sep", "mask")


def vocab_txt(folder: Path, *entries: str) -> None:
    (folder / "vocab.txt").write_text("\n".join(entries) + "\n", encoding="utf-8")


def chem(folder: Path, tokens: tuple[str, ...] = ATOMS, **options: Any) -> None:
    (folder / "vocab.json").write_text(json.dumps({token: id for id, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    options = options or {f"{role}_token": token for role, token in zip(ROLES, tokens, strict=False)}
    (folder / "special_tokens_map.json").write_text(json.dumps(options))


def tokens(folder: Path, text: str, *pair: str) -> list[str]:
    return hf_tokenizer(folder).encode(text, *pair).tokens


def write_config(folder: Path, **options: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(options))


# ---- casing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lowercase", [False, True])
def test_a_vocabulary_tells_its_own_casing(lowercase: bool, tmp_path: Path) -> None:
    trained = train_tokenizer(TEXTS, "wordpiece", 320, lowercase=lowercase)
    vocab = trained.get_vocab()
    vocab_txt(tmp_path, *sorted(vocab, key=vocab.__getitem__))
    built, remarks = read_tokenizer(tmp_path)
    assert built.encode("The cat was In the garden").ids == trained.encode("The cat was In the garden").ids
    assert "do_lower_case" in remarks[0]
    assert ("as it is" in remarks[0]) != lowercase
    write_config(tmp_path, do_lower_case=lowercase)
    assert read_tokenizer(tmp_path)[1] == []


@pytest.mark.parametrize(
    ("pieces", "text", "read"),
    [
        (("after", "the", "café", "é"), "After the CAFÉ", ["after", "the", "café"]),
        (("after", "the", "cafe", "e"), "After the CAFÉ", ["after", "the", "cafe"]),
        (("After", "the", "Café"), "After the Café", ["After", "the", "Café"]),
        (("после", "кот", "й"), "После Кот Й", ["после", "кот", "й"]),
        (("После", "кот"), "После кот", ["После", "кот"]),
        ((*(f"w{i}" for i in range(300)), "URL"), "W7 w8", ["w7", "w8"]),
        (("の", "が", "##き"), "が", ["が"]),
    ],
)
def test_capitals_and_accents_are_read_as_the_vocabulary_has_them(
    pieces: tuple[str, ...], text: str, read: list[str], tmp_path: Path
) -> None:
    vocab_txt(tmp_path, *BERT, *pieces)
    assert tokens(tmp_path, text)[1:-1] == read


def test_the_switches_of_a_config_are_followed(tmp_path: Path) -> None:
    vocab_txt(tmp_path, *BERT, "é", "e", "É", "東", "京", "東京", "@@x", "a")
    for options, text, read in (
        ({"do_lower_case": True}, "É", ["e"]),
        ({"do_lower_case": True, "strip_accents": False}, "É", ["é"]),
        ({"do_lower_case": False}, "É", ["É"]),
        ({"do_lower_case": False, "strip_accents": True}, "é", ["e"]),
        ({"do_lower_case": False}, "東京", ["東", "京"]),
        ({"do_lower_case": False, "tokenize_chinese_chars": False}, "東京", ["東京"]),
        ({"do_lower_case": False, "wordpieces_prefix": "@@"}, "ax", ["a", "@@x"]),
    ):
        write_config(tmp_path, **options)
        assert tokens(tmp_path, text)[1:-1] == read, options


def test_a_bert_class_overrules_the_casing_of_tokenizer_json(tmp_path: Path) -> None:
    train_tokenizer(TEXTS, "wordpiece", 320).save(str(tmp_path / "tokenizer.json"))
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    whole["normalizer"] = whole["normalizer"]["normalizers"][0]
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    assert "The" in tokens(tmp_path, "The cat")
    for named, follows in (("BertTokenizerFast", True), ("PreTrainedTokenizerFast", False)):
        write_config(tmp_path, tokenizer_class=named, do_lower_case=True)
        tokenizer, remarks = read_tokenizer(tmp_path)
        assert ("the" in tokenizer.encode("The cat").tokens, len(remarks)) == (follows, follows)


# ---- special tokens and frames -------------------------------------------------------------------


def test_byte_level_pieces_with_berts_special_tokens_are_framed(tmp_path: Path) -> None:
    chem(
        tmp_path,
        bos_token="[CLS]",
        eos_token="[SEP]",
        **{f"{role}_token": t for role, t in zip(ROLES, BERT, strict=True)},
    )
    framed = ["[CLS]", "C", "C", "(", "=", "O", ")", "[MASK]", "[SEP]"]
    assert tokens(tmp_path, "CC(=O)[MASK]") == framed
    assert tokens(tmp_path, "CSC") == ["[CLS]", "C", "[UNK]", "C", "[SEP]"]
    assert tokens(tmp_path, "C", "N") == ["[CLS]", "C", "[SEP]", "[SEP]", "N", "[SEP]"]
    (tmp_path / "special_tokens_map.json").unlink()
    assert tokens(tmp_path, "CC(=O)[MASK]") == framed, "found by their names alone"
    write_config(tmp_path, tokenizer_class="DebertaTokenizer")
    assert tokens(tmp_path, "C", "N") == ["[CLS]", "C", "[SEP]", "N", "[SEP]"]


ODD = ("<|pad|>", "<oov>", "<begin>", "<end>", "<MASK>")


@pytest.mark.parametrize("write", ["txt", "json"])
@pytest.mark.parametrize("as_object", [False, True])
def test_special_tokens_of_any_name_are_framed_and_found(write: str, as_object: bool, tmp_path: Path) -> None:
    names = {f"{role}_token": {"content": t} if as_object else t for role, t in zip(ROLES, ODD, strict=True)}
    if write == "txt":
        vocab_txt(tmp_path, *ODD, "a", "b")
        write_config(tmp_path, do_lower_case=True, **names)
    else:
        chem(tmp_path, (*ODD, "a", "b"), **names)
    tokenizer = hf_tokenizer(tmp_path)
    assert tokenizer.encode("a<MASK>b").tokens == ["<begin>", "a", "<MASK>", "b", "<end>"]
    vocabulary = vocabulary_of(Tokenizer.from_str(tokenizer.to_str()))
    assert (vocabulary.mask, vocabulary.cls, vocabulary.sep, vocabulary.pad) == (4, 2, 3, 0)
    assert set(vocabulary.special) == {0, 1, 2, 3, 4}


def test_vocab_txt_with_robertas_names_is_framed_without_a_word_about_them(tmp_path: Path) -> None:
    vocab_txt(tmp_path, "<s>", "<pad>", "</s>", "<unk>", "a", "<mask>")
    write_config(tmp_path, do_lower_case=True)
    assert tokens(tmp_path, "a <mask> z") == ["<s>", "a", "<mask>", "<unk>", "</s>"]


def test_missing_frames_are_said_and_missing_names_refused(tmp_path: Path) -> None:
    vocab_txt(tmp_path, "[UNK]", "[MASK]", "a")
    assert [remark for remark in read_tokenizer(tmp_path)[1] if "not framed" in remark]
    write_config(tmp_path, cls_token="[START]")
    with pytest.raises(UserError, match=r"cls_token is '\[START\]', not in vocab\.txt"):
        hf_tokenizer(tmp_path)


def test_a_mask_of_any_name_is_written_as_usual_and_keeps_its_id(tmp_path: Path) -> None:
    vocab_txt(tmp_path, *BERT[:-1], "a", "☺", "[MASK]x")
    write_config(tmp_path, mask_token="☺")
    tokenizer, remarks = read_tokenizer(tmp_path)
    assert "its mask ☺ is written [MASK] from here on" in remarks
    assert tokenizer.token_to_id("[MASK]") == mask_of(tokenizer) == len(BERT)
    assert "[MASK]" in tokens(tmp_path, "a [MASK]")
    assert mask_of(Tokenizer.from_str(tokenizer.to_str())) == len(BERT)


def test_two_masks_are_refused(tmp_path: Path) -> None:
    vocab_txt(tmp_path, *BERT, "a", "☺", "<mask>")
    write_config(tmp_path, mask_token="<mask>", additional_special_tokens=["[MASK]"])
    with pytest.raises(UserError, match=r"mask_token is '<mask>', but '\[MASK\]' has the name of one"):
        hf_tokenizer(tmp_path)


def test_added_tokens_have_their_ids_and_marks(tmp_path: Path) -> None:
    vocab_txt(tmp_path, *BERT, "a", "b")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"covid": 7, "[E1]": 8}))
    write_config(
        tmp_path,
        do_lower_case=True,
        additional_special_tokens=["[E1]"],
        added_tokens_decoder={
            "9": {"content": "Kept", "normalized": False},
            "4": {"content": "[MASK]", "special": True},
        },
    )
    tokenizer = hf_tokenizer(tmp_path)
    assert tokenizer.encode("a COVID [E1] Kept b").ids == [2, 5, 7, 8, 9, 6, 3]
    assert 8 in vocabulary_of(tokenizer).special
    assert {7, 9}.isdisjoint(vocabulary_of(tokenizer).special)
    write_config(tmp_path, do_lower_case=True)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"covid": 12}))
    with pytest.raises(UserError, match="'covid' has the id 12, but its position gives 7"):
        hf_tokenizer(tmp_path)


# ---- what cannot be done -------------------------------------------------------------------------


def bpe_codes(folder: Path) -> None:
    vocab_txt(folder, *BERT, "a")
    (folder / "bpe.codes").write_text("")


def word_ends(folder: Path) -> None:
    chem(folder, (*ATOMS, "C</w>", "CC</w>"))
    (folder / "merges.txt").write_text("C C</w>\n")


def plain(folder: Path) -> None:
    vocab_txt(folder, *BERT, "a", "A")


JAPANESE = {"tokenizer_class": "BertJapaneseTokenizer"}
REFUSED: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "mecab": (
        plain,
        {
            "tokenizer_class": "BertJapaneseTokenizer",
            "word_tokenizer_type": "mecab",
            "subword_tokenizer_type": "character",
        },
        "BertJapaneseTokenizer (mecab, character)",
    ),
    "sudachi": (plain, {**JAPANESE, "word_tokenizer_type": "sudachi"}, "sudachi"),
    "kobert": (plain, {"tokenizer_class": "KoBertTokenizer"}, "tokenizer_class KoBertTokenizer"),
    "kobert fast": (plain, {"tokenizer_class": "KoBERTTokenizerFast"}, "tokenizer_class KoBERTTokenizerFast"),
    "xlnet": (plain, {"tokenizer_class": "XLNetTokenizer"}, "tokenizer_class XLNetTokenizer"),
    "other files": (plain, {"tokenizer_class": "RobertaTokenizer"}, "reads vocab.json and merges.txt"),
    "gpt2": (chem, {"tokenizer_class": "GPT2Tokenizer"}, "tokenizer_class GPT2Tokenizer"),
    "class": (plain, {"tokenizer_class": 3}, "tokenizer_class is 3"),
    "kobert without a class": (lambda folder: vocab_txt(folder, *BERT, "▁한", "▁국", "어"), {}, "of SentencePiece"),
    "phobert without codes": (
        lambda folder: vocab_txt(folder, *BERT, "tôi 31", "là 20"),
        {},
        "of fairseq, with counts",
    ),
    "codes": (bpe_codes, {}, "bpe.codes"),
    "word ends": (word_ends, {}, "end with </w>"),
    "spm": (lambda folder: (folder / "spm.model").write_bytes(b""), {}, "spm.model"),
    "no split": (plain, {"never_split": ["A"]}, "never_split is ['A']"),
    "basic": (plain, {"do_basic_tokenize": False}, "do_basic_tokenize is False"),
    "esm without": (
        lambda folder: vocab_txt(folder, *"ACD"),
        {"tokenizer_class": "EsmTokenizer"},
        "vocab.txt has no <",
    ),
    "text": (lambda folder: (folder / "vocab.txt").write_bytes(b"\xff\xfe"), {}, "vocab.txt is not UTF-8"),
    "casing": (plain, {"do_lower_case": "yes"}, "do_lower_case is 'yes', where true or false"),
    "accents": (plain, {"do_lower_case": True, "strip_accents": 1}, "strip_accents is 1"),
    "chinese": (plain, {"tokenize_chinese_chars": "no"}, "tokenize_chinese_chars is 'no'"),
    "prefix": (plain, {"wordpieces_prefix": 3}, "wordpieces_prefix is 3"),
    "space": (chem, {"add_prefix_space": "x"}, "add_prefix_space is 'x'"),
    "mask": (plain, {"mask_token": 7}, "mask_token is 7, where a token"),
    "marks": (plain, {"cls_token": {"content": "[CLS]", "lstrip": 2}}, "cls_token is"),
    "further": (plain, {"additional_special_tokens": "[E]"}, "additional_special_tokens is '[E]'"),
    "decoder": (plain, {"added_tokens_decoder": [1]}, "added_tokens_decoder is [1]"),
    "entry": (plain, {"added_tokens_decoder": {"x": {"content": "a"}}}, "added_tokens_decoder is"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_be_done_is_one_line_with_a_remedy(case: str, tmp_path: Path, capsys: Any) -> None:
    write, options, named = REFUSED[case]
    folder = tmp_path / "hf"
    folder.mkdir()
    write_params(folder / "model.safetensors", randomised(HF_BERT), HF_BERT)
    (folder / "config.json").write_text(json.dumps(hf_config(HF_BERT, 0, None, None)))
    write(folder)
    write_config(folder, **options)
    assert main(["import", str(folder), str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert named in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "--tokenizer" in said or "was expected" in said or "fetch it again" in said
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_json_replaces_what_cannot_be_rebuilt(tmp_path: Path) -> None:
    folder, other = tmp_path / "hf", tmp_path / "other.json"
    folder.mkdir()
    write_params(folder / "model.safetensors", randomised(HF_BERT), HF_BERT)
    (folder / "config.json").write_text(
        json.dumps({**hf_config(HF_BERT, 0, None, None), "tokenizer_class": "KoBertTokenizer"})
    )
    plain(folder)
    train_tokenizer(TEXTS, "wordpiece", 64).save(str(other))
    assert main(["import", str(folder), str(tmp_path / "run")]) == 2, "config.json may name the class, too"
    assert main(["import", str(folder), str(tmp_path / "run"), "--tokenizer", str(other)]) == 0


def test_japanese_read_as_bert_reads_is_read(tmp_path: Path) -> None:
    plain(tmp_path)
    kinds = {"word_tokenizer_type": "basic", "subword_tokenizer_type": "wordpiece"}
    write_config(tmp_path, tokenizer_class="BertJapaneseTokenizer", do_lower_case=False, **kinds)
    assert tokens(tmp_path, "A a") == ["[CLS]", "A", "a", "[SEP]"]


# ---- proteins ------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_model_type", [False, True])
def test_esms_letters_are_tokens_wherever_they_stand(by_model_type: bool, tmp_path: Path) -> None:
    vocab_txt(tmp_path, *ESM)
    if by_model_type:
        (tmp_path / "config.json").write_text(json.dumps(hf_config(MODELS["esm"], 1, 0, 2)))
    else:
        write_config(tmp_path, tokenizer_class="EsmTokenizer")
    tokenizer = hf_tokenizer(tmp_path)
    assert tokenizer.to_str() == alphabet_tokenizer().to_str()
    assert tokenizer.encode("MK<mask> T.-").tokens == ["<cls>", "M", "K", "<mask>", "T", ".", "-", "<eos>"]
    assert tokenizer.encode("MjjK JJ").tokens == ["<cls>", "M", "<unk>", "K", "<unk>", "<eos>"]
    assert tokenizer.decode(tokenizer.encode("MKT").ids) == "MKT"
    vocabulary = vocabulary_of(tokenizer)
    assert (vocabulary.cls, vocabulary.pad, vocabulary.sep, vocabulary.unk, vocabulary.mask) == (0, 1, 2, 3, 32)
    assert vocabulary.special == (0, 1, 2, 3, 31, 32), "<null_1> stands for nothing"


def test_what_is_wrong_in_a_vocabulary_or_its_merges_is_named_in_one_line(tmp_path: Path) -> None:
    chem(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\nC C C\n")
    with pytest.raises(UserError, match=r"merges\.txt: 'C C C' is not a pair of pieces"):
        hf_tokenizer(tmp_path)
    chem(tmp_path)
    for id in ("x", -1, True):
        (tmp_path / "vocab.json").write_text(json.dumps({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "C": id}))
        with pytest.raises(UserError, match=r"vocab\.json: the id of 'C' is .+, not an integer"):
            hf_tokenizer(tmp_path)


def test_the_mark_that_windows_puts_first_is_no_part_of_a_piece(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join((*BERT, "the")), encoding="utf-8-sig")
    assert tokens(tmp_path, "The") == ["[CLS]", "the", "[SEP]"]
