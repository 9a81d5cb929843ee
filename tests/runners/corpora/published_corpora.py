"""Tiny corpora in the structure of the published downloads, including their files that are not audio."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests import tiny_corpora
from tests.tiny_corpora import Sounds

EVALUATION = """% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]

{turns}
"""
TURN = """[{start:.4f} - {end:.4f}]\t{name}\t{emotion}\t[2.5000, 2.5000, 2.5000]
C-E2:\tNeutral;\t()
C-E3:\tNeutral;\t()
C-F1:\t{other};\t()
A-E3:\tval 3; act 2; dom  2;\t()
A-F1:\tval 3; act 2; dom  1;\t()
"""


def build(root: Path) -> Path:
    """Write all corpora below `root`, without the files that s3prl's scripts make; return `root`."""
    sounds = Sounds(1)
    tiny_corpora.librispeech(root, sounds)
    shutil.rmtree(root / "len_for_bucket")
    for name in ("SPEAKERS.TXT", "CHAPTERS.TXT", "BOOKS.TXT", "README.TXT", "LICENSE.TXT"):
        (root / "LibriSpeech" / name).write_text(";ID  |SEX| SUBSET           |MINUTES| NAME\n")

    tiny_corpora.speech_commands(root, sounds)
    for part in ("speech_commands_v0.01", "speech_commands_test_set_v0.01"):
        for name in ("LICENSE", "README.md", "validation_list.txt", "testing_list.txt"):
            (root / part / name).write_text("")
    (root / "speech_commands_v0.01/_background_noise_/README.md").write_text("")

    tiny_corpora.voxceleb(root, sounds)
    listing = root / "VoxCeleb1/veri_test_class.txt"
    (root / "VoxCeleb1/iden_split.txt").write_text(listing.read_text() + "\n")
    listing.unlink()
    (root / "VoxCeleb1/vox1_meta.csv").write_text("VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n")

    iemocap(root / "IEMOCAP", sounds)

    tiny_corpora.fluent_speech_commands(root, sounds)
    folder = root / "fluent_speech_commands_dataset"
    (folder / "data/speaker_demographics.csv").write_text("speakerId,Self-reported fluency level\n")
    (folder / "readme.md").write_text("")
    (folder / "Fluent Speech Commands Public License.pdf").write_bytes(b"%PDF")

    tiny_corpora.snips(root, sounds)
    (root / "SNIPS/slots.txt").unlink()
    return root


def iemocap(root: Path, sounds: Sounds) -> None:
    """Write five sessions of two dialogs with SUPERB's emotions and others, and files of macOS."""
    emotions = ("neu", "hap", "exc", "ang", "sad", "fru", "xxx")
    for session in range(1, 6):
        for dialog in (f"Ses0{session}F_impro01", f"Ses0{session}M_script01_1"):
            evaluations = root / f"Session{session}/dialog/EmoEvaluation"
            turns = []
            for index, emotion in enumerate(emotions):
                name = f"{dialog}_{'FM'[index % 2]}{index:03d}"
                sounds.write(root / f"Session{session}/sentences/wav/{dialog}/{name}.wav", tone=200 + 60 * index)
                turns.append(TURN.format(start=index, end=index + 0.5, name=name, emotion=emotion, other="Other"))
            turns.append(TURN.format(start=99, end=99.5, name=f"{dialog}_F099", emotion="neu", other="Neutral"))
            for part in ("Attribute", "Categorical", "Self-evaluation"):
                (evaluations / part).mkdir(parents=True, exist_ok=True)
                (evaluations / part / f"{dialog}_e2_cat.txt").write_text("Ses01F_impro01_F000 :Neutral state; ()\n")
            (evaluations / f"{dialog}.txt").write_text(EVALUATION.format(turns="\n".join(turns)))
            (evaluations / f"._{dialog}.txt").write_bytes(b"\x00\x05\x16\x07[0 - 1]\tx\tneu\t\xff\xfe")
            leftover = root / f"Session{session}/sentences/wav/{dialog}/._{dialog}_F000.wav"
            leftover.write_bytes(b"\x00\x05\x16\x07")
            for part in ("lab", "transcriptions", "wav"):
                (root / f"Session{session}/dialog/{part}").mkdir(parents=True, exist_ok=True)
    (root / "Documentation").mkdir()
    (root / "README.txt").write_text("IEMOCAP_full_release\n")
