"""What a model learns: masking, the masked-LM loss, distillation, metrics."""
