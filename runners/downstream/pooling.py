"""Heads that use nothing of an utterance but the mean of its features over time. Importable without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# s3prl's experts whose head is a linear projection, then the configured model.
PROJECTED = ("speech_commands", "fluent_commands", "voxceleb1", "emotion")


def averages_over_time(downstream: str, config: Mapping[str, Any]) -> bool:
    """True if the head gives the same output for the mean over time of its features, up to rounding.

    So do SUPERB's official heads of KS, IC, SID and ER: weighted sum of layers, linear projection and mean over time
    are linear, so their order does not matter. Normalised or augmented features, other pooling and layers before it are
    not.

    downstream: s3prl's name of the task; config: the experiment's configuration.
    """
    head = config["downstream_expert"].get("modelrc") or {}
    if downstream not in PROJECTED or head.get("select") != "UtteranceLevel":
        return False
    layers = head.get("UtteranceLevel") or {}
    averaged = layers.get("pooling", "MeanPooling") == "MeanPooling" and not layers.get("pre_net")
    return averaged and not config.get("specaug")
