"""Answer queries as one side of `latency.py`, in a separate process with the Python that has its packages.

    python latency_peers.py SIDE FOLDER THREADS                  answers JSON lines {"texts", "repeat"} on stdin
    python latency_peers.py SIDE FOLDER THREADS TEXT             prints one answer and exits: a cold start
    python latency_peers.py export HF_DIRECTORY OUT              optimum's own ONNX export

Every import is as late as possible, because imports are part of a cold start.
"""

import json
import sys
import time


def ours(folder, threads):
    from mlm_onnx import FillMask

    fill = FillMask(folder, threads)
    return lambda texts: [answer["masks"][0]["candidates"][0]["id"] for answer in fill(texts, top_k=5)]


def onnxruntime_alone(folder, threads):
    """Return what a careful user would write around optimum's export: no torch or transformers, logits everywhere."""
    import numpy as np
    import onnxruntime as ort
    from tokenizers import Tokenizer

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(f"{folder}/model.onnx", options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("[PAD]"), pad_token="[PAD]")
    mask = tokenizer.token_to_id("[MASK]")

    def answer(texts):
        encoded = tokenizer.encode_batch(texts)
        ids = np.array([row.ids for row in encoded])
        given = {"input_ids": ids, "attention_mask": np.array([row.attention_mask for row in encoded])}
        given["token_type_ids"] = np.zeros_like(ids)
        logits = session.run(None, {name: given[name] for name in names})[0]
        rows = logits[np.arange(len(ids)), (ids == mask).argmax(1)]
        shares = np.exp(rows - rows.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        return [int(np.argsort(-row)[:5][0]) for row in shares]

    return answer


def optimum(folder, threads):
    import onnxruntime as ort
    from optimum.onnxruntime import ORTModelForMaskedLM

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return _pipeline(folder, threads, ORTModelForMaskedLM.from_pretrained(folder, session_options=options))


def torch(folder, threads):
    from transformers import AutoModelForMaskedLM

    return _pipeline(folder, threads, AutoModelForMaskedLM.from_pretrained(folder).eval())


def _pipeline(folder, threads, model):
    import torch
    from transformers import AutoTokenizer, pipeline

    torch.set_num_threads(threads)
    fill = pipeline("fill-mask", model=model, tokenizer=AutoTokenizer.from_pretrained(folder), device="cpu")

    def answer(texts):
        answers = fill(texts, top_k=5, batch_size=len(texts))
        return [
            each[0]["token"] for each in ([answers] if len(texts) == 1 and isinstance(answers[0], dict) else answers)
        ]

    return answer


LOAD = {"ours": ours, "onnxruntime": onnxruntime_alone, "optimum": optimum, "torch": torch}
NEEDS = {
    "ours": ("onnxruntime", "tokenizers", "numpy"),
    "onnxruntime": ("onnxruntime", "tokenizers", "numpy"),
    "optimum": ("optimum-onnx", "onnxruntime", "torch", "transformers"),
    "torch": ("torch", "transformers"),
}


def export(folder, out):
    from optimum.exporters.onnx import main_export

    main_export(folder, out, task="fill-mask", do_validation=False)


def memory():
    """Return resident bytes, now and at their peak."""
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    return {name: int(status[key].split()[0]) * 1024 for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))}


def installed(side):
    """Return the bytes on disk of what a side imports, dependencies included, and the versions of what NEEDS names."""
    from importlib.metadata import PackageNotFoundError, distribution
    from pathlib import Path
    from re import match

    todo, seen, size = list(NEEDS[side]), {}, 0
    while todo:
        name = todo.pop().lower().replace("_", "-")
        if name in seen:
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:  # for another platform, or an extra
            continue
        seen[name] = package.version
        size += sum(
            path.stat().st_size for f in package.files or () if (path := Path(package.locate_file(f))).is_file()
        )
        for line in package.requires or ():
            if "extra ==" not in line:
                todo.append(match(r"[\w.-]+", line).group())
    if side == "ours":
        import mlm_onnx

        size += sum(file.stat().st_size for file in Path(mlm_onnx.__file__).parent.glob("*.py"))
    return {"bytes": size, "versions": {name: seen[name] for name in NEEDS[side] if name in seen}}


def main():
    side, folder, threads, *rest = sys.argv[1:]
    if side == "export":
        export(folder, threads)
        return
    answer = LOAD[side](folder, int(threads))
    if rest:
        print("first", answer(rest)[0], flush=True)
        return
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "texts" not in asked:
            print(json.dumps({"memory": memory(), "installed": installed(side)}), flush=True)
            continue
        seconds, tops = [], []
        for _ in range(asked["repeat"]):
            began = time.perf_counter()
            tops = answer(asked["texts"])
            seconds.append(time.perf_counter() - began)
        print(json.dumps({"seconds": seconds, "tops": tops}), flush=True)


if __name__ == "__main__":
    main()
