"""Manifests, batches, masks and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pretrain.audio.data import BatchOrder, Crops, collate, loader
from pretrain.audio.manifest import Manifest, load_audio
from pretrain.objectives.masking import span_mask
from pretrain.targets.features import mfcc
from pretrain.targets.label_files import read_labels
from pretrain.targets.labels import write_labels
from tests.pretrain.tiny_audio import write_corpus
from upstreams.config import FrontEndConfig
from upstreams.errors import UserError

HOP = 640


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return Manifest.read(write_corpus(tmp_path / "audio"))


def test_manifest_errors_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    with pytest.raises(UserError, match=r"the manifest .* is missing"):
        Manifest.read(path)
    path.write_text("/nowhere\na.wav\t100\nb.wav 200\n")
    with pytest.raises(UserError, match=r"line 3 of .* is 'b\.wav 200'"):
        Manifest.read(path)
    path.write_text("/nowhere\na.wav\t100\n")
    with pytest.raises(UserError, match="has the root folder moved"):
        Manifest.read(path)
    path.write_text("/nowhere\n")
    with pytest.raises(UserError, match="lists no audio file"):
        Manifest.read(path)


def test_audio_errors_name_the_file(tmp_path: Path) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no audio")
    with pytest.raises(UserError, match=r"bad\.wav cannot be read"):
        load_audio(bad)
    slow = tmp_path / "slow.wav"
    soundfile.write(slow, np.zeros(800), 8000)
    with pytest.raises(UserError, match=r"slow\.wav has 8000 Hz"):
        load_audio(slow)
    short = tmp_path / "short.wav"
    soundfile.write(short, np.zeros(800), 16_000)
    with pytest.raises(UserError, match="ends after 800 samples, but 900 are expected"):
        load_audio(short, 0, 900)
    loud = tmp_path / "loud.wav"
    soundfile.write(loud, np.array([0.0, np.inf], np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(UserError, match=r"loud\.wav holds NaN or infinite samples"):
        load_audio(loud)


@pytest.mark.parametrize("views", [1, 2])
def test_batches_are_a_function_of_seed_and_step(manifest: Manifest, views: int) -> None:
    order = BatchOrder(manifest, HOP, 6.0, 1.0, seed=3, views=views)
    whole = list(order.batches(0, 20))
    assert list(order.batches(7, 20)) == whole[7:]
    assert list(BatchOrder(manifest, HOP, 6.0, 1.0, seed=4, views=views).batches(0, 20)) != whole
    epoch = [item for batch in whole[: order.batches_per_epoch] for item in batch]
    assert sorted(index for index, _, _ in epoch) == sorted(list(range(len(manifest))) * views)
    for batch in whole:
        assert max(size for _, _, size in batch) * len(batch) <= 6 * 16_000
        for index, frame, size in batch:
            assert size <= 16_000 and frame * HOP + size <= manifest.samples[index]
        if views == 2:  # crops 2 i and 2 i + 1 are of one utterance and share no sample
            for (first, start, size), (second, other, _) in zip(batch[::2], batch[1::2], strict=True):
                assert first == second and start * HOP + size <= other * HOP


@pytest.mark.parametrize("hop", [320, 640])
def test_two_views_of_an_utterance_share_no_sample(hop: int) -> None:
    samples = (*np.random.default_rng(0).integers(2 * hop, 40_000, 300).tolist(), 2 * hop, 2 * hop - 1, 10)
    manifest = Manifest(Path("/audio"), tuple(map(str, samples)), samples)
    order = BatchOrder(manifest, hop, 30.0, 1.0, seed=0, views=2)
    items = [item for batch in order.batches(0, 2 * order.batches_per_epoch) for item in batch]
    for (first, start, size), (second, other, length) in zip(items[::2], items[1::2], strict=True):
        assert first == second and 0 < size == length
        assert start * hop + size <= other * hop and other * hop + size <= samples[first]
    assert {item[0] for item in items} == set(range(301))  # the last two are shorter than two frames
    with pytest.raises(UserError, match="no utterance of the manifest has"):
        BatchOrder(Manifest(Path("/audio"), ("a",), (100,)), hop, 30.0, 1.0, seed=0, views=2)


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_do_not_depend_on_the_number_of_workers(manifest: Manifest, workers: int) -> None:
    """From the middle of an epoch to the next epoch."""
    order = BatchOrder(manifest, HOP, 6.0, 1.0, seed=3, views=2)
    first = order.batches_per_epoch - 2
    crops = Crops(manifest, [np.arange(200)] * len(manifest), HOP)
    alone, shared = (list(loader(crops, order, first, first + 5, workers=n)) for n in (0, workers))
    assert len(alone) == len(shared) == 5
    for one, other in zip(alone, shared, strict=True):
        assert one.waveforms.equal(other.waveforms) and one.labels.equal(other.labels)
        assert one.lengths.equal(other.lengths)


def test_a_crop_has_the_labels_of_its_frames(manifest: Manifest) -> None:
    labels = [np.arange(200) + 1000 * k for k in range(len(manifest))]
    crops = Crops(manifest, labels, HOP)
    items = [(2, 5, 9000), (7, 0, 16_000)]
    batch = collate([crops[item] for item in items])
    assert batch.lengths.tolist() == [9000, 16_000] and batch.skipped == 0
    assert batch.labels[0, :3].tolist() == [2005, 2006, 2007] and batch.labels[1, 0] == 7000
    whole = load_audio(manifest.root / manifest.paths[2])
    torch.testing.assert_close(batch.waveforms[0, :9000], torch.from_numpy(whole[5 * HOP : 5 * HOP + 9000]))
    assert not batch.waveforms[0, 9000:].any()


def test_unreadable_audio_is_skipped_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = Manifest.read(write_corpus(tmp_path / "audio", corrupt=(3, 5)))
    order = BatchOrder(manifest, HOP, 60.0, 1.0, seed=0)
    (batch,) = loader(Crops(manifest, None, HOP), order, 0, 1)
    assert batch.skipped == 2 and len(batch.lengths) == len(manifest) - 2
    assert "3.wav" in capsys.readouterr().out


@pytest.mark.parametrize("length", [250, 500, 780])
def test_masks_cover_the_share_of_hubert(length: int) -> None:
    """With HuBERT's probability 0.8 and span 10: 57 % of 5 to 15.6 s, the same as in transformers."""
    from upstreams.s3prl import compat as s3prl_compat  # noqa: F401, I001  (makes torchaudio importable)
    from transformers.models.hubert.modeling_hubert import _compute_mask_indices

    mask = span_mask([length] * 500, 0.8, 10, seed=1)
    covered = float(mask.float().mean())
    assert covered == pytest.approx(0.57, rel=0.01)
    np.random.seed(1)
    assert covered == pytest.approx(_compute_mask_indices((500, length), 0.8, 10).mean(), rel=0.01)
    assert torch.equal(mask, span_mask([length] * 500, 0.8, 10, seed=1))
    assert not torch.equal(mask, span_mask([length] * 500, 0.8, 10, seed=2))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 6, 7, 30])
