"""The operations that the encoder is made of, with their gradients written out."""
