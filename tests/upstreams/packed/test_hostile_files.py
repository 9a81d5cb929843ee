"""Packed files that lie about themselves: every loader refuses each in one sentence, at the price of its size."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.upstreams.packed.models import HAS_NATIVE, quantized, with_head
from upstreams.config import EncoderConfig, FrontEndConfig, ModelConfig
from upstreams.errors import UserError
from upstreams.formats.metadata import PACKED
from upstreams.packed import convert, file
from upstreams.packed.runtime import Runtime

LOADERS: list[Callable[[Path], object]] = [convert.load, *([Runtime] if HAS_NATIVE else [])]
DEEP = 100_000
PACKED_FOLDER = Path(file.__file__).parent
COMPILER = shutil.which("g++") or shutil.which("clang++")

# JSON values of other types and sizes, as text.
ODD = [
    "null",
    "true",
    "false",
    "[]",
    "{}",
    '""',
    '"w1a1"',
    '"\\ud800"',
    '"w' + "1" * 5000 + 'a1"',
    "0",
    "1",
    "-1",
    "1.0",
    "1e999",
    "NaN",
    "9" * 5000,
    "9" * 15,
    "2147483648",
    "[" * DEEP + "]" * DEEP,
    '{"a":' * DEEP + "1" + "}" * DEEP,
    "[1" + ",1" * 70 + "]",
    '{"bits": "w1a1", "signed": "false"}',
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoder = EncoderConfig(layers=1, dim=8, heads=2, feed_forward_dim=8, position_groups=8, position_kernel=3)
    config = ModelConfig("small", FrontEndConfig(mels=4), encoder)
    path = tmp_path_factory.mktemp("hostile") / "whole.safetensors"
    convert.save(path, convert.pack(quantized(config, "w1a1")), {"seed": 1})
    return with_head(path, path.with_name("head.safetensors"), {"slot": ("yes", "no"), "other": ("one",)})


def spliced(tree: Any, path: tuple[Any, ...], text: str) -> str:
    """Return the JSON of a tree in which the value at a path is replaced by a text."""
    mark = "@@@"
    copy = json.loads(json.dumps(tree))
    owner = copy
    for key in path[:-1]:
        owner = owner[key]
    owner[path[-1]] = mark
    return json.dumps(copy).replace(json.dumps(mark), text)


def paths(tree: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values of a tree."""
    found = [above] if above else []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        found += paths(value, (*above, key))
    return found


