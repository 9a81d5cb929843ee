"""What is read of a training step after the next one was queued, and the steps that changed nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from pretrain.training import distributed
from pretrain.training.transfer import Key, LateValues
from upstreams.errors import UserError


@dataclass(frozen=True)
class Report:
    """A step whose values are on their way from the device."""

    step: int
    computed: bool  # False: no file of the step could be read, on any rank
    values: LateValues  # kinds: result (loss, norm, and bad, the first parameter without a finite gradient), sum, state
    parameters: list[str]  # names of those that had a gradient
    unreadable: float  # files since the start of the training
    logged: bool


class SkippedSteps:
    """Counts the steps without audio or a finite gradient; `most` of them in a row end the training in `folder`."""

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most
        self.total = self.in_a_row = 0

    def count(self, report: Report, values: dict[Key, Tensor], rate: float) -> None:
        """Count a step. values: those of the report. rate: its learning rate. Raises UserError after too many."""
        loss, norm = float(values["result", "loss"]), float(values["result", "norm"])
        if report.computed and math.isfinite(norm) and math.isfinite(loss):
            self.in_a_row = 0
            return
        self.total, self.in_a_row = self.total + 1, self.in_a_row + 1
        reason = f"loss {loss}, gradient norm {norm}" if report.computed else "none of its audio files could be read"
        if distributed.rank() == 0:
            tqdm.write(f"step {report.step} skipped: {reason} ({self.in_a_row} in a row)")
        if self.in_a_row < self.most:
            return
        stopped = f"training in {self.folder} stopped at step {report.step}: "
        if not report.computed:
            raise UserError(
                f"{stopped}none of the audio files of {self.in_a_row} consecutive steps could be read; "
                "the lines above name them"
            )
        bad = "" if math.isfinite(norm) else report.parameters[int(values["result", "bad"])]
        where = f", first bad gradient in {bad}" if bad else ""
        raise UserError(
            f"{stopped}{self.in_a_row} consecutive steps had a loss or gradient that is not finite ({reason}{where}; "
            f"{self.total} skipped steps in total) at learning rate {rate:.3g}: lower lr or clip, or check the audio"
        )
