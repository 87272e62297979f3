"""Text becomes rows of tokens: sources → tokenizer → encoding → token files → packing → batches."""
