"""Hugging Face directories in and out, without torch: five families, config.json, safetensors and tokenizer."""
