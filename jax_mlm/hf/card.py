"""Write the model card that an exported directory carries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jax_mlm.config import TaskConfig, TrainConfig
from jax_mlm.hf.tasks import PIPELINES
from jax_mlm.model.encoder import Params
from jax_mlm.run.directory import read_run_file
from jax_mlm.run.log import METRICS_FILE, read_metrics


def model_card(
    folder: Path,
    run: Path,
    config: TrainConfig,
    params: Params,
    step: int,
    mask: str,
    task: TaskConfig | None = None,
) -> str:
    """Return README.md: where the model comes from and how to use it; the licence is for its owner to fill in."""
    facts, model = read_run_file(run), config.model
    data = facts.get("data", {})
    files = [f"- `{name}`" for name in data.get("files", [])]
    if data.get("imported_from"):
        files = [f"- none here: imported from `{Path(data['imported_from']).name}`"]
    if data.get("init"):
        files.append(f"- those of `{Path(data['init']['from']).name}`, with whose weights this training began")
    if data.get("teacher"):
        files.append(f"- those of `{Path(data['teacher']['from']).name}`, which taught this model")
    measured = ""
    if (run / METRICS_FILE).is_file():
        at = [line for line in read_metrics(run) if line["step"] == step and line["kind"] in ("valid", "final")]
        if at and task is not None:
            measured = f"\n\n{task.metric} {at[-1][task.metric]:.4f} on the examples that chose these weights."
        elif at:
            on = "Held-out loss" if data.get("files") else "Loss on the training text itself (nothing was held out)"
            measured = f"\n\n{on} {at[-1]['loss']:.4f} nats, accuracy {at[-1]['accuracy']:.4f}, at 15 % masks."
    name = folder.resolve().name
    pipeline = PIPELINES[task.kind] if task else "fill-mask"
    what, use = "A masked language model", f'fill = pipeline("fill-mask", model="{name}")\nprint(fill("… {mask} …"))'
    load = "pipeline"
    if task is not None and task.kind == "answer":
        what, load = f"A model for {pipeline}", "AutoModelForQuestionAnswering, AutoTokenizer"
        use = f"""tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForQuestionAnswering.from_pretrained("{name}")
read = tokenizer("a question", "the text that answers it", return_tensors="pt")
found = model(**read)
first, last = int(found.start_logits.argmax()), int(found.end_logits.argmax())
print(tokenizer.decode(read["input_ids"][0][first : last + 1]))"""
    elif task is not None:
        what = f"A model for {pipeline} ({', '.join(task.labels[:20]) or 'a number'})"
        more = ', aggregation_strategy="first"' if task.kind == "tag" else ""
        use = f'answer = pipeline("{pipeline}", model="{name}"{more})\nprint(answer("…"))'
    return f"""---
license: other
license_name: not-chosen-yet
library_name: transformers
pipeline_tag: {pipeline}
mask_token: "{mask}"
tags:
- {model.family}
- {pipeline}
- jax-mlm
---

# {name}

{what}: {model.family}, {model.layers} layers of width {model.width}, {model.heads} heads,
{parameters(params):,} parameters, {model.vocab_size:,} tokens, texts of up to {model.max_length} tokens.

## How to load it

```python
from transformers import {load}

{use}
```

## Training data

{chr(10).join(files) or "- the founding sentence of jax_mlm"}

## Training

Trained with jax_mlm (preset `{config.preset}`, seed {config.seed}); these are the weights of step {step}.{measured}

## Licence

No licence has been chosen yet. Before publishing, state here and in the front matter above which licence covers the
model and which cover its training data.
"""


def parameters(params: Params) -> int:
    """Count the numbers in a tree of arrays."""
    return sum(parameters(x) if isinstance(x, Mapping) else x.size for x in params.values())
