"""A tokenizer that reads the names of special tokens in a text as text, as training does (`jax_mlm.data.tokenizer`)."""

from __future__ import annotations

import json

from tokenizers import Tokenizer


def as_text(tokenizer: Tokenizer, unknown: str | None) -> Tokenizer:
    """Return a copy in which special tokens have names that no text holds, and their ids.

    The unknown token stays what it is: a text writes it for a word that it leaves out.
    """
    content = json.loads(tokenizer.to_str())
    model = content["model"]
    kept = {unknown, model.get("unk_token")}
    if model["type"] == "Unigram" and model["unk_id"] is not None:
        kept.add(model["vocab"][model["unk_id"]][0])
    names = {token["content"] for token in content["added_tokens"] if token["special"]} - kept
    new = {name: f"\uffff{name}" for name in names}
    for token in content["added_tokens"]:
        token["content"] = new.get(token["content"], token["content"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {new.get(piece, piece): id for piece, id in model["vocab"].items()}
    else:
        model["vocab"] = [[new.get(piece, piece), score] for piece, score in model["vocab"]]
    if "merges" in model:  # of names that are pieces: nothing makes them any more
        pairs = (merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"])
        model["merges"] = [pair for pair in pairs if new.keys().isdisjoint((*pair, "".join(pair)))]
    return Tokenizer.from_str(json.dumps(content, ensure_ascii=False))
