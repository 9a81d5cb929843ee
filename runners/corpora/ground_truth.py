"""Readers of the ground truth that scorers compare with: occurrences of queries, and segments of speakers."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

from upstreams.audio_files import is_hidden
from upstreams.errors import UserError
from upstreams.files import universal_lines

Segments = dict[str, list[tuple[float, float]]]  # speaker -> (begin, end) in seconds


def read_occurrences(folder: Path) -> dict[str, set[str]]:
    """Return query -> utterances that contain it, from a groundtruth folder of QUESST.

    The folder holds .rttm files and, where these name a query by its text, .tlist.xml files with the queries' ids.
    Raises UserError if there is no .rttm file, or a line is not `LEXEME <utterance> 1 <begin> <length> <query> ...`.
    """
    listings = sorted(path for path in folder.glob("*.rttm") if not is_hidden(path.name))
    if not listings:
        raise UserError(f"{folder} holds no .rttm file: QUESST's ground truth is expected there")
    ids = {
        term.findtext("termtext", "").strip(): term.attrib["termid"]
        for path in sorted(folder.glob("*.tlist.xml"))
        if not is_hidden(path.name)
        for term in ElementTree.parse(path).iter("term")
    }
    occurrences: dict[str, set[str]] = {}
    for listing in listings:
        for number, line in enumerate(universal_lines(listing, skip_mark=True), 1):
            words = line.split()
            if not words or words[0] != "LEXEME":
                continue
            if len(words) < 6:
                raise UserError(f"{listing}, line {number}: expected `LEXEME <utterance> 1 <begin> <length> <query>`")
            occurrences.setdefault(ids.get(words[5], words[5]), set()).add(Path(words[1]).stem)
    return occurrences


def read_rttm(path: Path) -> dict[str, Segments]:
    """Return recording -> segments, from `SPEAKER <recording> 1 <begin> <length> <NA> <NA> <speaker> <NA>` lines.

    Raises UserError if the file is missing or a line has another form.
    """
    segments: dict[str, Segments] = defaultdict(dict)
    if not path.is_file():
        raise UserError(f"the file {path} is missing: it should hold the reference segments of the test set")
    for number, line in enumerate(universal_lines(path, skip_mark=True), 1):
        words = line.split()
        if not words or words[0] != "SPEAKER":
            continue
        try:
            begin, length = float(words[3]), float(words[4])
            segments[words[1]].setdefault(words[7], []).append((begin, begin + length))
        except (IndexError, ValueError):
            raise UserError(
                f"{path}, line {number}: expected `SPEAKER <recording> 1 <begin> <length> <NA> <NA> <speaker> <NA>`"
            ) from None
    return segments
