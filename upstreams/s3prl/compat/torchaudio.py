"""What torchaudio 2.9 to 2.11 dropped and s3prl still calls; a torchaudio that has it is left unchanged."""

from __future__ import annotations

import importlib
import importlib.util
import types

from upstreams.s3prl import audio
from upstreams.s3prl.compat.patching import add_module


def import_torchaudio() -> types.ModuleType:
    """Return torchaudio, imported without its extension if that does not load.

    torchaudio 2.11 links its extension against CUDA, so it does not load beside a CPU build of torch. Nothing that
    s3prl calls needs it: a stand-in module reports that there is no extension.
    """
    try:
        return importlib.import_module("torchaudio")
    except (OSError, RuntimeError):
        add_module(
            "torchaudio._extension",
            _IS_TORCHAUDIO_EXT_AVAILABLE=False,
            _IS_ALIGN_AVAILABLE=False,
            fail_if_no_align=lambda function: function,
        )
        return importlib.import_module("torchaudio")


def add_audio_backend_setter() -> None:
    """Add `set_audio_backend`, which torchaudio 2.9 removed; s3prl.hub calls it when it is imported."""
    torchaudio = import_torchaudio()
    if not hasattr(torchaudio, "set_audio_backend"):
        torchaudio.set_audio_backend = lambda backend: None  # type: ignore[attr-defined]


def add_sox_effects() -> None:
    """Add `sox_effects`, which torchaudio 2.9 removed; s3prl.hub and keyword spotting import it."""
    torchaudio = import_torchaudio()
    if importlib.util.find_spec("torchaudio.sox_effects") is None:
        torchaudio.sox_effects = add_module(  # type: ignore[attr-defined]
            "torchaudio.sox_effects",
            apply_effects_tensor=audio.apply_effects_tensor,
            apply_effects_file=audio.apply_effects_file,
        )


def read_audio_by_soundfile() -> None:
    """Read and write audio through soundfile unless TorchCodec is there.

    Since 2.9, `torchaudio.load` and `save` need TorchCodec, which needs FFmpeg's libraries.
    """
    torchaudio = import_torchaudio()
    try:
        importlib.import_module("torchcodec")
    except (ImportError, OSError, RuntimeError):
        torchaudio.load = audio.load_audio  # type: ignore[attr-defined]
        torchaudio.save = audio.save_audio  # type: ignore[attr-defined]
