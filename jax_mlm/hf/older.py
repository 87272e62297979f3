"""A tokenizer rebuilt from the files that came before tokenizer.json: one way for each class of transformers.

What no file says is taken from the vocabulary, with a remark; a class that does something else is refused by name.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from jax_mlm.data.alphabet import alphabet_tokenizer
from jax_mlm.data.tokenizer import NAMES, RESERVED, rust
from jax_mlm.errors import UserError, shown
from jax_mlm.hf.sentencepiece import read_unigram
from jax_mlm.hf.tokenizer_files import CONFIG, REMEDY, Source, read_json, read_lines, read_text


class Kind(NamedTuple):
    """One way to build a tokenizer from older files."""

    name: str
    files: tuple[str, ...]
    classes: tuple[str, ...]
    """The classes of transformers that do it, without the ending Fast."""
    special: Mapping[str, str]
    """Role → the token's usual name."""


_BRACKETS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_ANGLES = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
_PIECES = ("vocab.json", "merges.txt")
KINDS = (
    Kind(
        "wordpiece",
        ("vocab.txt",),
        ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer", "ConvBertTokenizer"),
        _BRACKETS,
    ),
    Kind("esm", ("vocab.txt",), ("EsmTokenizer",), {**_ANGLES, "cls": "<cls>", "sep": "<eos>"}),
    Kind("roberta", _PIECES, ("RobertaTokenizer", "LongformerTokenizer", "BartTokenizer"), _ANGLES),
    Kind("deberta", _PIECES, ("DebertaTokenizer",), _BRACKETS),
    Kind("albert", ("spiece.model",), ("AlbertTokenizer",), {**_BRACKETS, "pad": "<pad>", "unk": "<unk>"}),
    Kind("xlm-roberta", ("sentencepiece.bpe.model",), ("XLMRobertaTokenizer",), _ANGLES),
    Kind("camembert", ("sentencepiece.bpe.model",), ("CamembertTokenizer",), _ANGLES),
)
"""For a directory that names no class: the kind that has its model's name, else the first whose files are there."""
GENERAL = ("PreTrainedTokenizer", "TokenizersBackend")
"""Classes that say nothing of how a text is read."""


def rebuilt(source: Source) -> Tokenizer:
    """Build the tokenizer of a directory without tokenizer.json, with its special tokens and the frame around a text.

    Raises:
        UserError: no such files, a broken one, or a class that they cannot be read for.
    """
    kind = _kind_of(source)
    names = _names(source, kind)
    files = f"{source.folder}: {' and '.join(kind.files)} make no tokenizer"
    tokenizer = rust(_model, source, kind, names, where=files)
    add_tokens(tokenizer, source)
    _frame(tokenizer, source, kind, names)
    strips = kind.name not in ("wordpiece", "esm")
    for role, text in names.items():
        plain = AddedToken(text, special=True, normalized=False, lstrip=strips and role == "mask")
        token = source.token(role) if source.names_marks(role) else None
        tokenizer.add_special_tokens([token or plain])
    return tokenizer


def add_tokens(tokenizer: Tokenizer, source: Source) -> None:
    """Add the tokens beside the vocabulary; a UserError where one would not get its id."""
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for id, token in source.added():
        if token.content in known:
            continue
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if (got := tokenizer.token_to_id(token.content)) != id:
            raise UserError(
                f"{source.folder}: the added token {token.content!r} has the id {id}, but its position gives {got}"
            )


# ---- which files, and whose ----------------------------------------------------------------------


