"""What a model is worth: held-out figures, scores of sentences, samples."""
