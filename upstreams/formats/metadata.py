"""Metadata keys that tell the .safetensors files of this project apart. Imports no torch."""

CHECKPOINT = "superbit"
PACKED = "superbit-packed"
