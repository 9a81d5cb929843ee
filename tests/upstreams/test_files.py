"""Files that are written in one piece."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from upstreams.files import json_ready, read_json, write_json


def refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def test_strict_parsers_read_json_with_numbers_that_json_lacks(tmp_path: Path) -> None:
    content = {"loss": math.nan, "config": {"unk_weight": -math.inf, "sizes": (1, math.inf)}, "acc": 0.5}
    write_json(tmp_path / "a.json", content)
    parsed = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert parsed == {"loss": "NaN", "config": {"unk_weight": "-Infinity", "sizes": [1, "Infinity"]}, "acc": 0.5}
    assert json_ready(content) == read_json(tmp_path / "a.json") == parsed, "what is compared with a file equals it"
