"""Against transformers and torch themselves: needs the extra `reference` (pip install 'jax-mlm[reference]')."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime as ort
import pytest
from mlm_onnx.convert.targets import masked_lm_graph
from support.models import randomised
from support.runs import REAL, save_run
from tokenizers import Tokenizer

from jax_mlm.config import ModelConfig
from jax_mlm.data.alphabet import ESM as ESM_TOKENS
from jax_mlm.data.tokenizer import train_tokenizer
from jax_mlm.hf.config import AFTER_PADDING, from_hf, hf_config
from jax_mlm.hf.directory import export_hf, import_hf, read_hf
from jax_mlm.hf.names import entries
from jax_mlm.hf.tokenizer import hf_tokenizer
from jax_mlm.hf.weights import write_params
from jax_mlm.model.encoder import Inputs
from jax_mlm.model.heads import make_forward
from jax_mlm.presets import PRESETS, SENTENCE

torch = pytest.importorskip("torch", reason="compares with torch: pip install 'jax-mlm[reference]'")
transformers = pytest.importorskip(
    "transformers", reason="compares with transformers: pip install 'jax-mlm[reference]'"
)

LOGITS, GRADIENTS = 1e-4, 1e-3
"""Bounds of a difference: see `allowed`, and the norm relative to the gradient's."""
LENGTH, LENGTHS = 24, (24, 17, 5, 1)
BASE = {"vocab_size": 61, "width": 48, "layers": 2, "heads": 4, "ff_width": 72, "max_length": 40}
BERT = replace(PRESETS["bert-base"].model, **BASE)
ROBERTA = replace(BERT, family="roberta", position_offset=2, token_types=1, norm_eps=1e-5)
ALBERT = replace(BERT, family="albert", embedding_width=20, layer_groups=1, layers=3, activation="gelu_tanh")
DISTIL = replace(BERT, family="distilbert", token_types=0)
MODERN = ModelConfig(**BASE, global_every=2, local_window=6, rope_theta=160_000.0, dropout=0.0)
ESM = replace(
    DISTIL,
    family="esm",
    norm_first=True,
    embedding_norm=False,
    positions="rope",
    norm_eps=1e-5,
    token_dropout=True,
    mask_id=7,
)
PAD: dict[str, int] = {"roberta-pad-0": 0, "roberta-pad-5": 5, "bert-pad-7": 7, "modernbert-pad-9": 9}
MODELS: dict[str, ModelConfig] = {
    "bert": BERT,
    "bert-odd": replace(BERT, vocab_size=37, width=30, heads=6, ff_width=31),
    "bert-untied": replace(BERT, tied=False, layers=1),
    "bert-relu-eps": replace(BERT, activation="relu", norm_eps=1e-3, heads=1),
    "bert-one-type": replace(BERT, token_types=1, activation="gelu_tanh"),
    "bert-pad-7": replace(BERT, activation="silu", max_length=24),
    "roberta": replace(ROBERTA, position_offset=2),
    "roberta-odd": replace(ROBERTA, vocab_size=29, width=36, heads=12, ff_width=17, layers=1),
    "roberta-untied": replace(ROBERTA, tied=False, token_types=2),
    "roberta-relu": replace(ROBERTA, activation="relu", head_activation="gelu"),
    "roberta-pad-0": replace(ROBERTA, position_offset=1),
    "roberta-pad-5": replace(ROBERTA, position_offset=6, norm_eps=1e-2),
    "albert": ALBERT,
    "albert-odd": replace(ALBERT, vocab_size=43, width=42, heads=3, ff_width=50, embedding_width=7),
    "albert-groups": replace(ALBERT, layers=4, layer_groups=2, activation="gelu"),
    "albert-all-groups": replace(ALBERT, layers=2, layer_groups=2, tied=False),
    "albert-square": replace(ALBERT, embedding_width=48, token_types=1),
    "albert-relu": replace(ALBERT, activation="relu", layers=1, norm_eps=1e-2),
    "distilbert": DISTIL,
    "distilbert-odd": replace(DISTIL, vocab_size=39, width=27, heads=9, ff_width=19),
    "distilbert-untied": replace(DISTIL, tied=False),
    "distilbert-relu": replace(DISTIL, activation="relu", layers=1),
    "distilbert-tanh": replace(DISTIL, activation="gelu_tanh", heads=1),
    "distilbert-silu": replace(DISTIL, activation="silu", layers=3, max_length=24),
    "modernbert": MODERN,
    "modernbert-global": replace(MODERN, global_every=1, rope_theta=10_000.0, local_window=128),
    "modernbert-thirds": replace(MODERN, layers=5, global_every=3, local_window=4, rope_theta_local=500.0),
    "modernbert-biases": replace(
        MODERN, norm_bias=True, attention_bias=True, mlp_bias=True, head_bias=True, decoder_bias=False
    ),
    "modernbert-odd": replace(
        MODERN, vocab_size=53, width=42, heads=7, ff_width=29, layers=1, global_every=1, tied=False
    ),
    "modernbert-pad-9": replace(MODERN, activation="silu", head_activation="relu", norm_eps=1e-2, heads=2),
    "xlm-roberta": replace(ROBERTA, family="xlm-roberta"),
    "camembert": replace(ROBERTA, family="camembert", head_activation="gelu", activation="relu"),
    "esm": ESM,
    "esm-odd": replace(ESM, vocab_size=33, width=30, heads=5, ff_width=31, layers=3, norm_eps=1e-3),
    "esm-untied": replace(ESM, tied=False, layers=1),
    "esm-no-token-dropout": replace(ESM, token_dropout=False, mask_id=-1, heads=2),
    "modernbert-tanh": replace(MODERN, activation="gelu_tanh", global_every=2, layers=3, local_window=2),
}


