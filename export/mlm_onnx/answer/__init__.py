"""Answers: numpy, onnxruntime and tokenizers, nothing else."""
