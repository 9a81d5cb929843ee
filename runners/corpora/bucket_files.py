"""Lists of audio lengths, from which s3prl's ASR makes batches.

FOLDER/<set>.csv has a line `,file_path,length,label` for each .flac of the set, longest first, with lengths in samples.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from upstreams.errors import UserError
from upstreams.files import atomic_write


def write_bucket_files(librispeech: str | Path, folder: str | Path, sets: Iterable[str]) -> list[Path]:
    """Write FOLDER/<set>.csv for each set from the headers of its audio files; return the paths.

    Raises UserError for a set that is missing or empty, and for a file that is not audio.
    """
    import soundfile
    from tqdm import tqdm

    written = []
    for name in sets:
        files = sorted(Path(librispeech, name).rglob("*.flac"))
        if not files:
            raise UserError(
                f"{Path(librispeech, name)} holds no .flac file: expected <speaker>/<chapter>/<utterance>.flac"
            )
        lengths = {}
        for file in tqdm(files, desc=name, dynamic_ncols=True):
            try:
                lengths[file] = soundfile.info(file).frames
            except (soundfile.SoundFileError, OSError) as error:
                raise UserError(f"cannot read the audio file {file}: {getattr(error, 'error_string', error)}") from None
        rows = sorted(lengths.items(), key=lambda row: row[1], reverse=True)
        path = Path(folder, f"{name}.csv")
        with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as output:
            writer = csv.writer(output)
            writer.writerow(["", "file_path", "length", "label"])
            for index, (file, length) in enumerate(rows):
                writer.writerow([index, file.relative_to(librispeech).as_posix(), length, ""])
        written.append(path)
    return written
