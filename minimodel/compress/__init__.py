"""Model optimisation: weight pruning and quantization."""
