"""What each task's dataset code will open, checked before training: folders, lists, and every file they name."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from upstreams.errors import UserError, nearest
from upstreams.s3prl import ctc_corpus as ctc

SAMPLE_RATE = 16000
KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
VOXCELEB_SPEAKERS = range(10001, 10001 + 1251)  # s3prl's classifier has an output for each of them


_PREPARE = "`superbit corpus prepare"


def _made(path: Path, task: str) -> Path:
    """A file that the corpus does not come with."""
    if not path.is_file():
        raise UserError(f"the file {path} is missing; {_PREPARE} {task}` makes it")
    return path


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise UserError(f"the folder {path} is missing")
    return path


def _file(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"the file {path} is missing")
    return path


def _audio(files: Iterable[Path], rate: int | None = SAMPLE_RATE) -> None:
    """All files are there, and the first of them is mono audio at `rate` Hz (any rate with None)."""
    import soundfile

    first = None
    for file in files:
        _file(file)
        first = first or file
    if first is None:
        return
    try:
        info = soundfile.info(first)
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(f"cannot read the audio file {first}: {getattr(error, 'error_string', error)}") from None
    if rate is not None and (info.samplerate != rate or info.channels != 1):
        raise UserError(f"{first} has {info.samplerate} Hz and {info.channels} channels: {rate} Hz mono is expected")


def _splits(settings: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(s3prl's name of a split, the corpus's folders) for the splits that will be used."""
    known = {key: value for key, value in settings.items() if key.startswith(("train", "dev", "test"))}
    known = {key: value for key, value in known.items() if isinstance(value, list) and "speakers" not in key}
    for name in names:
        if name not in known:
            raise UserError(f"there is no split {name!r}: {nearest(name, known)}")
    return [(name, known[name]) for name in names]


def _dev_and_test_only(names: Sequence[str]) -> None:
    for name in names:
        if name not in ("train", "dev", "test"):
            raise UserError(f"there is no split {name!r}: {nearest(name, ('train', 'dev', 'test'))}")


def check_asr(expert: Mapping[str, Any], names: Sequence[str]) -> None:
    """LibriSpeech, and the lists of lengths that s3prl makes its batches from."""
    datarc = expert["datarc"]
    _file(Path(datarc["dict_path"]))
    root, lists = Path(datarc["libri_root"]), Path(datarc["bucket_file"])
    for _, folders in _splits(datarc, names):
        for name in folders:
            _folder(root / name)
            if not (lists / f"{name}.csv").is_file():
                raise UserError(f"the file {lists / f'{name}.csv'} is missing; {_PREPARE} asr` makes it from the audio")
            files = [root / row for row in _column(lists / f"{name}.csv", "file_path")]
            if not files:
                raise UserError(
                    f"{lists / f'{name}.csv'} lists no utterance; delete it and {_PREPARE} asr` makes it anew"
                )
            _audio(files)
            for chapter in sorted({file.parent for file in files}):
                ctc.read_transcripts(chapter)


def check_pr(expert: Mapping[str, Any], names: Sequence[str]) -> None:
    """LibriSpeech with a lexicon that has its words and a vocabulary that has the lexicon's phones."""
    corpus = expert["corpus"]
    vocabulary = set(_file(Path(expert["text"]["vocab_file"])).read_text(encoding="utf-8").split())
    lexicon = ctc.read_lexicon(_file(Path(path)) for path in corpus["lexicon"])
    for _, folders in _splits(corpus, names):
        for name in folders:
            _folder(Path(corpus["path"], name))
        utterances = list(ctc.librispeech_utterances(corpus["path"], folders))
        _audio(file for file, _ in utterances)
        for file, words in utterances:
            for phone in ctc.pronounce(words, lexicon, file):
                if phone not in vocabulary:
                    raise UserError(
                        f"the phone {phone!r}, which the lexicon gives for {file}, "
                        f"is not in {expert['text']['vocab_file']}"
                    )


def check_ks(expert: Mapping[str, Any], names: Sequence[str]) -> None:
    """Speech Commands: folders of words and the background noise, and the test set's twelve folders."""
    _dev_and_test_only(names)
    train = _folder(Path(expert["datarc"]["speech_commands_root"]))
    test = _folder(Path(expert["datarc"]["speech_commands_test_root"]))
    folders = [train / "_background_noise_"]
    folders += [part / word for part in (train, test) for word in KEYWORDS]
    folders += [test / "_unknown_", test / "_silence_"]
    for folder in folders:
        files = sorted(_folder(folder).glob("*.wav"))
        if not files:
            raise UserError(f"the folder {folder} holds no .wav file")
        _audio(files[:1], rate=None)
    for noise in sorted(folders[0].glob("*.wav")):
        _at_least_a_second(noise)


def _at_least_a_second(file: Path) -> None:
    import soundfile

    if (duration := soundfile.info(file).duration) < 1:
        raise UserError(f"{file} is {duration:.2f} s long: silence is cut from background noise of 1 s or more")


