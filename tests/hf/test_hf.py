"""Hugging Face directories in and out: real checkpoints answer as published, and bad input is one clear line."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from mlm_onnx import FillMask
from mlm_onnx.convert import Request, convert
from safetensors.numpy import load_file, save_file
from support.models import (
    EACH_FAMILY,
    HF_BERT,
    HF_ROBERTA,
    HF_TINY,
    MODELS,
    assert_trees_equal,
    cached_shapes,
    logits_of,
    randomised,
)
from support.runs import REAL, save_run
from tokenizers import Tokenizer

from jax_mlm.config import ModelConfig
from jax_mlm.data.tokenizer import load_tokenizer, train_tokenizer
from jax_mlm.errors import UserError
from jax_mlm.evals.text import evaluate_text
from jax_mlm.hf.__main__ import main
from jax_mlm.hf.config import AFTER_PADDING, FAMILIES, check_expressible, from_hf, hf_config
from jax_mlm.hf.directory import export_hf, import_hf, read_hf
from jax_mlm.hf.names import NAMES, entries, family_of
from jax_mlm.hf.tokenizer import hf_tokenizer
from jax_mlm.hf.weights import write_params
from jax_mlm.model.encoder import Inputs
from jax_mlm.model.heads import make_forward
from jax_mlm.presets import PRESETS, SENTENCE
from jax_mlm.run.checkpoint import load_params
from jax_mlm.run.directory import read_run
from jax_mlm.train.start import read_initial

BUNDLED = [pytest.param(name, marks=() if name == "bert-tiny-english" else pytest.mark.slow) for name in REAL]
"""One real checkpoint for every change; the others, of six and twelve layers, once."""


@pytest.fixture(scope="module", params=BUNDLED)
def real(request: pytest.FixtureRequest, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A real checkpoint: its name, its folder, and the run that import makes of it."""
    folder = shared_data / "weights" / request.param
    run = tmp_path_factory.mktemp("hf") / request.param
    import_hf(folder, run)
    return request.param, folder, run


@pytest.fixture
def make_folder(tmp_path: Path, tokenizer: Tokenizer) -> Callable[..., Path]:
    """Writes a small model's directory; `change` edits its tensors, `config` its config.json (None: drops a field)."""

    def make(
        model: ModelConfig = HF_BERT, change: Callable[[dict[str, np.ndarray]], Any] | None = None, **config: Any
    ) -> Path:
        folder = tmp_path / "hf"
        folder.mkdir()
        write_params(folder / "model.safetensors", randomised(model), model)
        values = hf_config(model, 0, None, None) | config
        (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
        tokenizer.save(str(folder / "tokenizer.json"))
        if change is not None:
            tensors = load_file(folder / "model.safetensors")
            changed = change(tensors)
            save_file(tensors if changed is None else changed, folder / "model.safetensors")
        return folder

    return make


# ---- the real checkpoints ------------------------------------------------------------------------


def test_real_checkpoints_answer_as_transformers_recorded(real: Any) -> None:
    name, folder, run = real
    recorded = json.loads((folder / "reference.json").read_text())
    model, (_, params) = read_run(run).model, load_params(run)
    tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))

    def all_logits_of(ids: list[int], longest: int) -> np.ndarray:
        tokens, segments = (np.pad(each, (0, longest - len(ids)))[None] for each in (ids, np.ones_like(ids)))
        at = np.arange(longest)[None]
        return np.asarray(jax.jit(make_forward(model))(params, Inputs(tokens, segments, at), at))[0, : len(ids)]

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    if name == "bert-tiny-english":
        longest = max(len(answer["input_ids"]) for answer in recorded.values())
        for text, answer in recorded.items():
            assert tokenizer.encode(text).ids == answer["input_ids"]
            all_logits = all_logits_of(answer["input_ids"], longest)
            row = all_logits[answer["mask_pos"]]
            np.testing.assert_allclose(row[:20], answer["logits_mask_first20"], atol=2e-5)
            assert [tokenizer.id_to_token(i) for i in np.argsort(-row)[:5]] == [token for token, _ in answer["top5"]]
            np.testing.assert_allclose(np.sort(row)[::-1][:5], [value for _, value in answer["top5"]], atol=2e-5)
            np.testing.assert_allclose(all_logits.astype(np.float64).sum(), answer["logits_sum"], rtol=1e-6)
            saturated = np.log1p(np.maximum(all_logits, 0)).max(0)
            best = np.argsort(-saturated)[:10]
            assert [tokenizer.id_to_token(i) for i in best] == [token for token, _ in answer["splade_top10"]]
    elif name == "albert-reactions":
        for answer in recorded:
            ids = tokenizer.encode(answer["text"]).ids
            for masked in answer["masked"]:
                ids[masked["pos"]] = tokenizer.token_to_id("[MASK]")
            assert ids == answer["input_ids"]
            rows = logits_of(model, params, ids)
            first = answer["masked"][0]["pos"]
            np.testing.assert_allclose(rows[first], answer["logits_first_masked_pos"], atol=5e-5)
            for masked in answer["masked"]:
                probabilities = softmax(rows[masked["pos"]])
                for token, probability in masked["top5"]:
                    assert probabilities[tokenizer.token_to_id(token)] == pytest.approx(probability, abs=2e-6)
    else:
        ids = recorded["input_ids"]
        assert tokenizer.encode(recorded["masked"].replace("*", "<mask>")).ids == ids
        rows = softmax(logits_of(model, params, ids))[1:-1]
        np.testing.assert_allclose(rows[:5], recorded["probs_rows0to4_all25"], atol=2e-6)
        acids = [tokenizer.token_to_id(letter) for letter in "ACDE"]
        np.testing.assert_allclose(rows[:5, acids], recorded["published_probs_ACDE_rows0to4"], atol=2e-6)
        filled = "".join(
            tokenizer.id_to_token(int(row[4:24].argmax()) + 4) if letter == "*" else letter
            for letter, row in zip(recorded["masked"], rows, strict=True)
        )
        assert filled == recorded["published_fill"]