def test_short_utterances_have_masked_and_unmasked_frames(length: int) -> None:
    for seed in range(20):
        mask = span_mask([length, 40], 0.65, 5, seed=seed)
        assert mask.shape == (2, 40) and not mask[0, length:].any()
        if length > 1:
            assert mask[0, :length].any() and not mask[0, :length].all()


def test_mfcc_has_one_frame_for_each_10_ms_and_is_deterministic() -> None:
    audio = torch.randn(16_000) * 0.1
    features = mfcc(audio)
    assert features.shape == (100, 39) and torch.equal(features, mfcc(audio))
    assert mfcc(audio[:100]).shape == (1, 39)


def test_label_files_have_the_encoders_frame_rate(tmp_path: Path) -> None:
    manifest = Manifest.read(write_corpus(tmp_path / "audio", corrupt=(4,)))
    path = write_labels(manifest, tmp_path / "labels", clusters=6, seed=0, fraction=1.0, subsampling=4)
    labels = read_labels(path, manifest, FrontEndConfig())
    for k, (ids, samples) in enumerate(zip(labels, manifest.samples, strict=True)):
        assert len(ids) == (0 if k == 4 else -(-samples // 640))
    assert len((tmp_path / "labels" / "dict.km.txt").read_text().splitlines()) == 6
    before = path.stat().st_mtime_ns
    again = write_labels(manifest, tmp_path / "labels", clusters=6, seed=0, fraction=1.0, subsampling=4)
    assert again.stat().st_mtime_ns == before


def test_labels_for_another_number_of_utterances_are_refused(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "audio")
    lines = path.read_text().splitlines()
    lines[2] = lines[2].split("\t")[0] + "\t99999999"
    path.write_text("\n".join(lines) + "\n")
    manifest = Manifest.read(path)
    assert len(Crops(manifest, None, HOP)) == len(manifest)
    with pytest.raises(UserError, match="labels for 3 utterances"):
        Crops(manifest, [np.zeros(3)] * 3, HOP)
