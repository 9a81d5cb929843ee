"""Lists of audio lengths for s3prl's ASR."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile

from runners.corpora.bucket_files import write_bucket_files
from upstreams.errors import UserError


def test_bucket_files(tiny_corpora: Path, tmp_path: Path) -> None:
    librispeech = tiny_corpora / "LibriSpeech"
    write_bucket_files(librispeech, tmp_path, ["dev-clean"])
    lines = (tmp_path / "dev-clean.csv").read_text().splitlines()
    assert lines[0] == ",file_path,length,label" and len(lines) == 7
    lengths = [int(line.split(",")[2]) for line in lines[1:]]
    assert lengths == sorted(lengths, reverse=True)
    name = lines[1].split(",")[1]
    assert soundfile.info(librispeech / name).frames == lengths[0]
    with pytest.raises(UserError, match=r"dev-claen holds no \.flac file"):
        write_bucket_files(librispeech, tmp_path, ["dev-claen"])