def test_import_export_import_is_the_identity(real: Any, tmp_path: Path) -> None:
    _, folder, run = real
    export_hf(run, tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "again")
    assert_trees_equal(load_params(run)[1], load_params(tmp_path / "again")[1])
    assert read_run(run).model == read_run(tmp_path / "again").model
    assert (run / "tokenizer.json").read_text() == (tmp_path / "again" / "tokenizer.json").read_text()
    theirs, ours = load_file(folder / "model.safetensors"), load_file(tmp_path / "hf" / "model.safetensors")
    for name, array in ours.items():
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        np.testing.assert_array_equal(array, theirs[name if name in theirs else old])


@pytest.mark.parametrize("real", BUNDLED, indirect=True)
def test_bundles_of_real_checkpoints_give_the_same_top5(real: Any, tmp_path: Path) -> None:
    name, folder, run = real
    recorded = json.loads((folder / "reference.json").read_text())
    manifest = convert(run, tmp_path / "bundle", Request("fp32"))
    assert manifest["parity"]["fp32"]["max_difference"] <= 1e-4
    fill = FillMask(tmp_path / "bundle")
    if name == "bert-tiny-english":
        for text, answer in recorded.items():
            tokens = [c["token"] for c in fill(text, top_k=5)["masks"][0]["candidates"]]
            assert tokens == [token for token, _ in answer["top5"]]
    elif name == "albert-reactions":
        tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
        for answer in recorded:
            text, offsets = answer["text"], tokenizer.encode(answer["text"]).offsets
            for masked in reversed(answer["masked"]):
                start, end = offsets[masked["pos"]]
                text = f"{text[:start]}[MASK]{text[end:]}"
            for masked, mask in zip(answer["masked"], fill(text, top_k=5)["masks"], strict=True):
                got = mask["candidates"]
                certain = [token for token, probability in masked["top5"] if probability > 0]
                assert [c["token"] for c in got][: len(certain)] == certain
                probabilities = [c["probability"] for c in got]
                np.testing.assert_allclose(probabilities, [p for _, p in masked["top5"]], atol=2e-6)
    else:
        text = recorded["masked"].replace("*", "<mask>")
        for mask, row in zip(fill(text, top_k=5)["masks"], (0, 1, 5), strict=True):
            if row < 5:
                expected = np.argsort(-np.asarray(recorded["probs_rows0to4_all25"][row]))[:5]
                assert [c["id"] for c in mask["candidates"]] == expected.tolist()
            assert mask["candidates"][0]["token"] == recorded["published_fill"][row]


