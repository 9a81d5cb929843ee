"""Stream a file or the microphone through a packed Sparseformer; print when frames of its hidden states are final.

python examples/streaming.py MODEL.safetensors SPEECH.flac
python examples/streaming.py MODEL.safetensors --seconds 10      # the microphone, with `pip install sounddevice`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from upstreams.config import SAMPLE_RATE
from upstreams.errors import UserError
from upstreams.packed.runtime import Runtime
from upstreams.packed.streaming import Stream

CHUNK = SAMPLE_RATE // 10  # samples


def from_file(path: Path) -> Iterator[np.ndarray]:
    """Yield chunks of an audio file of 16 kHz, (samples,)."""
    import soundfile

    with soundfile.SoundFile(path) as audio:
        if audio.samplerate != SAMPLE_RATE:
            raise UserError(f"{path} has {audio.samplerate} Hz, but must have {SAMPLE_RATE} Hz")
        while len(chunk := audio.read(CHUNK, dtype="float32", always_2d=True)):
            yield chunk.mean(1)


def from_microphone(seconds: float) -> Iterator[np.ndarray]:
    """Yield chunks of the default input device, (samples,)."""
    import sounddevice

    with sounddevice.InputStream(SAMPLE_RATE, channels=1, dtype="float32") as stream:
        for _ in range(int(seconds * SAMPLE_RATE / CHUNK)):
            yield stream.read(CHUNK)[0][:, 0]


def main() -> None:
    """Run the example from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="packed file of a Sparseformer")
    parser.add_argument("audio", type=Path, nargs="?", help="audio file of 16 kHz; without one: the microphone")
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds to record from the microphone")
    arguments = parser.parse_args()
    stream = Stream(Runtime(arguments.model))
    chunks = from_file(arguments.audio) if arguments.audio else from_microphone(arguments.seconds)
    fed = 0
    for chunk in chunks:
        fed += len(chunk)
        if any(len(state) for state in stream.feed(chunk)):
            print(f"{fed / SAMPLE_RATE:6.2f} s: final frames {stream.final}")
    stream.flush()
    print(f"{fed / SAMPLE_RATE:6.2f} s: final frames {stream.final}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"streaming: {error}")