def _kind_of(source: Source) -> Kind:
    """Return how the older files of a directory are read, by the class it names or else by what is there.

    Raises:
        UserError: no such files, or a class that reads them in a way of its own.
    """
    folder = source.folder
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    named = source.options.get("tokenizer_class") or config.get("tokenizer_class")
    if named is not None and not isinstance(named, str):
        raise UserError(f"{folder}: tokenizer_class is {shown(named)}, where a name was expected")
    known = named.removesuffix("Fast") if named else None
    if known == "BertJapaneseTokenizer" and _is_plain_japanese(source):
        known = "BertTokenizer"
    here = [kind for kind in KINDS if all((folder / name).is_file() for name in kind.files)]
    if known is not None and known not in GENERAL:
        kind = next((kind for kind in KINDS if known in kind.classes), None)
        if kind is None:
            raise UserError(
                f"{folder}: tokenizer_class {named}{_how(source)} is not one that can be rebuilt from its files "
                f"({', '.join(kind.classes[0] for kind in KINDS)} are): {REMEDY}"
            )
        if kind not in here:
            raise UserError(
                f"{folder}: tokenizer_class {named} reads {' and '.join(kind.files)}, which is not there: {REMEDY}"
            )
        return kind
    for other in ("bpe.codes", "spm.model", "tokenizer.model", "vocab.model"):
        if (folder / other).is_file():
            raise UserError(
                f"{folder}: the tokenizer of {other} is not one that can be rebuilt from its files: {REMEDY}"
            )
    if not here:
        files = dict.fromkeys(" with ".join(kind.files) for kind in KINDS)
        raise UserError(f"{folder} holds no tokenizer (tokenizer.json, {', '.join(files)}): {REMEDY}")
    return next((kind for kind in here if kind.name == config.get("model_type")), here[0])


def _is_plain_japanese(source: Source) -> bool:
    """Return whether BertJapaneseTokenizer is told to do what BertTokenizer does."""
    given = [source.options.get(f"{level}_tokenizer_type") for level in ("word", "subword")]
    return given in (["basic", "wordpiece"], [None, None]) and not source.options.get("mecab_kwargs")


def _how(source: Source) -> str:
    kinds = [source.options.get(f"{level}_tokenizer_type") for level in ("word", "subword")]
    named = ", ".join(kind for kind in kinds if isinstance(kind, str))
    return f" ({named})" if named else ""


def _names(source: Source, kind: Kind) -> dict[str, str]:
    """Return the texts of the special tokens, where the vocabulary has them.

    A role takes the name that the files give, else its usual one, else one that other tokenizers usually have.
    """
    vocabulary = {*_vocabulary(source.folder, kind), *(token.content for _, token in source.added())}
    names: dict[str, str] = {}
    for role, usual in kind.special.items():
        given, second = source.token(role), source.token({"cls": "bos", "sep": "eos"}.get(role, role))
        others = [usual, *([second.content] if second else ()), *NAMES[role]]
        found = next((text for text in ([given.content] if given else others) if text in vocabulary), None)
        if found is not None:
            names[role] = found
        elif given is not None and role in ("cls", "sep", "unk"):
            raise UserError(f"{source.folder}: {role}_token is {given.content!r}, not in {kind.files[0]}: {REMEDY}")
        elif role in ("cls", "sep"):
            source.remarks.append(f"no {usual} in {kind.files[0]}, and no {role}_token is named: texts are not framed")
    needed = kind.special if kind.name == "esm" else () if kind.files == _PIECES else ("unk",)
    if missing := next((role for role in needed if role not in names), None):
        usual = kind.special[missing]
        raise UserError(f"{source.folder / kind.files[0]} has no {usual}, and no {missing}_token is named: {REMEDY}")
    return names


def _vocabulary(folder: Path, kind: Kind) -> Iterable[str]:
    """Return what a vocabulary holds."""
    match kind.files[0]:
        case "vocab.txt":
            return read_lines(folder / "vocab.txt")
        case "vocab.json":
            return read_json(folder / "vocab.json")
        case file:
            pieces = [text for text, _ in read_unigram(folder / file).pieces]
            return [*pieces, "<pad>", "<mask>"] if kind.name in FAIRSEQ else pieces


def _model(source: Source, kind: Kind, names: Mapping[str, str]) -> Tokenizer:
    match kind.name:
        case "wordpiece":
            return _wordpiece(source, names)
        case "esm":
            special = [names[role] for role in ("cls", "pad", "sep", "unk", "mask")]
            return alphabet_tokenizer(read_lines(source.folder / "vocab.txt"), special)
        case "albert":
            return _albert(source)
        case "xlm-roberta" | "camembert":
            return _fairseq(source, kind)
        case _:
            return _byte_level(source, names)


