"""A package s3prl with another interface than 0.4.18: what fixes need was renamed, or has become s3prl's own."""

from __future__ import annotations

from pathlib import Path

FILES = {
    "__init__.py": '__version__ = "0.5.0"\n',
    "hub.py": """
import torchaudio

torchaudio.set_audio_backend("sox_io")

def fbank(ckpt=None, model_config=None, refresh=False, **options):
    raise NotImplementedError

def options(only_registered_ckpt=False):
    return sorted(name for name, value in globals().items() if callable(value) and name != "options")
""",
    "nn/__init__.py": "from .upstream import S3PRLUpstream\n",
    "nn/upstream.py": """
from torch import nn
from s3prl import hub

def randomize(upstream):
    raise NotImplementedError

class S3PRLUpstream(nn.Module):
    def __init__(self, name, path_or_url=None, refresh=False, normalize=False, extra_conf=None, randomize=False):
        super().__init__()
        self.upstream = getattr(hub, name)(ckpt=path_or_url, refresh=refresh, **(extra_conf or {}))

    def forward(self, wavs, wavs_len):
        states = self.upstream([wav[:length] for wav, length in zip(wavs, wavs_len)])["hidden_states"]
        rate = self.upstream.get_downsample_rates("hidden_states")
        return list(states), [wavs_len // rate for _ in states]
""",
    "utility/__init__.py": "",
    "utility/helper.py": "def is_leader_process():\n    return True\n",
    "run_downstream.py": "def run(arguments):\n    raise NotImplementedError\n",
    "downstream/__init__.py": "",
    "downstream/runner.py": """
import torch

class Runner:
    def __init__(self, settings):
        self.settings = settings

    def fit(self):
        raise NotImplementedError
""",
    "downstream/ctc/__init__.py": "",
    "downstream/ctc/data.py": "from s3prl.downstream.ctc.corpus.libriphone import LibriPhoneDataset\n",
    "downstream/ctc/corpus/__init__.py": "",
    "downstream/ctc/corpus/libriphone.py": "class LibriPhoneDataset:\n    is_own = True\n",
    "downstream/voxceleb1/__init__.py": "",
    "downstream/voxceleb1/dataset.py": "class Speakers:\n    pass\n",
}


def write(folder: Path) -> Path:
    """Write the package s3prl into `folder`; return `folder`."""
    for name, text in FILES.items():
        path = folder / "s3prl" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder
