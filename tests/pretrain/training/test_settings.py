"""Settings of a training."""

from __future__ import annotations

import pytest
import torch

from pretrain.training.settings import TrainingSettings
from upstreams.errors import UserError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keep": 0}, "keep is 0"),
        ({"micro_batch_seconds": 90.0}, "between 0 and batch_seconds"),
        *(
            ({key: -1}, f"{key} is -1")
            for key in ("lr", "matrix_lr", "scale_lr", "weight_decay", "workers", "save_every")
        ),
        *(({key: float("nan")}, f"{key} is nan") for key in ("lr", "clip", "warm_up", "crop_seconds", "ema")),
        ({"batch_seconds": float("inf")}, "batch_seconds is inf"),
        ({"lr": 0.0}, "must be more than 0"),
        ({"warm_up": 5.0}, r"must be in \[0, 1\)"),
        ({"micro_batch_seconds": 2.0}, "must hold a crop"),
        ({"decay": "square"}, "must be linear or cosine"),
        ({"precision": "float16"}, "must be auto or float32 or bfloat16"),
        ({"ema": 1.0}, r"must be in \[0, 1\)"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainingSettings(**values).check("recipe r")  # type: ignore[arg-type]


@pytest.mark.parametrize(("seconds", "count"), [(240, 2), (350, 1), (175, 2), (100, 4), (350 / 3, 3), (350 / 7, 7)])
def test_a_micro_batch_never_exceeds_its_seconds(seconds: float, count: int) -> None:
    settings = TrainingSettings(batch_seconds=350, micro_batch_seconds=seconds)
    assert settings.micro_batches == count and settings.seconds_per_micro_batch <= seconds + 1e-9


@pytest.mark.parametrize(("supported", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_precision_is_bfloat16_where_the_gpu_has_it(
    supported: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: supported)
    assert TrainingSettings().compute_dtype(torch.device("cuda")) == dtype
    assert TrainingSettings().compute_dtype(torch.device("cpu")) == torch.float32
