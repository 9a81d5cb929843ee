"""What a file is by its first bytes, whatever its name says. Imports no torch."""

from __future__ import annotations

from pathlib import Path

SAFETENSORS = "is a safetensors file"
PYTORCH = "is a PyTorch file"

# The first bytes of files that are taken for checkpoints -> what to say of them.
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "is a git-lfs pointer, not the file itself: run `git lfs pull` or download the file"),
    (b"PK\x03\x04", PYTORCH),  # a zip archive
    (b"\x80\x02", PYTORCH),  # torch.save before version 1.6: a pickle
    (b"\x1f\x8b", "is a gzip archive: unpack it"),
    (b"BZh", "is a bzip2 archive: unpack it"),
    (b"\xfd7zXZ", "is an xz archive: unpack it"),
    (b"7z\xbc\xaf", "is a 7z archive: unpack it"),
    (b"\x93NUMPY", "is a NumPy array"),
    (b"\x89HDF", "is an HDF5 file"),
)


def described(path: Path) -> str:
    """Return what a file is, as the end of a sentence: SAFETENSORS, PYTORCH, or why it can be no checkpoint."""
    with path.open("rb") as file:
        start = file.read(512)
    for beginning, what in _BEGINNINGS:
        if start.startswith(beginning):
            return what
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not text:
        return "is empty"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<error")):
        return "is an HTML page, probably the answer of a server that did not have the file: download it again"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8:
        return SAFETENSORS
    if text.startswith((b"{", b"[")):
        return "is JSON text"
    return "is neither a safetensors nor a PyTorch file"
