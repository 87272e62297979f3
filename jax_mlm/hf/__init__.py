"""Hugging Face directories in and out, without torch: six families, config.json, weights and tokenizer."""
