"""How good a model is: held-out figures, sentence scores, samples."""
