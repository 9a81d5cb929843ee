"""Settings of a training."""

from __future__ import annotations

import pytest

from pretrain.training.settings import TrainingSettings
from upstreams.errors import UserError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keep": 0}, "keep is 0"),
        ({"micro_batch_seconds": 90.0}, "between 0 and batch_seconds"),
        ({"decay": "square"}, "must be linear or cosine"),
        ({"precision": "float16"}, "must be auto or float32 or bfloat16"),
        ({"ema": 1.0}, r"must be in \[0, 1\)"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainingSettings(**values).check("recipe r")  # type: ignore[arg-type]