@pytest.mark.slow
@pytest.mark.parametrize("real", BUNDLED, indirect=True)
def test_int8_bundles_of_real_checkpoints_keep_tokens_and_most_answers(real: Any, tmp_path: Path) -> None:
    name, folder, run = real
    parity = convert(run, tmp_path / "bundle")["parity"]
    assert parity["fp32"]["max_difference"] <= 1e-4
    assert parity["int8"]["top1_agreement"] >= 0.85, "on random tokens, of which the model is least sure"
    recorded = json.loads((folder / "reference.json").read_text())
    texts = {
        "bert-tiny-english": lambda: [*recorded, *TEXTS],
        "albert-reactions": lambda: [answer["text"] for answer in recorded],
        "roberta-antibody": lambda: [recorded["masked"].replace("*", "<mask>"), "QVQLX"],
    }[name]()
    original, bundled = (Tokenizer.from_file(str(path / "tokenizer.json")) for path in (folder, tmp_path / "bundle"))
    original.no_truncation()
    original.no_padding()
    for text in texts:
        assert bundled.encode(text).ids == original.encode(text).ids


# ---- the five families ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_names_every_array_once(family: str) -> None:
    for untied in (False, True):
        model = replace(MODELS[family], tied=not untied)
        paths = [entry.path for entry in entries(model)]
        assert len(paths) == len(set(paths))
        assert set(paths) == set(cached_shapes(model))
    assert set(NAMES) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["tied", "untied"])