def _frame(tokenizer: Tokenizer, source: Source, kind: Kind, names: Mapping[str, str]) -> None:
    """Put the special tokens around a text, and around each of a pair, as the class does."""
    if kind.name == "esm" or not {"cls", "sep"} <= {*names}:  # the first has its frame
        return
    ids = tokenizer.get_vocab(with_added_tokens=True)
    cls, sep = ((names[role], ids[names[role]]) for role in ("cls", "sep"))
    if kind.name == "roberta":
        space, trim = source.flag("add_prefix_space", False), source.flag("trim_offsets", True)
        tokenizer.post_processor = processors.RobertaProcessing(sep, cls, bool(trim), bool(space))
        return
    second = f"{sep[0]} $B {sep[0]}" if kind.name in FAIRSEQ else f"$B:1 {sep[0]}:1"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls[0]} $A {sep[0]}",
        pair=f"{cls[0]} $A {sep[0]} {second}",
        special_tokens=list(dict.fromkeys((cls, sep))),
    )


# ---- the kinds -----------------------------------------------------------------------------------


SENTENCEPIECE, COUNTED = re.compile("▁"), re.compile(r".+\s\d+$")
"""Lines of a vocab.txt that other tokenizers write: KoBERT's; PhoBERT's and BERTweet's."""


def _wordpiece(source: Source, names: Mapping[str, str]) -> Tokenizer:
    """BERT's: one piece a line."""
    for name in ("never_split", "do_basic_tokenize"):
        if source.options.get(name) not in (None, [], True):
            raise UserError(
                f"{source.folder}: {name} is {shown(source.options[name])}, which is not supported: {REMEDY}"
            )
    entries = read_lines(source.folder / "vocab.txt")
    for theirs, wrote in ((SENTENCEPIECE, "SentencePiece"), (COUNTED, "fairseq, with counts")):
        if sum(theirs.match(entry) is not None for entry in entries) > len(entries) / 10:
            raise UserError(f"{source.folder}/vocab.txt is not of WordPiece but of {wrote}: {REMEDY}")
    vocab = {entry: id for id, entry in enumerate(entries)}
    prefix = source.options.get("wordpieces_prefix") or "##"
    if not isinstance(prefix, str):
        raise source.wrong("wordpieces_prefix", "a text")
    lowercase, accents = source.flag("do_lower_case", None), source.flag("strip_accents", None)
    if lowercase is None:
        lowercase, kept = _casing(entries, names.values(), prefix)
        accents = False if accents is None and kept else accents
        read = "as it is" if not lowercase else "lower-cased, accents kept" if kept else "lower-cased, without accents"
        evidence = "its pieces have capitals" if not lowercase else "none of its pieces has a capital"
        source.remarks.append(f"no do_lower_case in a {CONFIG}: vocab.txt tells ({evidence}), so text is read {read}")
    tokenizer = Tokenizer(
        models.WordPiece(vocab, unk_token=names["unk"], max_input_chars_per_word=100, continuing_subword_prefix=prefix)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=bool(source.flag("clean_text", True)),
        handle_chinese_chars=bool(source.flag("tokenize_chinese_chars", True)),
        strip_accents=accents,
        lowercase=lowercase,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=prefix)
    return tokenizer


CAPITALS = 0.01
"""Part of a vocabulary's pieces with capitals from which it is cased, if no capital is a piece by itself."""


def _casing(entries: Iterable[str], special: Iterable[str], prefix: str) -> tuple[bool, bool]:
    """Return whether the text of a vocabulary was lower-cased, and whether it kept its accents.

    A vocabulary has its alphabet among its pieces, so one capital by itself tells that text was not lower-cased; a few
    capitals in longer pieces may be names that somebody added.
    """
    out = {*special}
    pieces = [entry.removeprefix(prefix) for entry in entries if entry not in out and not RESERVED.fullmatch(entry)]
    pieces = [piece for piece in pieces if not (piece[:1] in "[<" and piece[-1:] in "]>")]
    capital = [piece for piece in pieces if any(letter != letter.lower() for letter in piece)]
    lowercase = len(capital) <= CAPITALS * len(pieces) and not any(len(piece) == 1 for piece in capital)
    return lowercase, any(len(piece) == 1 and _has_accent(piece) for piece in pieces)