def pad_of(name: str) -> int:
    model = MODELS[name]
    return model.position_offset - 1 if model.family in AFTER_PADDING else PAD.get(name, 0)


@cache
def text(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ids and mask [B, S], token types or zeros, and targets, in rows of several lengths, padded to one."""
    model, pad, rng = MODELS[name], pad_of(name), np.random.default_rng(3)
    shape = (len(LENGTHS), LENGTH)
    ids = rng.choice(np.setdiff1d(np.arange(model.vocab_size), [pad]), shape)
    mask = (np.arange(LENGTH) < np.asarray(LENGTHS)[:, None]).astype(np.int32)
    types = rng.integers(0, max(1, model.token_types), shape)
    targets = rng.integers(0, model.vocab_size, shape)
    return np.where(mask, ids, pad), mask, types, np.where(mask, targets, -100)


def ours(model: ModelConfig, params: Any, name: str) -> Any:
    """Our logits [B, S, V]; padding has segment 0."""
    ids, mask, types, _ = text(name)
    at = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), ids.shape)
    inputs = Inputs(jnp.asarray(ids, jnp.int32), jnp.asarray(mask), jnp.asarray(at))
    return make_forward(model)(params, inputs, jnp.asarray(at), jnp.asarray(types) if model.token_types else None)


@cache
def theirs(name: str, folder: Path) -> Any:
    """transformers' model of the written directory, which must hold every tensor and no other."""
    model = MODELS[name]
    (folder / name).mkdir()
    write_params(folder / name / "model.safetensors", randomised(model), model)
    config = hf_config(model, pad_of(name), None, None)
    (folder / name / "config.json").write_text(json.dumps(config))
    return load(folder / name)


def load(folder: Path) -> Any:
    loaded, info = transformers.AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return loaded.eval()


def answer(loaded: Any, name: str) -> Any:
    ids, mask, types, _ = (torch.asarray(np.asarray(x, np.int64)) for x in text(name))
    kinds = {"token_type_ids": types} if MODELS[name].token_types else {}
    return loaded(input_ids=ids, attention_mask=mask, **kinds).logits


def allowed(logits: np.ndarray) -> float:
    """Largest difference of a logit that may come from rounding: 1e-4, or 1e-5 of the largest where those are large."""
    return max(LOGITS, 1e-5 * float(np.abs(logits).max()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reference")


def difference(a: Any, b: Any, name: str) -> float:
    """Largest difference of a logit at a token other than padding."""
    seen = text(name)[1].astype(bool)
    return float(np.abs(np.asarray(a)[seen] - np.asarray(b)[seen]).max())


@pytest.mark.parametrize("name", list(MODELS))
def test_logits_and_gradients_are_theirs(name: str, folder: Path, record_property: Any) -> None:
    model, params, loaded = MODELS[name], randomised(MODELS[name]), theirs(name, folder)
    assert from_hf(json.loads((folder / name / "config.json").read_text()), model.family) == model
    targets = text(name)[3]
    expected = answer(loaded, name)
    loss = torch.nn.functional.cross_entropy(
        expected.reshape(-1, model.vocab_size), torch.asarray(targets.reshape(-1)), reduction="sum", ignore_index=-100
    )
    loaded.zero_grad()
    loss.backward()

    def our_loss(params: Any) -> Any:
        logits = ours(model, params, name)
        gathered = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(targets, 0)[..., None], -1)[..., 0]
        return -jnp.where(targets >= 0, gathered, 0).sum(), logits

    gradient, logits = jax.jit(jax.grad(our_loss, has_aux=True))(params)
    expected = expected.detach().numpy()
    assert expected[text(name)[1].astype(bool)].std() >= 1
    worst = difference(logits, expected, name)
    record_property("logits", worst)
    assert worst <= allowed(expected)

    tensors = dict(loaded.named_parameters(remove_duplicate=False))
    largest = 0.0
    for entry in entries(model):
        node = gradient
        for key in entry.path:
            node = node[key]
        node = np.asarray(node).T if entry.kernel else np.asarray(node)
        names = entry.names
        if entry.path == ("decoder_bias",) and tensors[names[0]].grad is None:  # untied: theirs uses the other name
            names = ("cls.predictions.decoder.bias", "lm_head.decoder.bias", "predictions.decoder.bias")
            names = tuple(name for name in names if name in tensors)
        want = np.concatenate([tensors[known].grad.numpy() for known in names])
        if entry.path == ("token_table",):  # torch leaves the padding's own row out
            keep = np.arange(model.vocab_size) != pad_of(name)
            node, want = node[keep], want[keep]
        if entry.path == ("position_table",):
            node, want = node[model.position_offset :], want[model.position_offset :]
        error = np.linalg.norm(node - want) / max(np.linalg.norm(want), 1e-3)
        largest = max(largest, float(error))
        assert error <= GRADIENTS, entry.path
    record_property("gradients", largest)
    print(f"{name}: logits {worst:.1e}, gradients {largest:.1e}")


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "gelu": ("bert", {"activation": "gelu_tanh"}),
    "gelu of albert": ("albert", {"activation": "gelu"}),
    "gelu of the gate": ("modernbert", {"activation": "gelu_tanh", "head_activation": "gelu"}),
    "gelu of the head": ("roberta", {"head_activation": "gelu_tanh"}),
    "epsilon": ("bert", {"norm_eps": 1e-5}),
    "epsilon of distilbert": ("distilbert", {"norm_eps": 1e-5}),
    "epsilon of modernbert": ("modernbert", {"norm_eps": 1e-6}),
    "position offset": ("roberta", {"position_offset": 1, "max_length": 41}),
    "window": ("modernbert", {"local_window": 8}),
    "window of the hub": ("modernbert", {"local_window": 128}),
    "pattern": ("modernbert-thirds", {"global_every": 2}),
    "theta": ("modernbert", {"rope_theta": 10_000.0}),
    "local theta": ("modernbert-thirds", {"rope_theta_local": 10_000.0}),
    "heads": ("bert", {"heads": 2}),
    "token dropout": ("esm", {"token_dropout": False}),
    "masked token": ("esm", {"mask_id": 8}),
    "theta of esm": ("esm", {"rope_theta": 5_000.0}),
    "gelu of esm": ("esm", {"activation": "gelu_tanh"}),
}


@pytest.mark.parametrize("mistake", list(WRONG))
def test_a_wrong_switch_is_noticed(mistake: str, folder: Path) -> None:
    name, change = WRONG[mistake]
    loaded = theirs(name, folder)
    with torch.no_grad():
        expected = answer(loaded, name).numpy()
    wrong = jax.jit(lambda params: ours(replace(MODELS[name], **change), params, name))(randomised(MODELS[name]))
    assert difference(wrong, expected, name) > allowed(expected)


# ---- real checkpoints and our presets ------------------------------------------------------------


@pytest.mark.parametrize("name", REAL)
def test_exported_real_checkpoints_load_and_answer_alike(name: str, shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "weights" / name
    import_hf(source, tmp_path / "run")
    export_hf(tmp_path / "run", tmp_path / "hf")
    imported = read_hf(tmp_path / "hf")
    exported, original = load(tmp_path / "hf"), transformers.AutoModelForMaskedLM.from_pretrained(source).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    recorded = json.loads((source / "reference.json").read_text())
    texts = {
        "bert-tiny-english": lambda: list(recorded),
        "albert-reactions": lambda: [answer["text"] for answer in recorded],
        "roberta-antibody": lambda: [recorded["masked"].replace("*", "<mask>"), "QVQ"],
    }[name]()
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    tokens, mask = batch["input_ids"].numpy().astype(np.int32), batch["attention_mask"].numpy().astype(np.int32)
    ids = [Tokenizer.from_file(str(tmp_path / "run" / "tokenizer.json")).encode(text).ids for text in texts]
    assert ids == [row[seen.astype(bool)].tolist() for row, seen in zip(tokens, mask, strict=True)]
    with torch.no_grad():
        wanted, again = original(**batch).logits.numpy(), exported(**batch).logits.numpy()
    np.testing.assert_array_equal(wanted, again)
    at = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    got = np.asarray(make_forward(imported.model)(imported.params, Inputs(tokens, mask, at), at))
    seen = mask.astype(bool)
    worst = np.abs(got[seen] - wanted[seen]).max()
    print(f"{name}: logits {worst:.1e} of {wanted[seen].std():.1f}")
    assert worst <= allowed(wanted[seen])


@pytest.mark.parametrize("preset", ["sentence", "tiny", "small"])
def test_our_presets_load_as_modernbert(preset: str, tmp_path: Path) -> None:
    model = replace(PRESETS[preset].model, vocab_size=64)
    params, tokenizer = randomised(model), train_tokenizer([SENTENCE], "word", 16)
    export_hf(save_run(tmp_path / "run", model, params, tokenizer), tmp_path / "hf")
    loaded = load(tmp_path / "hf")
    assert type(loaded).__name__ == "ModernBertForMaskedLM"
    batch = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")(SENTENCE, return_tensors="pt")
    tokens = batch["input_ids"].numpy().astype(np.int32)
    assert tokens[0].tolist() == tokenizer.encode(SENTENCE).ids
    with torch.no_grad():
        wanted = loaded(**batch).logits.numpy()
    at = np.arange(tokens.shape[1], dtype=np.int32)[None]
    got = np.asarray(make_forward(model)(params, Inputs(tokens, np.ones_like(tokens), at), at))
    assert wanted.std() >= 1
    assert np.abs(got - wanted).max() <= allowed(wanted)
    filled = transformers.pipeline("fill-mask", model=str(tmp_path / "hf"))("This [MASK] creates", targets=["words"])
    assert [(answer["token_str"], answer["sequence"]) for answer in filled] == [("words", "This words creates")]


def test_the_special_tokens_of_roberta_load_as_theirs(shared_data: Path, tmp_path: Path) -> None:
    lines = (shared_data / "sst2" / "train.tsv").read_text(encoding="utf-8").splitlines()[:2000]
    tokenizer = train_tokenizer(lines, "bpe", 512, special="roberta")
    model = replace(ROBERTA, vocab_size=512)
    export_hf(save_run(tmp_path / "run", model, randomised(model), tokenizer), tmp_path / "hf")
    loaded, read = load(tmp_path / "hf"), transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert (read.mask_token, read.pad_token_id, read.cls_token, read.sep_token) == ("<mask>", 1, "<s>", "</s>")
    assert read("a good film", "or a bad one")["input_ids"].count(read.sep_token_id) == 3
    batch = read(["a <mask> film", "a good film, or a bad one"], padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = loaded(**batch).logits.numpy()
    tokens, seen = batch["input_ids"].numpy().astype(np.int32), batch["attention_mask"].numpy().astype(np.int32)
    at = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    got = np.asarray(make_forward(model)(randomised(model), Inputs(tokens, seen, at), at))
    assert np.abs(got - wanted)[seen.astype(bool)].max() <= allowed(wanted)
    answers = transformers.pipeline("fill-mask", model=str(tmp_path / "hf"))("a <mask> film")
    assert all(answer["sequence"].startswith("a") and answer["sequence"].endswith(" film") for answer in answers)


def test_vocab_txt_is_read_as_they_read_it(shared_data: Path, tmp_path: Path) -> None:
    whole = Tokenizer.from_file(str(shared_data / "weights" / "bert-tiny-english" / "tokenizer.json"))
    vocab = sorted(whole.get_vocab(), key=whole.get_vocab().get)
    (tmp_path / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    reference, built = transformers.BertTokenizer.from_pretrained(tmp_path), hf_tokenizer(tmp_path)
    for sentence in ("Hello  wörld, it's [MASK] 東京!", "the <mask> sat", "UPPER ``quoted'' ﬁne", ""):
        assert built.encode(sentence).ids == reference(sentence)["input_ids"]


def test_vocab_json_with_berts_names_is_read_as_they_read_it(tmp_path: Path) -> None:
    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    pieces = [*names, *dict.fromkeys("CcNnOo()=123#lBr")]
    (tmp_path / "vocab.json").write_text(json.dumps({token: id for id, token in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    roles = dict(zip(("pad", "unk", "cls", "sep", "mask", "bos", "eos"), (*names, "[CLS]", "[SEP]"), strict=True))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({f"{role}_token": t for role, t in roles.items()}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RobertaTokenizer"}))
    reference, built = transformers.AutoTokenizer.from_pretrained(tmp_path), hf_tokenizer(tmp_path)
    for text in ("CC(=O)[MASK]", "c1ccccc1", "C[MASK]N", ""):
        assert built.encode(text).ids == reference(text)["input_ids"], text
    assert built.encode("CC", "NN").ids == reference("CC", "NN")["input_ids"]


def test_esm_vocab_txt_is_read_as_they_read_it(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(ESM_TOKENS))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "EsmTokenizer"}))
    reference, built = transformers.EsmTokenizer.from_pretrained(tmp_path), hf_tokenizer(tmp_path)
    for text in ("MKTVRQ", "MK<mask>TV", "M K\tT", "MjjKJV", "mkt", "M.-<null_1>K", "<mask><mask>", ""):
        assert built.encode(text).ids == reference(text)["input_ids"], text
    assert built.encode("MK", "TV").ids == reference("MK", "TV")["input_ids"]


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "camembert", "esm"])
def test_the_hub_graph_answers_padded_texts_as_they_do(family: str, tmp_path: Path) -> None:
    model, pad = MODELS[family], pad_of(family)
    write_params(tmp_path / "model.safetensors", randomised(model), model)
    (tmp_path / "config.json").write_text(json.dumps(hf_config(model, pad, None, None)))
    loaded = load(tmp_path)
    masked_lm_graph(model, randomised(model)).write_single(tmp_path / "model.onnx")
    session = ort.InferenceSession(str(tmp_path / "model.onnx"))
    ids = np.random.default_rng(0).integers(8, model.vocab_size, (1, 12))
    ids[0, 4] = model.mask_id if family == "esm" else 5
    for before, after in ((0, 0), (5, 0), (0, 5), (3, 2)):
        padded = np.pad(ids, ((0, 0), (before, after)), constant_values=pad)
        mask = np.pad(np.ones_like(ids), ((0, 0), (before, after)))
        with torch.no_grad():
            wanted = loaded(input_ids=torch.asarray(padded), attention_mask=torch.asarray(mask)).logits.numpy()
        got = session.run(None, {"input_ids": padded, "attention_mask": mask})[0]
        assert np.abs(got - wanted)[:, before : before + 12].max() <= allowed(wanted), (before, after)


@pytest.mark.parametrize("family", ["xlm-roberta", "camembert"])
def test_sentencepiece_bpe_model_is_read_as_they_read_it(family: str, shared_data: Path, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="trains a model: pip install sentencepiece")
    lines = (shared_data / "sst2" / "train.tsv").read_text(encoding="utf-8").splitlines()[:3000]
    (tmp_path / "text").write_text("\n".join(lines), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "m"), vocab_size=600, minloglevel=2
    )
    (tmp_path / "m.model").rename(tmp_path / "sentencepiece.bpe.model")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    kind = {"xlm-roberta": transformers.XLMRobertaTokenizer, "camembert": transformers.CamembertTokenizer}[family]
    reference, built = kind.from_pretrained(tmp_path), hf_tokenizer(tmp_path)
    for sentence in (*lines[:50], "It's  a Wörld of ``quotes'' ﬁne", "the <mask> sat", ""):
        assert built.encode(sentence).ids == reference(sentence)["input_ids"], sentence
    assert built.encode("a film", "a show").ids == reference("a film", "a show")["input_ids"]


def test_spiece_model_is_read_as_they_read_it(shared_data: Path, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="trains a model: pip install sentencepiece")
    lines = (shared_data / "sst2" / "train.tsv").read_text(encoding="utf-8").splitlines()[:3000]
    (tmp_path / "text").write_text("\n".join(lines), encoding="utf-8")
    options = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "control_symbols": ["[CLS]", "[SEP]", "[MASK]"]}
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "spiece"), vocab_size=600, minloglevel=2, **options
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "albert"}))
    reference, built = transformers.AlbertTokenizer.from_pretrained(tmp_path), hf_tokenizer(tmp_path)
    for sentence in (*lines[:50], "It's  a Wörld of ``quotes'' ﬁne", "the [MASK] sat", ""):
        assert built.encode(sentence).ids == reference(sentence)["input_ids"]
