"""Answers with optimum's ORTModelForMaskedLM from a bundle as it is; run by a Python that has the extra `peers`.

python hub_loader.py BUNDLE TEXTS   (JSON) → JSON on stdout
"""

import json
import sys

from optimum.onnxruntime import ORTModelForMaskedLM
from transformers import AutoTokenizer, pipeline

bundle, texts = sys.argv[1], json.loads(sys.argv[2])
answers = {}
for dtype, where in {"fp32": {}, "q8": {"subfolder": "onnx", "file_name": "model_quantized.onnx"}}.items():
    model = ORTModelForMaskedLM.from_pretrained(bundle, **where)
    fill = pipeline("fill-mask", model=model, tokenizer=AutoTokenizer.from_pretrained(bundle), device="cpu")
    found = fill(texts, top_k=5, batch_size=len(texts))
    answers[dtype] = [[(candidate["token"], candidate["score"]) for candidate in each] for each in found]
print(json.dumps({"answers": answers, "types": model.config.model_type}))
