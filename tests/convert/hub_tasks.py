"""Answers with optimum's models in transformers' pipelines from the bundle of a fine-tuned run, as it is.

python hub_tasks.py TASK BUNDLE TEXTS   (JSON) → JSON on stdout; run by a Python that has the extra `peers`
"""

import json
import sys

from optimum.onnxruntime import (
    ORTModelForQuestionAnswering,
    ORTModelForSequenceClassification,
    ORTModelForTokenClassification,
)
from transformers import AutoTokenizer, pipeline

MODELS = {
    "text-classification": (ORTModelForSequenceClassification, {"top_k": None}),
    "token-classification": (ORTModelForTokenClassification, {"aggregation_strategy": "first"}),
    "question-answering": (ORTModelForQuestionAnswering, {"align_to_words": False}),
}
task, bundle, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
kind, options = MODELS[task]
model = kind.from_pretrained(bundle, subfolder="onnx", file_name="model.onnx")
ask = pipeline(task, model=model, tokenizer=AutoTokenizer.from_pretrained(bundle), device="cpu")
if task == "question-answering":
    found = [ask(question=question, context=context, **options) for question, context in texts]
else:
    found = ask(texts, **options)
print(json.dumps(found, default=float))