def check_sid(expert: Mapping[str, Any], names: Sequence[str]) -> None:
    """VoxCeleb1: every file of the list, by a speaker that the classifier has."""
    _dev_and_test_only(names)
    datarc = expert["datarc"]
    root = _folder(Path(datarc["file_path"]))
    halves = [_folder(root / half / "wav") for half in ("dev", "test")]
    listing = _made(Path(datarc["meta_data"]), "sid")
    files: dict[str, list[Path]] = {"1": [], "2": [], "3": []}
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
        split, _, name = line.strip().partition(" ")
        speaker = name.partition("/")[0].removeprefix("id")
        if split not in files or not speaker.isdigit() or int(speaker) not in VOXCELEB_SPEAKERS:
            raise UserError(
                f"{listing}, line {number}: expected `1|2|3 id10001..id11251/<video>/<n>.wav`, got {line!r}"
            )
        found = [half / name for half in halves if (half / name).is_file()]
        if not found:
            raise UserError(f"the file {halves[0] / name} is missing, which line {number} of {listing} names")
        files[split] += found
    for split, name in zip(files, ("train", "dev", "test"), strict=True):
        if not files[split]:
            raise UserError(f"{listing} has no line for {name}, which begins with {split}")
        _audio(files[split][:1])


def check_er(expert: Mapping[str, Any], names: Sequence[str]) -> None:
    """IEMOCAP: the lists of the fold, and every file of theirs."""
    _dev_and_test_only(names)
    datarc = expert["datarc"]
    session = str(datarc.get("test_fold") or "fold1").replace("fold", "Session")
    for kind in ("train", "test"):
        listing = _made(Path(datarc["meta_data"], session, f"{kind}_meta_data.json"), "er")
        try:
            content = json.loads(listing.read_text(encoding="utf-8"))
            labels, rows = content["labels"], content["meta_data"]
            files = [Path(datarc["root"], row["path"]) for row in rows]
            unknown = [row["label"] for row in rows if row["label"] not in labels]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{listing} must hold labels, and meta_data with path and label each: {error!r}") from None
        if unknown:
            raise UserError(f"{listing} names the label {unknown[0]!r}: {nearest(unknown[0], labels)}")
        if not files:
            raise UserError(f"{listing} lists no utterance")
        _audio(files, rate=None)


def check_ic(expert: Mapping[str, Any], names: Sequence[str]) -> None:
    """Fluent Speech Commands: the three lists, every file of theirs, and no label that training lacks."""
    _dev_and_test_only(names)
    root = _folder(Path(expert["datarc"]["file_path"]))
    known: dict[str, set[str]] = {}
    for split in ("train", "valid", "test"):
        listing = root / "data" / f"{split}_data.csv"
        files = [root / path for path in _column(listing, "path")]
        if not files:
            raise UserError(f"{listing} lists no utterance")
        _audio(files)
        for slot in ("action", "object", "location"):
            values = set(_column(listing, slot))
            unseen = values - known.setdefault(slot, values)
            if unseen:
                raise UserError(f"{listing} names the {slot} {min(unseen)!r}, which train_data.csv lacks")


def check_sf(expert: Mapping[str, Any], names: Sequence[str]) -> None:
    """Audio SNIPS: the speakers' files, their sentences, and the slots' names."""
    corpus, text = expert["corpus"], expert["text"]
    _file(Path(text["vocab_file"]))
    root = _folder(Path(corpus["path"]))
    _file(root / "all.iob.snips.txt")
    _, *slots = _made(Path(text["slots_file"]), "sf").read_text(encoding="utf-8").split("\n")
    for _, folders in _splits(corpus, names):
        for name in folders:
            _folder(root / name)
        if f"{folders[0]}_speakers" not in corpus:
            raise UserError(f"the configuration lacks the key '{folders[0]}_speakers' beside the splits")
        utterances = list(ctc.snips_utterances(root, folders, corpus[f"{folders[0]}_speakers"]))
        _audio(file for file, _ in utterances)
        used = set()
        for file, sentence in utterances:
            labels = set(sentence.partition("\t")[2].split(" ")[1:-1]) - {"O"}
            if unknown := labels - set(slots):
                raise UserError(f"the slot {min(unknown)!r} of {file} is not in {text['slots_file']}")
            used |= labels
        if not used:
            raise UserError(f"no utterance of {', '.join(folders)} below {root} has a slot, so F1 has no value")


def check_qbe(expert: Mapping[str, Any], names: Sequence[str]) -> None:
    """QUESST 2014: the lists of languages, every English file of theirs, and the ground truth of what is evaluated."""
    from runners.downstream.scoring import detection

    _dev_and_test_only(names)
    root = _folder(Path(expert["datarc"]["dataset_root"]))
    splits = ["dev" if name == "dev" else "eval" for name in names]
    for part in ["utterances", *splits]:
        listing = _file(root / "scoring" / f"language_key_{part}.lst")
        files = []
        for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
            if len(words := line.split()) != 2:
                raise UserError(f"{listing}, line {number}: expected `<folder>/<file>.wav <language>`, got {line!r}")
            if words[1] == "nnenglish":
                files.append(root / words[0].partition("/")[2])  # the first folder is the list's own, as s3prl takes it
        if not files:
            raise UserError(f"{listing} names no file of the language nnenglish")
        _audio(files, rate=None)
    for split in splits:
        detection.read_truth(_folder(root / "scoring" / f"groundtruth_quesst14_{split}"))


