"""A head in a packed file: what every reader refuses, and the C interface of the decision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.upstreams.packed.models import HAS_NATIVE, noise, quantized, with_head
from upstreams.config import EncoderConfig, ModelConfig
from upstreams.errors import UserError
from upstreams.packed import convert, file
from upstreams.packed.head import Head
from upstreams.packed.library import address, call, load
from upstreams.packed.runtime import Runtime

LOADERS: list[Callable[[Path], object]] = [convert.load, *([Runtime] if HAS_NATIVE else [])]
DIM = 36
SMALL = EncoderConfig(layers=2, dim=DIM, heads=3, feed_forward_dim=40, position_groups=DIM)
SLOTS = {"action": ("on", "off"), "room": ("kitchen", "bedroom", "none")}

native = pytest.mark.skipif(not HAS_NATIVE, reason="no native kernel is selected")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A packed file without a head, and the same with one."""
    folder = tmp_path_factory.mktemp("packed")
    plain, out = folder / "plain.safetensors", folder / "head.safetensors"
    convert.save(plain, convert.pack(quantized(ModelConfig("small", encoder=SMALL), "w1a1")), {"seed": 1})
    return plain, with_head(plain, out, SLOTS)


@native
def test_the_scores_are_the_head_of_the_mean_of_the_weighted_sum(files: tuple[Path, Path]) -> None:
    runtime, tensors = Runtime(files[1]), file.read(files[1]).tensors
    assert runtime.slots == SLOTS
    for threads in (1, 2):
        runtime = Runtime(files[1], threads)
        for samples, frames in ((1, 1), (319, 1), (960, 2), (961, 2), (1_600, 2), (16_000, 25)):
            waveform = noise(1, samples, samples)[0].numpy()
            features = runtime.weighted_sum(waveform * tensors["head.gain"], tensors["head.layer_weights"])[:frames]
            expected = tensors["head.weight"] @ features.mean(0) + tensors["head.bias"]
            scores = runtime.scores(waveform)
            assert [len(one) for one in scores.values()] == [2, 3]
            np.testing.assert_allclose(np.concatenate(list(scores.values())), expected, atol=1e-5, rtol=1e-5)
            choices = np.full(2, -1, np.intc)
            call("decide", runtime.session.handle, address(waveform), samples, None, address(choices))
            assert [SLOTS[slot][n] for slot, n in zip(SLOTS, choices, strict=True)] == list(
                runtime.decide(waveform).values()
            )


@native
def test_a_file_without_a_head_decides_nothing(files: tuple[Path, Path]) -> None:
    runtime, waveform = Runtime(files[0]), noise(1, 800)[0].numpy()
    assert runtime.slots == {}
    for decide in (runtime.scores, runtime.decide):
        with pytest.raises(UserError, match="holds no head: pack it with `superbit pack --with-head"):
            decide(waveform)
    scores = np.zeros(5, np.float32)
    with pytest.raises(UserError, match="an argument is not valid"):
        call("decide", runtime.session.handle, address(waveform), len(waveform), address(scores), None)
    runtime = Runtime(files[1])
    with pytest.raises(UserError, match="an argument is not valid"):
        call("decide", runtime.session.handle, address(waveform), len(waveform), None, None)
    with pytest.raises(UserError, match="the waveform is empty"):
        runtime.decide(waveform[:0])


@native
def test_numbers_out_of_range_name_no_slot_and_no_class(files: tuple[Path, Path]) -> None:
    library, _ = load()
    assert library is not None
    for path in files:
        model = Runtime(path).model
        slots = library.superbit_slots(model.handle)
        for slot in (-1, slots, 2**31 - 1, -(2**31)):
            assert library.superbit_slot(model.handle, slot) is None
            assert library.superbit_classes(model.handle, slot) == 0
            assert library.superbit_class(model.handle, slot, 0) is None
        for slot in range(slots):
            for number in (-1, library.superbit_classes(model.handle, slot), 2**31 - 1):
                assert library.superbit_class(model.handle, slot, number) is None


def rewritten(path: Path, out: Path, head: Any, **tensors: np.ndarray | None) -> Path:
    """Write the file with another head and other tensors of it, with a valid checksum; None leaves a tensor out."""
    packed = file.read(path)
    changed = {f"head.{name}": tensor for name, tensor in tensors.items()}
    kept = {n: packed.tensors[n] for n in packed.tensors if n not in changed}
    kept |= {name: tensor for name, tensor in changed.items() if tensor is not None}
    file.write(out, packed.config, packed.layers, kept, {}, head)
    return out


@pytest.mark.parametrize("load", LOADERS)
def test_a_head_that_does_not_fit_the_model_is_refused(
    load: Callable[[Path], object], files: tuple[Path, Path], tmp_path: Path
) -> None:
    out, head = tmp_path / "changed.safetensors", file.read(files[1]).head
    load(rewritten(files[1], out, head))
    wide, nan = np.zeros((5, DIM + 1), np.float32), np.full(5, np.nan, np.float32)
    for changes, message in (
        ({"weight": wide}, r"head.weight is float32 \(5, 37\), but must be float32 \(5, 36\)"),
        ({"bias": None}, "head.bias is missing"),
        ({"bias": nan}, "head.bias holds NaN"),
        ({"gain": np.zeros((), np.float32)}, "head.gain holds 0.0, but must be positive"),
        ({"layer_weights": np.zeros(2, np.float32)}, r"head.layer_weights is float32 \(2,\)"),
        ({"more": nan}, r"there is .head\.more., which it does not have"),
    ):
        with pytest.raises(UserError, match=message):
            load(rewritten(files[1], out, head, **changes))
    with pytest.raises(UserError, match=r"there is .head\.\w+., which it does not have"):
        load(rewritten(files[1], out, None))
    with pytest.raises(UserError, match=r"head.gain is missing"):
        load(rewritten(files[0], out, head))
    for wrong, message in (
        (Head("asr", SLOTS), "the head's task is none of ks, ic, sid, er"),
        (Head("ks", {}), "slots are not a mapping with 1 to 16 names"),
        (Head("ks", {str(n): ("a",) for n in range(17)}), "slots are not a mapping with 1 to 16 names"),
        (Head("ks", {"keyword": ()}), "are not a list of 1 to 1048576 names"),
        (Head("ks", {"keyword": ("yes", "a" * 101)}), "printable ASCII"),
        (Head("ks", {"keyword": ("yes", "")}), "printable ASCII"),
        (Head("ks", {"keyword": ("yes", "n\u00f6")}), "printable ASCII"),
        (Head("ks", {"key\nword": ("yes", "no")}), "printable ASCII"),
        (Head("ks", {"keyword": ("yes", 1)}), "printable ASCII"),  # type: ignore[arg-type]
        (Head("ks", {"keyword": "yes"}), "are not a list"),  # type: ignore[dict-item]
        (Head("ks", ["keyword"]), "slots are not a mapping"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserError, match=message):
            load(rewritten(files[1], out, wrong))
