"""Memory and time of k-means, and phones to compare labels with.

    python -m benchmarks.labels memory                                   # 10 h of 768 features at 50 Hz, 500 clusters
    python -m benchmarks.labels phones data/mini/manifest/train.tsv OUT  # OUT/train.phn, by forced alignment
    superbit labels purity --labels runs/my/labels/mfcc100_25hz_frame1/train.km --reference OUT/train.phn

`memory` clusters synthetic features (noise around random points), so that it measures the clustering alone, and prints
the peak memory of the process. `phones` aligns every utterance in LibriSpeech's layout with the phones of its
transcript, 100 per second, with pocketsphinx (extra `corpora`); utterances without a transcript get an empty line.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from runners.corpora.phones import aligned

SECONDS = 10  # length of an utterance
FRAMES = SECONDS * 50  # at 50 Hz


def memory(hours: float, dim: int, clusters: int, n_init: int) -> dict[str, float]:
    """Cluster features of that many hours, assign a tenth of them, and return time in s and memory in MB."""
    from pretrain.targets.labels import cluster

    centres = np.random.default_rng(0).normal(0, 1, (clusters, dim)).astype(np.float32)
    utterances = int(hours * 3600 / SECONDS)

    def features(indices: Sequence[int]) -> Iterator[np.ndarray]:
        for index in indices:
            rng = np.random.default_rng(index)
            yield centres[rng.integers(0, clusters, FRAMES)] + rng.standard_normal((FRAMES, dim), np.float32)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    assign = cluster(features, utterances, clusters, 0, 1.0, n_init)
    fitted = time.perf_counter()
    used = {int(label) for frames in features(range(0, utterances, 10)) for label in np.unique(assign(frames))}
    return {
        "frames": utterances * FRAMES,
        "feature_megabytes": utterances * FRAMES * dim * 4 / 1e6,
        "seconds_fit": fitted - started,
        "clusters_used": len(used),
        "megabytes_before": before * 1024 / 1e6,
        "megabytes_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


def phones(manifest_path: Path, out: Path) -> None:
    """Write OUT/train.phn with a line for each utterance of the manifest: its phones at 100 Hz."""
    from pretrain.audio.manifest import Manifest, load_audio
    from upstreams.files import atomic_write

    manifest = Manifest.read(manifest_path)
    lines = []
    for name in tqdm(manifest.paths, desc="alignment", unit="utt", mininterval=2.0):
        path = manifest.root / name
        text = transcript(path)
        lines.append(" ".join(aligned(load_audio(path), text)) if text else "")
    with atomic_write(out / f"{manifest_path.stem}.phn") as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def transcript(path: Path) -> str:
    """Return the words of an utterance in LibriSpeech's layout, "" if it has no transcript."""
    words = path.parent / f"{path.stem.rpartition('-')[0]}.trans.txt"
    if not words.is_file():
        return ""
    lines = (line.split(" ", 1) for line in words.read_text(encoding="utf-8").splitlines())
    return next((line[1].lower() for line in lines if line[0] == path.stem and len(line) == 2), "")


def main() -> None:
    """Run the part that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("memory")
    part.add_argument("--hours", type=float, default=10.0)
    part.add_argument("--dim", type=int, default=768)
    part.add_argument("--clusters", type=int, default=500)
    part.add_argument("--n-init", type=int, default=20)
    part = parts.add_parser("phones")
    part.add_argument("manifest", type=Path)
    part.add_argument("out", type=Path)
    arguments = parser.parse_args()
    if arguments.part == "memory":
        print(json.dumps(memory(arguments.hours, arguments.dim, arguments.clusters, arguments.n_init), indent=1))
    else:
        phones(arguments.manifest, arguments.out)


if __name__ == "__main__":
    main()