def parts(path: Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Return a file's header, the metadata of its model, and the bytes of its tensors."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return header, json.loads(header["__metadata__"][PACKED]), data[8 + length :]


def write(out: Path, header: str, data: bytes) -> Path:
    encoded = header.encode()
    out.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    return out


def with_metadata(out: Path, header: dict[str, Any], text: str, data: bytes, sums: int) -> Path:
    """Write a file with another metadata text, and with a checksum that fits it if it can be read at all."""
    try:
        metadata = json.loads(text)
        metadata.pop("checksum", None)
        metadata["checksum"] = zlib_of(metadata, out, header, data) if sums else 0
        text = json.dumps(metadata)
    except (ValueError, RecursionError, TypeError, AttributeError):
        pass
    return write(out, json.dumps({**header, "__metadata__": {PACKED: text}}), data)


def zlib_of(metadata: dict[str, Any], out: Path, header: dict[str, Any], data: bytes) -> int:
    tensors = file.FileTensors(write(out, json.dumps(header), data))
    checksum = zlib.crc32(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        checksum = file._add_tensor(checksum, name, tensors[name])
    return checksum


def refuse(path: Path) -> None:
    """Every loader agrees on whether a file is valid, and refuses an invalid one with a sentence that can be shown."""
    refused = []
    for load in LOADERS:
        try:
            load(path)
        except UserError as error:
            refused.append(str(error))
            assert len(str(error)) < 1500 and str(error).encode() and "\n" not in str(error)
    assert len(refused) in (0, len(LOADERS)), refused


def mutations(whole: Path, out: Path, count: int, seed: int) -> Iterator[Path]:
    """Write `count` mutated files: a value of header or metadata replaced, or bytes flipped, cut or moved."""
    rng = random.Random(seed)
    header, metadata, data = parts(whole)
    plain = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for _ in range(count):
        way = rng.randrange(4)
        if way == 0:
            yield write(out, spliced(header, rng.choice(paths(header)), rng.choice(ODD)), data)
        elif way in (1, 2):
            path = rng.choice(paths(metadata))
            if rng.random() < 0.2:
                owner = json.loads(json.dumps(metadata))
                inner = owner
                for key in path[:-1]:
                    inner = inner[key]
                del inner[path[-1]]
                text = json.dumps(owner)
            else:
                text = spliced(metadata, path, rng.choice(ODD))
            yield with_metadata(out, plain, text, data, way == 1)
        else:
            changed = bytearray(whole.read_bytes())
            for _ in range(rng.randrange(1, 4)):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            out.write_bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.2 else changed)
            yield out


@pytest.mark.parametrize("seed", range(4))
def test_mutated_files_are_refused_in_one_sentence(whole: Path, tmp_path: Path, seed: int) -> None:
    for path in mutations(whole, tmp_path / "changed.safetensors", 40, seed):
        refuse(path)


@pytest.mark.slow
def test_five_thousand_mutated_files_are_refused_in_one_sentence(whole: Path, tmp_path: Path) -> None:
    for path in mutations(whole, tmp_path / "changed.safetensors", 5000, 99):
        refuse(path)


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler here")
def test_five_thousand_mutated_files_are_clean_under_sanitizers(whole: Path, tmp_path: Path) -> None:
    """Through the C interface: each one is an error code, or a model that computes."""
    program, packed = tmp_path / "hostile_check", tmp_path / "mutated"
    assert COMPILER is not None
    flags = ["-std=c++17", "-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-pthread", "-w"]
    sources = [*PACKED_FOLDER.rglob("*.cpp"), Path(__file__).with_name("hostile_check.cpp")]
    command = [COMPILER, *flags, f"-I{PACKED_FOLDER}", *map(str, sources), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True)
    if "cannot find" in built.stderr:
        pytest.skip("the compiler has no sanitizer libraries")
    assert built.returncode == 0, built.stderr
    with packed.open("wb") as stream:
        for path in itertools.chain([whole], mutations(whole, tmp_path / "changed.safetensors", 5000, 7)):
            data = path.read_bytes()
            stream.write(len(data).to_bytes(8, "little") + data)
    done = subprocess.run([str(program), str(packed)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("5001 files")


@pytest.mark.parametrize("text", ODD, ids=[text[:12] for text in ODD])
def test_metadata_of_other_types_are_refused(whole: Path, tmp_path: Path, text: str) -> None:
    header, metadata, data = parts(whole)
    plain = {name: entry for name, entry in header.items() if name != "__metadata__"}
    out = tmp_path / "changed.safetensors"
    name = next(iter(metadata["layers"]))
    for path in (("config",), ("layers",), ("layers", name), ("layers", name, "signed"), ("layers", name, "bits")):
        if text in ("true", '"w1a1"') and path[-1] in ("signed", "bits"):
            continue
        with_metadata(out, plain, spliced(metadata, path, text), data, 1)
        for load in LOADERS:
            with pytest.raises(UserError):
                load(out)
    write(out, json.dumps({**plain, "__metadata__": {PACKED: text}}), data)
    for load in LOADERS:
        with pytest.raises(UserError):
            load(out)


def test_seventy_one_dimensions_are_refused(whole: Path, tmp_path: Path) -> None:
    header, _, data = parts(whole)
    header["output_std"]["shape"] = [1] * 69 + header["output_std"]["shape"]
    out = write(tmp_path / "changed.safetensors", json.dumps(header), data)
    for load in LOADERS:
        with pytest.raises(UserError, match="71 dimensions"):
            load(out)


def test_a_file_without_provenance_or_of_another_format_is_refused(whole: Path, tmp_path: Path) -> None:
    header, metadata, data = parts(whole)
    plain = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for key, value, message in (("provenance", [], "provenance"), ("format", 2, "packed format 2")):
        text = json.dumps({**metadata, key: value})
        out = with_metadata(tmp_path / "changed.safetensors", plain, text, data, 1)
        for load in LOADERS:
            with pytest.raises(UserError, match=message):
                load(out)
