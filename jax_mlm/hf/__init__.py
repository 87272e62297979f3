"""Hugging Face directories in and out, without torch: five families, config.json, safetensors and tokenizer."""

from jax_mlm.hf.directory import Imported, export_hf, import_hf, open_hf, read_hf

__all__ = ["Imported", "export_hf", "import_hf", "open_hf", "read_hf"]
