"""Files that are written in one piece."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from upstreams.files import atomic_write, json_ready, read_json, write_json


def refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def test_strict_parsers_read_json_with_numbers_that_json_lacks(tmp_path: Path) -> None:
    content = {"loss": math.nan, "config": {"unk_weight": -math.inf, "sizes": (1, math.inf)}, "acc": 0.5}
    write_json(tmp_path / "a.json", content)
    parsed = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert parsed == {"loss": "NaN", "config": {"unk_weight": "-Infinity", "sizes": [1, "Infinity"]}, "acc": 0.5}
    assert json_ready(content) == read_json(tmp_path / "a.json") == parsed, "what is compared with a file equals it"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_colleague_can_read_a_checkpoint_if_the_umask_says_so(umask: int, mode: int, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "model.safetensors") as temporary:
            save_file({"weight": np.zeros(2)}, temporary)
        write_json(tmp_path / "labels.json", {})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "other"):
        raise RuntimeError
    assert len(list(tmp_path.iterdir())) == 2
