"""Reader of the game's container."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runners.corpora.mini import queen, sources
from tests.runners.corpora.mini import game
from upstreams.errors import UserError

REAL = sources.QUEEN.path(Path("data/sources"))


def write(path: Path, files: dict[str, bytes]) -> Path:
    path.write_bytes(game.Container(files).data())
    return path


def voices(*names: str) -> dict[str, bytes]:
    return {f"{name}.SB": b"" for name in names}


def test_positions_are_rounded_up_after_non_empty_strings(tmp_path):
    # Lengths with every remainder modulo 4, and empty strings, after which the position is not rounded.
    joe = [(1, "a"), (2, "bcd"), (3, ""), (4, "efgh"), (-86, "ij"), (5, ""), (6, "klmno")]
    person = [(1, "Yes."), (2, ""), (3, "No"), (4, "Maybe!")]
    data = game.dialogue(7, joe, person, greeting="Hi", last=("Bye", "So long"), levels=-3)
    lines = dict(queen.dialogue_lines(data))
    assert {key: text for key, text in lines.items() if text} == {
        " 7SSSSJ": "Hi", " 7   0J": "Hi", " 7   1J": "a", " 7   2J": "bcd", " 7   4J": "efgh", " 7ffaaJ": "ij",
        " 7   6J": "klmno", " 7   1P": "Yes.", " 7   3P": "No", " 7   4P": "Maybe!",
        " 7XXXXP": "Bye", " 7XXXXJ": "So long",
    }  # fmt: skip


def test_voice_files_get_their_texts(tmp_path):
    data = game.dialogue(
        7, [(171, "Hello.*14There?*XY123456789abYes.")], [(1, "*08*09Go away!")], greeting="Hi", last=("Bye", "")
    )
    cut = game.scene(["*", "Look!*24Out!"])
    files = {
        "BOB12.DOG": game.HEADER + data,
        "C10A.CUT": game.HEADER + cut,
        **voices("0700ABJ1", "0700ABJ2", "0700ABJ3", "070001P3", "07SSSSJ1", "07XXXXP1", "C10A_021", "C10A_022"),
        **voices("10SSSSSS"),
    }  # fmt: skip
    lines = queen.read_container(write(tmp_path / "queen.1c", files))
    assert {line.name.removesuffix(".SB"): (line.text, line.speaker, line.dialogue) for line in lines} == {
        "0700ABJ1": ("Hello.", "JOE", "BOB12.DOG"),
        "0700ABJ2": ("There?", "JOE", "BOB12.DOG"),
        "0700ABJ3": ("Yes.", "JOE", "BOB12.DOG"),
        "070001P3": ("Go away!", "BOB", "BOB12.DOG"),
        "07SSSSJ1": ("Hi", "JOE", "BOB12.DOG"),
        "07XXXXP1": ("Bye", "BOB", "BOB12.DOG"),
        "C10A_021": ("Look!", None, "C10A.CUT"),
        "C10A_022": ("Out!", None, "C10A.CUT"),
        "10SSSSSS": (None, None, None),
    }


def test_audio_is_read_from_its_offset(tmp_path):
    streams = {"070001P1.SB": game.speech(1), "070001P2.SB": game.speech(2)}
    path = write(tmp_path / "queen.1c", streams)
    first, second = (queen.read_audio(path, line)[0] for line in queen.read_container(path))
    assert abs(len(first) / 11025 - game.SECONDS) < 0.2 and len(first) == len(second)
    assert first.dtype == np.float32 and not np.allclose(first, second)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "begins with QTBL"),
        (b"RIFF" + b"\0" * 40, "begins with QTBL"),
        (b"QTBLCEM10\0\0\0\0\0\x05" + b"\0" * 30, "5 entries"),
    ],
)
def test_other_files_are_refused(tmp_path, data, message):
    path = tmp_path / "queen.1c"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        queen.read_container(path)


def test_an_unreadable_stream_is_named(tmp_path):
    path = write(tmp_path / "queen.1c", {"070001P1.SB": b"\x01" * 50})
    (line,) = queen.read_container(path)
    with pytest.raises(UserError, match=r"070001P1\.SB"):
        queen.read_audio(path, line)


@pytest.mark.skipif(not REAL.is_file(), reason="the game is not in data/sources: `superbit corpus mini` downloads it")
def test_the_container_of_the_real_game():
    lines = queen.read_container(REAL)
    assert len(lines) == 6745
    assert sum(line.text is not None for line in lines) == 6023
    spoken = [line.speaker for line in lines if line.speaker is not None]
    assert len(spoken) == 3983 and len(set(spoken)) == 30 and spoken.count(queen.JOE) == 1366
