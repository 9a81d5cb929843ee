"""What a task's corpus holds: digests of its lists and texts, and of the names and sizes of its audio.

A number depends on the corpus that it was measured on, and not on where the corpus lies. Audio is not read: a file that
has changed nearly always has another size.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from runners.tasks import Task
from upstreams.audio_files import find_audio
from upstreams.files import json_text, sha256, universal_lines
from upstreams.s3prl.recordings import read_recordings

Named = tuple[str, Path]  # a file, and its name wherever the corpus lies
_THREADS = 16  # the files of a network disk answer slowly, one at a time
_PART = 512  # files of one task of a thread


def contents(task: Task, config: Mapping[str, Any], described: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Return `lists` and `audio`, each with the number of `files`, their `bytes` and a digest of both (`sha256`).

    config: s3prl's resolved configuration; described: what corpus.json says about the task, None without that file.
    Only files that this configuration uses count. Raises OSError, ValueError or LookupError if one is missing or has
    another form than expected.
    """
    splits = ["train"] if task.has_head else ["dev"]
    splits += [*config["runner"].get("eval_dataloaders", ()), task.eval_split]
    lists, audio = _FILES[task.name](config["downstream_expert"], list(dict.fromkeys(splits)))
    return {"lists": _of_lists(lists, described), "audio": _of_audio(list(audio))}


def _of_lists(files: Iterable[Named], described: Mapping[str, Any] | None) -> dict[str, Any]:
    digest, number, size = hashlib.sha256(), 0, 0
    if described is not None:
        digest.update(json_text(described, indent=None).encode())
    for name, path in files:
        digest.update(f"{name}\0{sha256(path)}\n".encode(errors="surrogateescape"))
        number, size = number + 1, size + path.stat().st_size
    return {"files": number, "bytes": size, "sha256": digest.hexdigest()}


def _of_audio(files: Sequence[Named]) -> dict[str, Any]:
    def sizes_of(part: Sequence[Named]) -> list[int]:
        return [os.stat(path).st_size for _, path in part]  # noqa: PTH116  (twice as fast)

    parts = [files[begin : begin + _PART] for begin in range(0, len(files), _PART)]
    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = [size for part in pool.map(sizes_of, parts) for size in part]
    digest = hashlib.sha256()
    for (name, _), size in zip(files, sizes, strict=True):
        digest.update(f"{name}\0{size}\n".encode(errors="surrogateescape"))
    return {"files": len(files), "bytes": sum(sizes), "sha256": digest.hexdigest()}


Files = tuple[Iterable[Named], Iterable[Named]]  # lists and audio


def _walk(root: Path, suffixes: tuple[str, ...], prefix: str = "") -> list[Named]:
    """Return the files below a folder that have one of the suffixes, sorted by name, without hidden ones."""
    names = find_audio(root, suffixes)
    return sorted((f"{prefix}{name if '/' in name else f'./{name}'}", root / name) for name in names)


def _column(listing: Path, name: str) -> list[str]:
    with listing.open(encoding="utf-8-sig", newline="") as file:
        return [row[name] for row in csv.DictReader(file)]


def _asr(expert: Mapping[str, Any], splits: Sequence[str]) -> Files:
    datarc = expert["datarc"]
    root, buckets = Path(datarc["libri_root"]), Path(datarc["bucket_file"])
    lists, audio = [("dictionary", Path(datarc["dict_path"]))], []
    for name in [name for split in splits for name in datarc[split]]:
        lists += [(f"{name}.csv", buckets / f"{name}.csv"), *_walk(root / name, (".trans.txt",), f"{name}/")]
        audio += [(file, root / file) for file in _column(buckets / f"{name}.csv", "file_path")]
    return lists, audio


def _pr(expert: Mapping[str, Any], splits: Sequence[str]) -> Files:
    corpus = expert["corpus"]
    lists, audio = [("vocabulary", Path(expert["text"]["vocab_file"]))], []
    lists += [("lexicon", Path(file)) for file in corpus["lexicon"]]
    for name in [name for split in splits for name in corpus[split]]:
        lists += _walk(Path(corpus["path"], name), (".trans.txt",), f"{name}/")
        audio += _walk(Path(corpus["path"], name), (".flac",), f"{name}/")
    return lists, audio