def test_every_family_survives_the_way_out_and_in(
    family: str, tied: bool, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    model = replace(MODELS[family], tied=tied)
    params = randomised(model)
    run = save_run(tmp_path / "run", model, params, tokenizer)
    assert export_hf(run, tmp_path / "hf") == 7
    imported = read_hf(tmp_path / "hf")
    assert imported.model == model
    assert_trees_equal(imported.params, params)
    assert imported.remarks == ("the tokenizer has 16 tokens, the embedding 64: 48 rows stand for no token",)
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "Held-out loss 1.5000 nats, accuracy 0.2500" in card
    assert all(word in card for word in ("a.txt", "step 7", "licence", 'model="hf"', family))


@pytest.mark.parametrize("name", ["sentence", "tiny", "small"])
def test_our_presets_are_models_of_a_known_type(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = replace(PRESETS[name].model, vocab_size=64, layers=2)
    params = randomised(model)
    export_hf(save_run(tmp_path / "run", model, params, tokenizer), tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == "modernbert"
    assert_trees_equal(read_hf(tmp_path / "hf").params, params)


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_can_be_exported(name: str) -> None:
    model = replace(PRESETS[name].model, vocab_size=64)
    check_expressible(model, max(0, model.position_offset - 1))
    check_expressible(
        replace(model, layers=1, layer_groups=min(model.layer_groups, 1)), max(0, model.position_offset - 1)
    )


def test_roberta_positions_follow_the_padding_token(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Trained with offset 2 and [PAD] = 0: transformers counts from row 1, so the table moves."""
    model = replace(HF_ROBERTA, layers=1, position_offset=2)
    params = randomised(model)
    export_hf(save_run(tmp_path / "run", model, params, tokenizer), tmp_path / "hf")
    imported = read_hf(tmp_path / "hf")
    assert (imported.model.position_offset, imported.model.max_length) == (1, 32)
    ids = [3, 4, 2, 9]
    np.testing.assert_array_equal(logits_of(imported.model, imported.params, ids), logits_of(model, params, ids))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"norm": "rms"}, "train it without"),
        ({"gated": False}, "gated"),
        ({"token_types": 2}, "token_types"),
        ({"layer_groups": 1}, "layer_groups"),
    ],
)
def test_what_modernbert_has_no_field_for_is_not_exported(
    change: dict[str, Any], named: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    model = replace(ModelConfig(**HF_TINY), **change)
    run = save_run(tmp_path / "run", model, randomised(model), tokenizer)
    with pytest.raises(UserError, match=named):
        export_hf(run, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_patterns_of_local_layers() -> None:
    def every(layers: int, **values: Any) -> int:
        return from_hf({"num_hidden_layers": layers, "vocab_size": 8, **values}, "modernbert").global_every

    full, local = "full_attention", "sliding_attention"
    assert every(22) == 3
    assert every(4, global_attn_every_n_layers=1) == 1
    assert every(3, layer_types=[full, local, local]) == 3
    assert every(4, layer_types=[full, local, full, local]) == 2
    with pytest.raises(UserError, match="layer_types"):
        every(3, layer_types=[local, full, local])
    old = from_hf({"global_rope_theta": 1000.0, "local_rope_theta": None}, "modernbert")
    assert (old.rope_theta, old.rope_theta_local) == (1000.0, 1000.0)


# ---- old habits ----------------------------------------------------------------------------------


def old_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """TensorFlow's names of norms, no prefix, a pooler and the next-sentence head."""
    renamed = {
        name.removeprefix("bert.")
        .replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta"): array
        for name, array in tensors.items()
    }
    extra = {"pooler.dense.weight": np.ones((16, 16), np.float32), "cls.seq_relationship.bias": np.ones(2, np.float32)}
    return renamed | extra | {"embeddings.position_ids": np.arange(32)}


def test_old_names_extra_heads_and_no_model_type(make_folder: Any, capsys: Any, tmp_path: Path) -> None:
    folder = make_folder(HF_BERT, old_names, model_type=None)
    assert main(["import", str(folder), str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert "not used: cls.seq_relationship.bias, embeddings.position_ids, pooler.dense.weight" in said.err
    assert said.out.splitlines()[-1] == str(tmp_path / "run")
    assert_trees_equal(load_params(tmp_path / "run")[1], randomised(HF_BERT))


def test_options_name_the_family_and_the_tokenizer(
    make_folder: Any, tokenizer: Tokenizer, capsys: Any, tmp_path: Path
) -> None:
    folder = make_folder(HF_ROBERTA, model_type="xlm-roberta")
    (folder / "tokenizer.json").rename(tmp_path / "other.json")
    options = ["--family", "roberta", "--tokenizer", str(tmp_path / "other.json")]
    assert main(["import", str(folder), str(tmp_path / "run"), *options]) == 0
    assert capsys.readouterr().err.splitlines()[-1].startswith("the tokenizer has 16 tokens, the embedding 64: 48 rows")
    assert read_run(tmp_path / "run").model == HF_ROBERTA


def test_an_imported_run_can_be_evaluated(make_folder: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("JAX_MLM_CACHE", str(tmp_path / "cache"))
    import_hf(make_folder(replace(HF_BERT, layers=1)), tmp_path / "run")
    (tmp_path / "text").write_text(f"{SENTENCE}\n" * 9)
    run, data = tmp_path / "run", [str(tmp_path / "text")]
    result = evaluate_text(run, read_run(run), load_params(run, 0)[1], data, batch=32)
    assert result["tokens"] == 9 * 13
    assert np.isfinite(result["loss"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_family_is_known_by_its_tensors(family: str) -> None:
    names = [name for entry in entries(MODELS[family]) for name in entry.names]
    known = "roberta" if family in AFTER_PADDING else family  # its namesakes differ from it in nothing but the name
    assert family_of(names) == known
    assert family_of([name.removeprefix(NAMES[family].prefix) for name in names]) == known
    assert family_of(["something.weight"]) is None


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_decoders_stored_twice_apart_or_under_the_other_name(family: str, make_folder: Any) -> None:
    model, n = MODELS[family], NAMES[family]
    params = randomised(model)
    table, decoder = f"{n.prefix}{n.tokens}.weight", f"{n.decoder}.weight"

    def twice(tensors: dict[str, np.ndarray]) -> None:
        tensors[decoder] = tensors[table].copy()
        tensors[n.bias[0]] = tensors[n.bias[-1]].copy()

    folder = make_folder(model, twice)
    spare = read_hf(folder).remarks
    assert len(spare) == 1, "copies are no news"
    tensors = load_file(folder / "model.safetensors")

    moved = dict(tensors)
    del moved[table]
    save_file(moved, folder / "model.safetensors")
    assert read_hf(folder).model.tied
    assert_trees_equal(read_hf(folder).params, params)

    if n.bias[0] != n.bias[-1]:
        moved = {name: array for name, array in tensors.items() if name != n.bias[-1]}
        save_file(moved, folder / "model.safetensors")
        assert_trees_equal(read_hf(folder).params, params)

    save_file(tensors | {decoder: tensors[table] + 1}, folder / "model.safetensors")
    apart = read_hf(folder)
    assert not apart.model.tied
    assert "kept apart" in apart.remarks[0]
    np.testing.assert_array_equal(apart.params["decoder"], params["token_table"] + 1)


@pytest.mark.parametrize(("kind", "code"), [("float16", "F16"), ("bfloat16", "BF16"), ("float64", "F64")])
def test_other_precisions_become_float32(kind: str, code: str, make_folder: Any) -> None:
    folder = make_folder()
    dtype = np.dtype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
    header, body = {}, b""
    for name, array in load_file(folder / "model.safetensors").items():
        data = array.astype(dtype).tobytes()
        span = [len(body), len(body) + len(data)]
        header[name] = {"dtype": code, "shape": array.shape, "data_offsets": span}
        body += data
    head = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + body)
    expected = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), randomised(HF_BERT))
    assert_trees_equal(read_hf(folder).params, expected)


def test_shards(make_folder: Any) -> None:
    folder = make_folder()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_trees_equal(read_hf(folder).params, randomised(HF_BERT))
    (folder / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"index\.json names 'b\.safetensors', which is not there"):
        read_hf(folder)


# ---- tokenizers ----------------------------------------------------------------------------------

TEXTS = ("Hello  wörld, it's [MASK] 東京!", "the <mask> sat", "UPPER ``quoted'' ﬁne", "")


def test_vocab_txt_gives_the_ids_of_tokenizer_json(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "weights" / "bert-tiny-english"
    whole = Tokenizer.from_file(str(folder / "tokenizer.json"))
    vocab = sorted(whole.get_vocab(), key=whole.get_vocab().get)
    (tmp_path / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    built = hf_tokenizer(tmp_path)
    for text in TEXTS:
        assert built.encode(text).ids == whole.encode(text).ids
        assert built.encode(text, "pair").type_ids == whole.encode(text, "pair").type_ids
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert hf_tokenizer(tmp_path).encode("UPPER").ids != whole.encode("UPPER").ids


def test_vocab_json_and_merges(tmp_path: Path) -> None:
    characters = ["<s>", "<pad>", "</s>", "<unk>", *"helowrdĠ", "he", "ll", "<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps({text: id for id, text in enumerate(characters)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh e\nl l\n")
    built = hf_tokenizer(tmp_path)
    assert built.encode("hello <mask>").ids == [
        built.token_to_id(t) for t in ("<s>", "he", "ll", "o", "<mask>", "</s>")
    ]
    assert built.encode("hello", "hello").tokens.count("</s>") == 3
    (tmp_path / "merges.txt").write_text("h z\n")
    with pytest.raises(UserError, match=r"merges\.txt do not fit"):
        hf_tokenizer(tmp_path)


def message(*fields: tuple[int, int | bytes | float]) -> bytes:
    """A protocol buffer message of small integers, bytes and floats."""
    out = b""
    for number, value in fields:
        match value:
            case int():
                out += bytes([number << 3, value])
            case float():
                out += bytes([number << 3 | 5]) + struct.pack("<f", value)
            case _:
                out += bytes([number << 3 | 2, len(value)]) + value
    return out


def test_spiece_model(tmp_path: Path) -> None:
    pieces = [("<pad>", 0.0, 3), ("<unk>", 0.0, 2), ("[CLS]", 0.0, 3), ("[SEP]", 0.0, 3), ("[MASK]", 0.0, 3)]
    pieces += [("▁the", -1.0, 1), ("▁c", -2.0, 1), ("at", -2.5, 1), ("a", -4.0, 1), ("t", -4.0, 1), ("▁cat", -9.0, 1)]
    fields = [(1, message((1, text.encode()), (2, score), (3, type))) for text, score, type in pieces]
    model = tmp_path / "spiece.model"
    model.write_bytes(message(*fields, (2, message((3, 1)))))
    built = hf_tokenizer(tmp_path)
    assert built.encode("The  cát [MASK]").ids == [2, 5, 6, 7, 4, 3]
    for broken in (model.read_bytes()[:-20], message(*fields, (2, message((3, 2)))), b"", b"spiece"):
        model.write_bytes(broken)
        with pytest.raises(UserError, match=r"spiece\.model"):
            hf_tokenizer(tmp_path)


def test_a_run_trains_with_the_tokenizer_that_its_file_gives(make_folder: Any, tmp_path: Path) -> None:
    folder = make_folder(MODELS["albert"])
    (folder / "tokenizer.json").unlink()
    names = ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
    fields = [(1, message((1, name.encode()), (2, 0.0), (3, 2 if name == "<unk>" else 3))) for name in names]
    fields += [(1, message((1, f"▁{i}".encode()), (2, -3 - 0.3713 * i), (3, 1))) for i in range(50)]
    (folder / "spiece.model").write_bytes(message(*fields, (2, message((3, 1)))))
    tokenizer = read_initial(folder).tokenizer
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path / "tokenizer.json").to_str() == tokenizer.to_str()


def test_special_tokens_named_in_other_files_only(tokenizer: Tokenizer, tmp_path: Path) -> None:
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "[MASK]"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"mask_token": {"content": "[MASK]", "lstrip": True}}))
    ids = hf_tokenizer(tmp_path).encode("This [MASK]").ids
    assert ids == tokenizer.encode("This [MASK]").ids


# ---- bad input -----------------------------------------------------------------------------------


def spoil_nothing(folder: Path) -> None:
    pass


def truncate(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def small_tokenizer(folder: Path) -> None:
    train_tokenizer([" ".join(f"w{i}" for i in range(90))], "word", 80).save(str(folder / "tokenizer.json"))


HEAD = "cls.predictions.transform.dense.weight"
QUERY = "bert.encoder.layer.1.attention.self.query.weight"
WRONG: dict[str, tuple[dict[str, Any], Callable[[Path], Any], str]] = {
    "family": ({"model_type": "gpt2"}, spoil_nothing, "'gpt2' is not supported: choose from bert, roberta, albert"),
    "truncated": ({}, truncate, "model.safetensors is truncated"),
    "empty": ({}, lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors is truncated"),
    "pickle": ({}, pickle_only, "can run any code when it is opened"),
    "nothing": ({}, lambda f: (f / "model.safetensors").unlink(), "holds no model.safetensors"),
    "no config": ({}, lambda f: (f / "config.json").unlink(), "no config.json"),
    "config": ({}, lambda f: (f / "config.json").write_text("{"), "config.json is not valid JSON"),
    "list": ({}, lambda f: (f / "config.json").write_text("[]"), "config.json holds no JSON object"),
    "type": ({"hidden_size": "wide"}, spoil_nothing, "hidden_size is 'wide', where an integer was expected"),
    "act": ({"hidden_act": "quick_gelu"}, spoil_nothing, "'quick_gelu', which is not supported: gelu,"),
    "relative": ({"position_embedding_type": "relative_key"}, spoil_nothing, "only 'absolute' is supported"),
    "shape": (
        {"hidden_size": 32},
        spoil_nothing,
        "bert.embeddings.word_embeddings.weight has shape (64, 16), where config.json asks for (64, 32)",
    ),
    "vocabulary": ({"vocab_size": 63}, spoil_nothing, "has shape (64, 16), where config.json asks for (63, 16)"),
    "heads": ({"num_attention_heads": 3}, spoil_nothing, "is not a multiple of"),
    "layers": ({"num_hidden_layers": 3}, spoil_nothing, "bert.encoder.layer.2.attention.self.query.weight is missing"),
    "untied": ({"tie_word_embeddings": False}, spoil_nothing, "cls.predictions.decoder.weight is missing"),
    "tokenizer": ({}, small_tokenizer, "the tokenizer has 80 tokens, the embedding only 64"),
    "no tokenizer": ({}, lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer (tokenizer.json, vocab.txt,"),
    "bad tokenizer": ({}, lambda f: (f / "tokenizer.json").write_text("{}"), "is not a tokenizer.json"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_bad_input_is_one_line_and_leaves_nothing(case: str, make_folder: Any, capsys: Any, tmp_path: Path) -> None:
    config, spoil, named = WRONG[case]
    folder = make_folder(**config)
    spoil(folder)
    assert main(["import", str(folder), str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert named in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def test_missing_and_misshapen_tensors_are_named(make_folder: Any) -> None:
    folder = make_folder(change=lambda tensors: tensors.__delitem__(HEAD))
    with pytest.raises(UserError, match=f"{HEAD} is missing.*without its masked-language head"):
        read_hf(folder)
    shutil.rmtree(folder)
    folder = make_folder(change=lambda tensors: tensors.update({QUERY: np.ones((8, 16), np.float32)}))
    with pytest.raises(UserError, match=rf"{QUERY} has shape \(8, 16\), where config.json asks for \(16, 16\)"):
        read_hf(folder)
    shutil.rmtree(folder)
    folder = make_folder(change=lambda tensors: tensors.update({QUERY: np.ones((16, 16), np.int8)}))
    with pytest.raises(UserError, match=f"{QUERY} has type I8"):
        read_hf(folder)


def test_targets_in_use_and_unknown_commands(make_folder: Any, capsys: Any, tmp_path: Path) -> None:
    folder = make_folder()
    assert main(["import", str(folder), str(folder)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "none"), str(tmp_path / "run")]) == 2
    assert "is not a folder" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    assert "is not a run directory" in capsys.readouterr().err
    assert main(["push"]) == 2
    assert main([]) == 0
    assert main(["--help"]) == 0
    assert "jax_mlm.hf import HF_DIR RUN" in capsys.readouterr().out
