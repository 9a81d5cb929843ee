"""Reader of the container of "Flight of the Amazon Queen" (1995): speech, speakers and transcripts.

The format of the container `queen.1c` is documented by the ScummVM project, which plays the game: "QTBL", a version
of 6 bytes, 2 bytes, a compression byte, a u16 count, then entries of 21 bytes (name, bundle, offset, size). Numbers
are big-endian. `*.SB` entries are MP3 streams; texts are in `*.DOG` (dialogues) and `*.CUT` (cut scenes).
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from upstreams.errors import UserError

# Size in bytes of the header before each text. Positions inside a text are relative to the header's end.
_TEXT_HEADER = 20
_ENTRY = struct.Struct(">12sBII")
JOE = "JOE"
# Commands separate the spoken segments of a text: `*` and two characters, or `*XY` and eleven more.
_COMMAND = re.compile(r"\*XY.{0,11}|\*.{0,2}", re.DOTALL)


@dataclass(frozen=True)
class Line:
    """One spoken line: the entry of its voice file, its text and its speaker.

    `text` is None if no dialogue or scene refers to the voice file; `speaker` is None for cut scenes. `dialogue` is
    the text file of the line; lines of one dialogue were recorded together.
    """

    name: str
    offset: int
    size: int
    text: str | None = None
    speaker: str | None = None
    dialogue: str | None = None


class Strings:
    """Reads the length-prefixed strings of one text.

    The position after a non-empty string is rounded up to a multiple of `align`; after an empty string it is not.
    """

    def __init__(self, data: bytes, position: int = 0) -> None:
        self.data = data
        self.position = position

    def u16(self) -> int:
        (value,) = struct.unpack_from(">H", self.data, self.position)
        self.position += 2
        return int(value)

    def string(self, align: int) -> str:
        length = self.data[self.position]
        self.position += 1
        text = self.data[self.position : self.position + length].decode("cp437")
        if length:
            self.position += length
            self.position += -self.position % align
        return text


def segments(text: str) -> list[str]:
    """Return the spoken segments of a text, empty ones included, since voice files are numbered by segment.

    >>> segments("Hello.*08How are you?")
    ['Hello.', 'How are you?']
    """
    return [segment.strip() for segment in _COMMAND.split(text)]


def _voice(prefix: str, number: int) -> str:
    return f"{prefix}{number:x}".replace(" ", "0").upper() + ".SB"


def dialogue_lines(data: bytes) -> list[tuple[str, str]]:
    """Return (prefix of the voice files, text) of each line of a dialogue: `*.DOG` without its header.

    The prefix ends with J for Joe's lines and P for the other person's.
    """
    levels, key, joe_count, person_count = (struct.unpack_from(">h", data, at)[0] for at in (0, 4, 6, 8))
    person_at, last_at = (struct.unpack_from(">H", data, at)[0] for at in (22, 26))
    joe_at = 32 + 96 * abs(levels)
    found = []
    (no_greeting,) = struct.unpack_from(">H", data, joe_at + 2)
    if not no_greeting:
        found.append((f"{key:2d}SSSSJ", Strings(data, joe_at + 4).string(2)))
    for who, at, count in (("J", joe_at, joe_count), ("P", person_at, person_count)):
        reader = Strings(data, at)
        for _ in range(count):
            reader.u16()
            identity = reader.u16()
            found.append((f"{key:2d}{identity:4x}{who}", reader.string(4)))
    reader = Strings(data, last_at)
    found += [(f"{key:2d}XXXX{who}", reader.string(2)) for who in "PJ"]
    return found


def scene_lines(data: bytes, scene: str) -> list[tuple[str, str]]:
    """Return (prefix of the voice files, text) of each line of a cut scene: `<scene>.CUT` without its header."""
    (count,) = struct.unpack_from(">h", data, 2)
    (at,) = struct.unpack_from(">H", data, 8)
    reader = Strings(data, at)
    reader.string(2)  # the scene's entry, which is not spoken
    return [(f"{scene:_<5}{number:02d}", reader.string(2)) for number in range(1, abs(count) + 1)]


def read_container(path: Path) -> list[Line]:
    """Return every voice file of `queen.1c` in the container's order, with text, speaker and dialogue if known.

    Raises UserError if the file is not such a container.
    """
    with path.open("rb") as file:
        head = file.read(15)
        if len(head) < 15 or head[:4] != b"QTBL":
            raise UserError(f"{path} is not the game's container, which begins with QTBL")
        (count,) = struct.unpack_from(">H", head, 13)
        entries: dict[str, tuple[int, int]] = {}
        for _ in range(count):
            raw = file.read(_ENTRY.size)
            if len(raw) < _ENTRY.size:
                raise UserError(f"{path} ends inside its table: {count} entries are expected, {len(entries)} found")
            name, _bundle, offset, size = _ENTRY.unpack(raw)
            entries[name.rstrip(b"\0").decode("ascii").upper()] = (offset, size)
        known: dict[str, tuple[str, str | None, str]] = {}
        for name, (offset, size) in entries.items():
            stem, _, kind = name.rpartition(".")
            if kind not in ("DOG", "CUT"):
                continue
            file.seek(offset + _TEXT_HEADER)
            data = file.read(size - _TEXT_HEADER)
            person = stem.rstrip("0123456789")
            for prefix, text in dialogue_lines(data) if kind == "DOG" else scene_lines(data, stem):
                speaker = None if kind == "CUT" else JOE if prefix.endswith("J") else person
                for number, segment in enumerate(segments(text), 1):
                    voice = _voice(prefix, number)
                    if segment and voice in entries:
                        known.setdefault(voice, (segment, speaker, name))
    return [
        Line(name, offset, size, *known.get(name, (None, None, None)))
        for name, (offset, size) in entries.items()
        if name.endswith(".SB")
    ]


def read_audio(path: Path, line: Line) -> tuple[np.ndarray, int]:
    """Return the waveform of a line, (samples,) float32 in [-1, 1], and its sampling rate in Hz.

    Raises UserError, naming the line, if the stream cannot be decoded.
    """
    import soundfile

    with path.open("rb") as file:
        file.seek(line.offset)
        stream = file.read(line.size)
    try:
        wave, rate = soundfile.read(io.BytesIO(stream), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise UserError(f"{line.name} in {path} is not a readable MP3 stream: {error}") from error
    return wave.mean(axis=1), rate