def _has_accent(letter: str) -> bool:
    return any(unicodedata.category(part) == "Mn" for part in unicodedata.normalize("NFD", letter)[1:])


def _byte_level(source: Source, names: Mapping[str, str]) -> Tokenizer:
    """Build the byte-level tokenizer of GPT-2 and RoBERTa from its pieces and merges."""
    folder = source.folder
    vocab = read_json(folder / "vocab.json")
    lines = read_text(folder / "merges.txt").splitlines()
    merges = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
    if merges and sum(merge[-1].endswith("</w>") for merge in merges) > len(merges) / 4:
        raise UserError(f"{folder}: the pieces of merges.txt end with </w>, so they are not byte-level: {REMEDY}")
    if wrong := next((merge for merge in merges if len(merge) != 2), None):
        raise UserError(f"{folder}/merges.txt: {' '.join(wrong)[:80]!r} is not a pair of pieces: fetch it again")
    if wrong := next((piece for piece, id in vocab.items() if type(id) is not int or id < 0), None):
        raise UserError(f"{folder}/vocab.json: the id of {shown(wrong)} is {shown(vocab[wrong])}, not an integer")
    try:
        pairs = [(left, right) for left, right in merges]
        tokenizer = Tokenizer(models.BPE(vocab, pairs, unk_token=names.get("unk")))
    except Exception as error:  # the Rust library raises nothing narrower
        raise UserError(f"{folder}: vocab.json and merges.txt do not fit together ({error})") from None
    space = bool(source.flag("add_prefix_space", False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _albert(source: Source) -> Tokenizer:
    """ALBERT's: a SentencePiece Unigram model, with the normalisation of `transformers`' AlbertTokenizer."""
    model = read_unigram(source.folder / "spiece.model")
    tokenizer = Tokenizer(models.Unigram(model.pieces, model.unknown, byte_fallback=False))
    steps: list[normalizers.Normalizer] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not source.flag("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if source.flag("do_lower_case", True):
        steps.append(normalizers.Lowercase())
    return _metaspace(tokenizer, steps, model.charsmap)


FAIRSEQ = {
    "xlm-roberta": (("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)),
    "camembert": (
        *(("<s>NOTUSED", 0.0), ("<pad>", 0.0), ("</s>NOTUSED", 0.0), ("<unk>", 0.0)),
        ("<unk>NOTUSED", -100.0),
    ),
}
"""The pieces that come first in fairseq's vocabularies."""


def _fairseq(source: Source, kind: Kind) -> Tokenizer:
    """XLM-RoBERTa's and CamemBERT's: their first ids are those of fairseq, and the mask follows the pieces."""
    file = source.folder / kind.files[0]
    model = read_unigram(file)
    first = FAIRSEQ[kind.name]
    left_out = 3 if kind.name == "xlm-roberta" else 1  # what SentencePiece itself puts first
    if [text for text, _ in model.pieces[:3]] != ["<unk>", "<s>", "</s>"]:
        raise UserError(f"{file}: its pieces do not begin with <unk>, <s> and </s> as {kind.classes[0]}'s do: {REMEDY}")
    pieces = [*first, *model.pieces[left_out:], ("<mask>", 0.0)]
    return _metaspace(Tokenizer(models.Unigram(pieces, 3, byte_fallback=False)), [], model.charsmap)


def _metaspace(tokenizer: Tokenizer, steps: list[normalizers.Normalizer], charsmap: bytes) -> Tokenizer:
    """Give a Unigram tokenizer SentencePiece's normalisation, and words that carry the space before them."""
    if charsmap:
        steps.append(normalizers.Precompiled(charsmap))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return tokenizer
