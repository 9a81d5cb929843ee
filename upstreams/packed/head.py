"""A trained SUPERB head in a packed file, so that the runtime gives the decision. Imports no torch.

SUPERB's head of an utterance (KS, IC, SID, ER) is a weighted sum of the hidden states, a projection, the mean over the
frames and a linear layer. All four are linear: the file holds the product of the two layers, and the mean comes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upstreams.config import ModelConfig
from upstreams.errors import UserError
from upstreams.packed.contents import Entry, Values

TASKS = ("ks", "ic", "sid", "er")
PREFIX = "head."  # of the names of the head's tensors
MAX_SLOTS, MAX_CLASSES, MAX_NAME = 16, 2**20, 100


@dataclass(frozen=True)
class Head:
    """What a head decides: for each slot, one of its classes. Intent classification has three slots, the others one."""

    task: str
    slots: dict[str, tuple[str, ...]]

    @property
    def classes(self) -> int:
        """The number of classes of all slots."""
        return sum(len(names) for names in self.slots.values())

    def entries(self, config: ModelConfig) -> Iterator[Entry]:
        """List the tensors: the factor of the waveform, the weights of the hidden states, and the linear layer."""
        yield Entry(f"{PREFIX}gain", (), Values.POSITIVE)
        yield Entry(f"{PREFIX}layer_weights", (config.encoder.layers + 1,))
        yield Entry(f"{PREFIX}weight", (self.classes, config.encoder.dim))
        yield Entry(f"{PREFIX}bias", (self.classes,))


@dataclass(frozen=True)
class TrainedHead:
    """A head with its tensors, (names of `Head.entries`), and where it comes from, which must be JSON."""

    head: Head
    tensors: dict[str, NDArray[np.float32]]
    provenance: dict[str, Any]

    def check_fits(self, config: ModelConfig) -> None:
        """Raise UserError unless the tensors fit the hidden states of a model."""
        for entry in self.head.entries(config):
            if self.tensors[entry.name].shape != entry.shape:
                raise UserError(
                    f"the head does not fit {config.name}: {entry.name} has shape {self.tensors[entry.name].shape}, "
                    f"but must have {entry.shape}"
                )


def parse_head(path: Path, value: Any) -> Head:
    """Return the head that the metadata of a packed file describe. Raises UserError if the description is not valid."""
    if fault := _fault(value):
        raise UserError(f"{path} is not valid: {fault}")
    return Head(value["task"], {slot: tuple(classes) for slot, classes in value["slots"].items()})


def _fault(value: Any) -> str | None:
    if not isinstance(value, dict) or value.keys() != {"task", "slots"}:
        return "the head is not a mapping of task and slots"
    task, slots = value["task"], value["slots"]
    if task not in TASKS:
        return f"the head's task is none of {', '.join(TASKS)}"
    if not isinstance(slots, dict) or not 1 <= len(slots) <= MAX_SLOTS:
        return f"the head's slots are not a mapping with 1 to {MAX_SLOTS} names"
    for slot, classes in slots.items():
        if not isinstance(classes, list) or not 1 <= len(classes) <= MAX_CLASSES:
            return f"the classes of a slot of the head are not a list of 1 to {MAX_CLASSES} names"
        if not all(_is_name(name) for name in (slot, *classes)):
            return f"a name in the head is not a text of 1 to {MAX_NAME} printable ASCII characters"
    return None


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and 1 <= len(name) <= MAX_NAME and name.isascii() and name.isprintable()
