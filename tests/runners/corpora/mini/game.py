"""A generated container in the game's format, and source folders with it."""

from __future__ import annotations

import array
import io
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from runners.corpora.mini import sources

HEADER = b"\0" * 20
SECONDS = 2.0


def padded(text: str, position: int, align: int) -> bytes:
    """Return a string as in the game's files, padded to a multiple of `align` unless it is empty."""
    data = bytes([len(text)]) + text.encode("ascii")
    if text:
        data += b"\xff" * (-(position + len(data)) % align)
    return data


def line_list(lines: list[tuple[int, str]], position: int) -> bytes:
    data = b""
    for identity, text in lines:
        data += struct.pack(">hh", 9, identity)
        data += padded(text, position + len(data), 4)
    return data


def dialogue(
    key: int,
    joe: list[tuple[int, str]],
    person: list[tuple[int, str]],
    greeting: str | None = None,
    last: tuple[str, str] = ("", ""),
    levels: int = 1,
) -> bytes:
    """Return a `*.DOG` text without its header. A greeting is a line with id 0 at the begin of Joe's list."""
    joe_at = 32 + 96 * abs(levels)
    if greeting is not None:
        joe = [(0, greeting), *joe]
    joe_data = line_list(joe, joe_at)
    person_at = joe_at + len(joe_data)
    person_at += person_at % 2
    joe_data = joe_data.ljust(person_at - joe_at, b"\0")
    person_data = line_list(person, person_at)
    last_at = person_at + len(person_data)
    first = padded(last[0], last_at, 2)
    head = bytearray(joe_at)
    for position, value in ((0, levels), (4, key), (6, len(joe)), (8, len(person))):
        struct.pack_into(">h", head, position, value)
    for position, value in ((22, person_at), (26, last_at)):
        struct.pack_into(">H", head, position, value)
    tail = first + padded(last[1], last_at + len(first), 2)
    return bytes(head) + joe_data + person_data + tail


def scene(strings: list[str], entry: str = "entry") -> bytes:
    """Return a `*.CUT` text without its header."""
    head = bytearray(12)
    struct.pack_into(">h", head, 2, -len(strings))
    struct.pack_into(">H", head, 8, len(head))
    data = bytes(head)
    for text in (entry, *strings):
        data += padded(text, len(data), 2)
    return data


def speech(seed: int, rate: int = 11025) -> bytes:
    stream = io.BytesIO()
    wave = np.random.default_rng(seed).standard_normal(round(SECONDS * rate)) * 0.1
    soundfile.write(stream, wave, rate, format="MP3", subtype="MPEG_LAYER_III")
    return stream.getvalue()


@dataclass
class Container:
    """Files of a container; `data` returns the bytes of `queen.1c`."""

    files: dict[str, bytes] = field(default_factory=dict)

    def data(self) -> bytes:
        at = 15 + 21 * len(self.files)
        table, body = b"QTBLCEM10\0\0\0\0" + struct.pack(">H", len(self.files)), b""
        for name, content in self.files.items():
            entry = (name.encode().ljust(12, b"\0"), 1, at + len(body), len(content))
            table += struct.pack(">12sBII", *entry)
            body += content
        return table + body


def small_game(per_dialogue: int = 28) -> bytes:
    """Return a container with dialogues of 28 lines: by characters for SID, and by speakers of ASR's dev and test."""
    container = Container()
    streams = [speech(seed) for seed in range(4)]
    words = ["HELLO", "GARDEN", "WINTER", "MORNING", "RIVER", "WINDOW", "LETTER", "DOCTOR"]
    people = {"BOB1": 1, "BOB2": 2, "TAM1": 3, "TAM2": 4, "FRANK": 5, "IAN1": 6, "LOU1": 7, "LOU2": 8, "LOU3": 9}
    for name, key in people.items():
        lines = []
        for index in range(per_dialogue):
            text = f"The {words[index % 8].lower()} and the {words[(index + key) % 8].lower()}, my old friend!"
            lines.append((index + 10, text))
            container.files[f"{key:2d}{index + 10:4x}P1.SB".replace(" ", "0").upper()] = streams[index % 4]
        container.files[f"{name}.DOG"] = HEADER + dialogue(key, [(1, "Not recorded.")], lines)
    container.files["C10A_011.SB"] = streams[0]
    container.files["C10A.CUT"] = HEADER + scene(["Behold the river."])
    return container.data()


def write_sources(folder: Path, game: bytes) -> dict[str, str]:
    """Write `game` and one prompt for each language in the layout of the packages; return package -> digest."""
    from G722 import G722

    digests = {}
    for number, package in enumerate(sources.PACKAGES):
        path = package.path(folder)
        if package is sources.QUEEN:
            path.parent.mkdir(parents=True)
            path.write_bytes(game)
        else:
            (path / "digits").mkdir(parents=True)
            wave = np.random.default_rng(number).integers(-3000, 3000, 16_000)
            (path / "digits" / "one.g722").write_bytes(G722(16_000, 64_000).encode(array.array("h", wave.tolist())))
        digests[package.name] = sources.digest(path)
    return digests
