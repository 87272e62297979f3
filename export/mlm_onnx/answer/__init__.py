"""Answering queries. Needs only numpy, onnxruntime and tokenizers."""
