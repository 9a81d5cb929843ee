"""`superbit shards`: copy a manifest's files into a few large tar files, for disks that open small files slowly."""

from __future__ import annotations

import tarfile
from pathlib import Path

from tqdm import tqdm

from pretrain.audio.manifest import Manifest, split_path
from upstreams.errors import UserError
from upstreams.files import atomic_write


def write_shards(manifest_path: Path, out: Path, shard_bytes: int) -> Path:
    """Copy a manifest's files into OUT/<name>-<number>.tar of about `shard_bytes` each; return the new manifest's path.

    The new manifest, OUT/<name>.tsv, has the same utterances in the same order, each as SHARD:OFFSET:BYTES, so that an
    utterance is read with one seek. It is written last: shards without a manifest are incomplete. Raises UserError if
    a file cannot be read.
    """
    manifest = Manifest.read(manifest_path)
    out.mkdir(parents=True, exist_ok=True)
    sizes = [_size(manifest.root / path) for path in manifest.paths]
    lines = [str(out.absolute())]
    first = 0
    with tqdm(total=len(manifest), desc="shards", unit="file", mininterval=2.0) as bar:
        while first < len(manifest):
            last, total = first, 0
            while last < len(manifest) and (last == first or total + sizes[last] <= shard_bytes):
                total += sizes[last]
                last += 1
            name = f"{manifest_path.stem}-{first:09d}.tar"
            with atomic_write(out / name) as temporary:
                offsets = _write_tar(temporary, manifest, range(first, last))
            for index, offset in zip(range(first, last), offsets, strict=True):
                lines.append(f"{name}:{offset}:{sizes[index]}\t{manifest.samples[index]}")
            bar.update(last - first)
            first = last
    path = out / f"{manifest_path.stem}.tsv"
    with atomic_write(path) as temporary:
        temporary.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8"))
    return path


def _size(path: Path) -> int:
    file, _, size = split_path(path)
    try:
        return file.stat().st_size if size is None else size
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _write_tar(target: Path, manifest: Manifest, indices: range) -> list[int]:
    """Write the utterances to a tar file; return the offset of each utterance's contents in bytes."""
    offsets = []
    with tarfile.open(target, "w") as archive:
        for index in indices:
            file, offset, size = split_path(manifest.root / manifest.paths[index])
            with file.open("rb") as stream:
                stream.seek(offset)
                # The number makes the name unique; the suffix tells the format.
                entry = tarfile.TarInfo(f"{index:09d}{Path(manifest.paths[index].partition(':')[0]).suffix}")
                entry.size = _size(manifest.root / manifest.paths[index]) if size is None else size
                header = len(entry.tobuf(archive.format, archive.encoding or "utf-8", archive.errors))
                offsets.append(archive.offset + header)
                archive.addfile(entry, stream)
    return offsets
