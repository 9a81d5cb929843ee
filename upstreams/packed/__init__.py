"""Inference on packed bits: a native kernel, its twin in torch, packed files, and a runtime without torch.

This package, its `runtime` and its `streaming` import no torch.
"""
