"""Hugging Face's config.json and tokenizer_config.json of a bundle: the mapping is jax_mlm's own."""

from jax_mlm.hf_config import hf_config
from jax_mlm.hf_tokenizer import hf_tokenizer_config

__all__ = ["hf_config", "hf_tokenizer_config"]
