"""Mutations of files for fuzz tests: flipped bits, cut and repeated parts, and values that no program wrote."""

from __future__ import annotations

import random
import re
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from upstreams.errors import UserError

SECONDS = 5.0  # of processor time that a file may take
BYTES = 500 << 20  # by which all files together may raise the peak of memory

# What stands in the place of a number, a text or a mapping.
VALUES = (
    b"-1", b"0", b"1", b"20000", b"4000000000", b"9" * 5000, b"1e999", b"NaN", b"1.5", b"true", b"null", b"{}", b"[]",
    b'""', b'"x"', b"[" * 2000, b'{"a":' * 2000, b'"../../x"', b"\x00", b"\xff\xfe", "é".encode(), b"2001-99-99",
    b"!!int", b"*a", b"&a [*a]", b"\t", b"\n", b"0x" + b"f" * 5000,
)  # fmt: skip


def mutations(data: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield `count` mutated copies of a file's contents, the same ones in every run."""
    draw = random.Random(seed)
    for _ in range(count):
        content = bytearray(data)
        for _ in range(draw.choice((1, 1, 1, 2, 4))):
            _mutate(content, draw)
        yield bytes(content)


def _mutate(content: bytearray, draw: random.Random) -> None:
    # Half of the mutations hit the beginning, where most formats have their structure.
    size = max(1, len(content) if draw.random() < 0.5 else min(len(content), 1500))
    at, length = draw.randrange(size), draw.choice((1, 2, 4, 16, 200))
    match draw.choice(("bit", "bit", "value", "value", "number", "cut", "insert", "delete", "repeat", "zeros")):
        case "bit" if content:
            content[at % len(content)] ^= 1 << draw.randrange(8)
        case "value":
            # At a whole value of JSON or YAML, if there is one.
            found = list(re.finditer(rb'-?\d+(?:\.\d+)?|"[^"\n]{0,40}"|\b\w+\b', content[:size]))
            start, end = draw.choice(found).span() if found else (at, at + length)
            content[start:end] = draw.choice(VALUES)
        case "number":
            content[at : at + 8] = draw.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1)).to_bytes(8, "little")
        case "cut":
            del content[at:]
        case "insert":
            content[at:at] = bytes(draw.randrange(256) for _ in range(length))
        case "delete":
            del content[at : at + length]
        case "repeat":
            content[at:at] = content[at : at + length] * draw.choice((1, 2, 50))
        case "zeros":
            content[at : at + length] = bytes(length)


def check_mutations(path: Path, read: Callable[[Path], object], count: int, seed: int = 0) -> None:
    """Read `count` mutated copies of a file, in its place: each is read, or refused by a UserError of one line.

    Fails on every other exception, on a message of many lines' length, and if a copy takes much time or memory.
    """
    original = path.read_bytes()
    read(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for number, content in enumerate(mutations(original, count, seed)):
        path.write_bytes(content)
        start = time.process_time()
        try:
            read(path)
        except UserError as error:
            refused += 1
            assert len(str(error)) < 2000, f"mutation {number}: a message of {len(str(error))} characters"
        except BaseException as error:
            raise AssertionError(
                f"mutation {number} (seed {seed}): {type(error).__name__}: {str(error)[:300]}"
            ) from error
        seconds = time.process_time() - start
        assert seconds < SECONDS, f"mutation {number} (seed {seed}) took {seconds:.1f} s"
    path.write_bytes(original)
    read(path)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < BYTES, f"the peak of memory grew by {grown >> 20} MB"
    assert refused > count // 5, "most mutations must reach the reader as damage"
