"""Inference on packed bits: a native kernel, its twins in numba and torch, packed files, and a runtime without torch.

Importing this package, its `runtime` or its `streaming` imports no torch.
"""