def _sf(expert: Mapping[str, Any], splits: Sequence[str]) -> Files:
    corpus, text = expert["corpus"], expert["text"]
    root = Path(corpus["path"])
    lists = [("vocabulary", Path(text["vocab_file"])), ("slots", Path(text["slots_file"]))]
    lists.append(("sentences", root / "all.iob.snips.txt"))
    folders = [name for split in splits for name in corpus[split]]
    return lists, [file for name in folders for file in _walk(root / name, (".wav",), f"{name}/")]


def _ks(expert: Mapping[str, Any], splits: Sequence[str]) -> Files:
    roots = {name: Path(expert["datarc"][f"speech_commands_{name}root"]) for name in ("", "test_")}
    return [], [file for name, root in roots.items() for file in _walk(root, (".wav",), name)]


def _sid(expert: Mapping[str, Any], splits: Sequence[str]) -> Files:
    datarc = expert["datarc"]
    root, listing = Path(datarc["file_path"]), Path(datarc["meta_data"])
    names = [line.strip().partition(" ")[2] for line in universal_lines(listing, skip_mark=True) if line.strip()]
    in_test = {speaker.name for speaker in (root / "test" / "wav").iterdir()}
    halves = ("test" if name.partition("/")[0] in in_test else "dev" for name in names)
    return [("list", listing)], [(name, root / half / "wav" / name) for name, half in zip(names, halves, strict=True)]


def _er(expert: Mapping[str, Any], splits: Sequence[str]) -> Files:
    datarc = expert["datarc"]
    session = str(datarc.get("test_fold") or "fold1").replace("fold", "Session")
    lists = [(kind, Path(datarc["meta_data"], session, f"{kind}_meta_data.json")) for kind in ("train", "test")]
    names = [row["path"] for _, listing in lists for row in json.loads(listing.read_text("utf-8-sig"))["meta_data"]]
    return lists, [(name, Path(datarc["root"], name)) for name in names]


def _ic(expert: Mapping[str, Any], splits: Sequence[str]) -> Files:
    root = Path(expert["datarc"]["file_path"])
    lists = [(split, root / "data" / f"{split}_data.csv") for split in ("train", "valid", "test")]
    return lists, [(name, root / name) for _, listing in lists for name in _column(listing, "path")]


def _qbe(expert: Mapping[str, Any], splits: Sequence[str]) -> Files:
    root = Path(expert["datarc"]["dataset_root"])
    return _walk(root / "scoring", (".lst", ".rttm", ".xml")), [
        file for part in ("Audio", "dev_queries", "eval_queries") for file in _walk(root / part, (".wav",), f"{part}/")
    ]


def _asv(expert: Mapping[str, Any], splits: Sequence[str]) -> Files:
    datarc = expert["datarc"]
    root = Path(datarc["file_path"])
    audio = [file for half in ("dev", "test") for file in _walk(root / half / "wav", (".wav",), f"{half}/")]
    return [("trials", Path(datarc["test_meta_data"]))], audio


def _sd(expert: Mapping[str, Any], splits: Sequence[str]) -> Files:
    lists, audio = [], []
    for split in splits:
        folder = Path(expert["loaderrc"][f"{split}_dir"])
        parts = ("segments", "utt2spk", "spk2utt", "reco2dur", *(("rttm",) if split == "test" else ()))
        lists += [(f"{split}/{part}", folder / part) for part in parts]
        # wav.scp is no list of these: it has absolute paths, which may change.
        audio += [(f"{split}/{name}", path) for name, path in read_recordings(folder)]
    return lists, audio


_FILES: dict[str, Callable[[Mapping[str, Any], Sequence[str]], Files]] = {
    **{"asr": _asr, "pr": _pr, "ks": _ks, "sid": _sid, "er": _er, "ic": _ic, "sf": _sf},
    **{"qbe": _qbe, "asv": _asv, "sd": _sd},
}