def check_asv(expert: Mapping[str, Any], names: Sequence[str]) -> None:
    """VoxCeleb1: speakers to train on, the trials of both kinds, and every file of theirs."""
    for name in names:
        if name not in ("train", "test"):
            raise UserError(f"s3prl scores no split {name!r} of asv: valid are train and test")
    datarc = expert["datarc"]
    dev, test = (_folder(Path(datarc["file_path"], half, "wav")) for half in ("dev", "test"))
    if len([folder for folder in dev.iterdir() if folder.is_dir()]) < 2:
        raise UserError(f"{dev} holds fewer than two speakers' folders: <id1xxxx>/<video>/<n>.wav is expected there")
    listing = _file(Path(datarc["test_meta_data"]))
    files: dict[Path, None] = {}
    labels = set()
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if len(words) != 3 or words[0] not in ("0", "1"):
            raise UserError(f"{listing}, line {number}: expected `0|1 <file> <file>`, got {line!r}")
        labels.add(words[0])
        files |= dict.fromkeys(test / name for name in words[1:])
    if labels != {"0", "1"}:
        raise UserError(f"{listing} must hold trials of the same speaker (1) and of different ones (0)")
    _audio(files)


def check_sd(expert: Mapping[str, Any], names: Sequence[str]) -> None:
    """Libri2Mix as Kaldi's files describe it, every mixture, and the reference segments of the test set."""
    from runners.downstream.scoring.diarization import read_rttm

    _dev_and_test_only(names)
    for name in names:
        folder = _folder(Path(expert["loaderrc"][f"{name}_dir"]))
        tables = {}
        for part in ("wav.scp", "segments", "utt2spk", "spk2utt", "reco2dur"):
            tables[part] = _file(folder / part).read_text(encoding="utf-8").splitlines()
        recordings = {}
        for number, line in enumerate(tables["wav.scp"], 1):
            recording, _, path = line.strip().partition(" ")
            if not path or path.endswith("|"):  # Kaldi's commands are not run
                raise UserError(f"{folder / 'wav.scp'}, line {number}: expected `<recording> <file>.wav`, got {line!r}")
            recordings[recording] = Path(path.strip())
        if not recordings:
            raise UserError(f"{folder / 'wav.scp'} lists no recording")
        _audio(recordings.values())
        for part, column in (("segments", 1), ("reco2dur", 0)):
            listed = {words[column] for line in tables[part] if len(words := line.split()) > column}
            if unlisted := recordings.keys() - listed:
                raise UserError(f"{folder / part} has no line for the recording {min(unlisted)}")
        if name == "test":
            truth = read_rttm(folder / "rttm")
            if unlisted := recordings.keys() - truth.keys():
                raise UserError(f"{folder / 'rttm'} has no line for the recording {min(unlisted)}")


def _column(listing: Path, column: str) -> list[str]:
    """A column of a CSV file with a header."""
    with _file(listing).open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if column not in (reader.fieldnames or []):
            raise UserError(f"{listing} has no column {column!r}")
        return [row[column] for row in reader]


CHECKS: dict[str, Callable[[Mapping[str, Any], Sequence[str]], None]] = {
    "asr": check_asr,
    "pr": check_pr,
    "ks": check_ks,
    "sid": check_sid,
    "er": check_er,
    "ic": check_ic,
    "sf": check_sf,
    "qbe": check_qbe,
    "asv": check_asv,
    "sd": check_sd,
}


def check_whole(task: str, root: Path, any_size: bool, say: Callable[[str], object]) -> None:
    """Check all splits (of ER all folds) of a task's corpus, and say how large it is beside what is published.

    Raises UserError for the first thing that is missing and, unless `any_size` or the corpora are the embedded ones,
    for a part of another size than published.
    """
    from runners.corpora.counts import counts
    from runners.tasks import TASKS, check_config, task_config

    is_embedded = (root / "corpus.json").is_file()
    check_config(TASKS[task], task_config(task, root))
    for fold in range(2, 6) if task == "er" else ():
        if not any_size or (root / f"IEMOCAP/Session{fold}").is_dir():
            changed = {"downstream_expert.datarc.test_fold": f"fold{fold}"}
            check_config(TASKS[task], task_config(task, root, changed))
    found = counts(task, task_config(task, root))
    say(f"{task}: every file is there")
    for count in found:
        beside = "" if count.is_right or is_embedded else f", published: {count.published}"
        say(f"  {count.what}: {count.found}{beside}")
    wrong = [count for count in found if not count.is_right]
    if wrong and not any_size and not is_embedded:
        raise UserError(
            f"{wrong[0].what} of {task} are {wrong[0].found} below {root}, but {wrong[0].published} are published: "
            "is the download whole? --any-size accepts a part"
        )
