"""Text files that users write: manifests, recipes and labels with the faults that editors and other systems put in."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.audio.manifest import Manifest
from pretrain.distill import read_distillation_settings
from pretrain.recipes import read_recipe
from pretrain.targets.label_files import read_labels
from pretrain.targets.purity import purity
from upstreams.config import FrontEndConfig
from upstreams.errors import UserError
from upstreams.files import read_text, universal_lines

MANIFEST = Manifest(Path("/audio"), ("a.wav",), (1280,))

READERS: dict[str, Callable[[Path], object]] = {
    "manifest": Manifest.read,
    "recipe": lambda path: read_recipe(str(path)),
    "distillation recipe": lambda path: read_distillation_settings(path, None),
    "labels": lambda path: read_labels(path, MANIFEST, FrontEndConfig()),
    "phones": lambda path: purity(path, path),
}

FAULTS = {
    b"": "is empty: line 1 is missing",
    b"first\nse\xffcond\n": "line 2 of .* is not UTF-8 at byte 3",
    b"\xef\xbb\xbffirst\n": "line 1 of .* begins with a byte-order mark",
    b"first\n\x00\x01\x02\n": "line 2 of .* holds a NUL byte",
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("content", FAULTS)
def test_a_faulty_text_file_gets_one_sentence_with_the_line(reader: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(content.replace(b"first", b"0 1") if reader == "labels" else content)
    with pytest.raises(UserError) as caught:
        READERS[reader](path)
    assert re.search(FAULTS[content], str(caught.value))


def test_only_a_line_feed_ends_a_line_of_a_manifest(tmp_path: Path) -> None:
    names = ["a\u2028b.wav", "c\x85d.wav", "e\x0cf.wav", "g\x1ch.wav", "i\tj.wav"]
    for name in names:
        (tmp_path / name).touch()
    for end in ("\n", "\r\n"):
        path = tmp_path / "train.tsv"
        lines = [str(tmp_path), *(f"{name}\t16000" for name in names)]
        path.write_bytes("".join(line + end for line in lines).encode())
        manifest = Manifest.read(path)
        assert list(manifest.paths) == names and manifest.root == tmp_path


def test_lists_of_corpora_are_split_as_s3prl_splits_them(tmp_path: Path) -> None:
    """At carriage returns too, as Python's text mode does; a byte-order mark is refused or skipped."""
    path = tmp_path / "list.txt"
    path.write_bytes("a\u2028b\r\nc\rd\n\ne".encode())
    with path.open(encoding="utf-8") as file:
        assert universal_lines(path) == [line.rstrip("\n") for line in file]
    path.write_bytes(b"\xef\xbb\xbfa\n")
    assert universal_lines(path, skip_mark=True) == ["a"] and read_text(path, skip_mark=True) == "a\n"
    with pytest.raises(UserError, match="byte-order mark"):
        universal_lines(path)


def test_labels_with_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "train.km"
    path.write_bytes(b"3 4\r\n")
    assert [ids.tolist() for ids in read_labels(path, MANIFEST, FrontEndConfig())] == [[3, 4]]
