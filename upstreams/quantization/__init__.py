"""Binarization (BiT, arXiv 2205.13016): quantizers with their gradients, the modules that hold them, conversion."""
