"""Quantization in training (BiT, arXiv 2205.13016; LSQ): quantizers and gradients, quantized modules, conversion."""
