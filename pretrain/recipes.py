"""Recipes: YAML files with the settings of a pre-training. The packaged ones are in pretrain/configs.

A recipe may name another one with the key `base`: its values replace those of the base.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from pretrain.objectives.hubert import Objective
from pretrain.objectives.teacher import TeacherSettings
from pretrain.training.settings import AT_LEAST_ONE, NOT_NEGATIVE, Range, TrainingSettings, check_ranges
from upstreams.config import EncoderConfig, ModelConfig, QuantizationConfig, from_dict, preset
from upstreams.errors import UserError, nearest, shown
from upstreams.files import parse_yaml, read_text
from upstreams.quantization.spec import FLOAT, Bits

WINDOWS = Range(0, 2)  # seconds that a label of MFCC may describe


@dataclass(frozen=True)
class Iteration:
    """One round of masked prediction. Its targets are k-means clusters of `layer` of the round before (0: of MFCC)."""

    layer: int
    clusters: int
    steps: int
    window: float = 0.0  # seconds that an MFCC label describes, normalised over the utterance; 0: one frame (HuBERT)
    from_scratch: bool = False  # start from the initial weights, as HuBERT, instead of those of the round before


@dataclass(frozen=True)
class Expectation:
    """Data, cost and result of a recipe; "not run" if unknown."""

    audio_hours: float = 0.0
    gpu_hours: str = "not run"
    loss: str = "not run"  # of masked frames, at the end of each iteration


@dataclass(frozen=True)
class FromScratch:
    """Quantization from the first step of pre-training, for comparison with distillation."""

    bits: str = "w32a32"
    config: QuantizationConfig = field(default_factory=QuantizationConfig)


@dataclass(frozen=True, kw_only=True)
class Recipe(TrainingSettings):
    """All settings of `superbit pretrain` except data, folder and seed."""

    model: str
    encoder: dict[str, Any] = field(default_factory=dict)  # keys that replace those of the preset's encoder
    iterations: tuple[Iteration, ...] = ()
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    source: str = ""
    expected: Expectation = field(default_factory=Expectation)
    views: int = 2  # crops of each utterance in a batch; the utterance loss needs 2
    label_rate: float = 0.0  # Hz of existing label files for the first iteration; 0: make labels at the encoder's rate
    cluster_fraction: float = 0.2  # of the utterances, to fit k-means on
    cluster_starts: int = 20  # initialisations of k-means
    objective: Objective = field(default_factory=Objective)
    quantization: FromScratch = field(default_factory=FromScratch)

    def check(self, where: str) -> None:
        """Raise UserError if a value is out of range, or if two contradict each other. where: the recipe's name."""
        super().check(where)
        check_ranges(vars(self), {"cluster_fraction": Range(0, 1, low_included=False)}, where)
        check_ranges(vars(self), {"cluster_starts": AT_LEAST_ONE}, where)
        check_ranges(vars(self.teacher), {"cosine_weight": NOT_NEGATIVE}, where, "teacher.")
        if self.views not in (1, 2):
            raise UserError(f"views is {self.views} in {where}, but must be 1, or 2 for the utterance loss")
        Bits.parse(self.quantization.bits)
        self.objective.check(self.config.encoder.layers, where)
        if self.iterations:
            self.check_crops(self.views, where)
            if self.objective.utterance_weight and self.views == 1:
                raise UserError(
                    f"views is 1 in {where}, but the utterance loss needs 2: set views to 2, or "
                    "objective.utterance_weight to 0"
                )
        self._check_stages(where)

    def _check_stages(self, where: str) -> None:
        layers = self.config.encoder.layers
        if not self.iterations and not self.teacher.name:
            raise UserError(f"{where} has neither iterations nor a teacher: it needs one of them")
        if not 0 <= self.label_rate <= 1000:
            raise UserError(f"label_rate is {self.label_rate:g} in {where}, but must be 0 (make labels) to 1000 Hz")
        for number, iteration in enumerate(self.iterations):
            if not 0 <= iteration.layer <= layers or (number == 0 and iteration.layer):
                raise UserError(
                    f"iterations[{number}].layer is {iteration.layer} in {where}, but must be 0 (MFCC)"
                    + (f" or a layer of {self.model}, 1 to {layers}" if number else " in the first iteration")
                )
            if iteration.window not in WINDOWS or (iteration.window and iteration.layer):
                raise UserError(
                    f"iterations[{number}].window is {iteration.window:g} in {where}, but must be {WINDOWS} seconds, "
                    "and 0 if layer is not 0: only MFCC have a window"
                )
            if iteration.window and self.label_rate:
                raise UserError(
                    f"iterations[{number}].window is {iteration.window:g} in {where}, but label_rate says that the "
                    "labels exist: set one of them to 0"
                )
            if iteration.steps < 1 or iteration.clusters < 2:
                raise UserError(f"iterations[{number}] of {where} needs at least 1 step and 2 clusters")
        if self.teacher.name and (self.teacher.steps < 1 or not self.teacher.layers):
            raise UserError(f"teacher of {where} needs at least 1 step and one layer")

    @property
    def name(self) -> str:
        """Name of the checkpoint: the model's, followed by the bit widths if it is quantized."""
        bits = self.quantization.bits
        return self.model if Bits.parse(bits) == FLOAT else f"{self.model}_{bits}"

    @cached_property
    def config(self) -> ModelConfig:
        """Configuration of the model in full precision."""
        config = preset(self.model)
        if not self.encoder:
            return config
        encoder = from_dict(EncoderConfig, dataclasses.asdict(config.encoder) | self.encoder, "encoder of the recipe")
        return dataclasses.replace(config, encoder=encoder)


def recipe_names() -> list[str]:
    """Return the names of the packaged recipes."""
    return sorted(
        p.name.removesuffix(".yaml")
        for p in (resources.files("pretrain") / "configs").iterdir()
        if p.name.endswith(".yaml")
    )


def read_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """Return the packaged recipe `name`, or the one in the YAML file at that path, after applying `settings`.

    settings: KEY=VALUE with dotted keys, such as objective.mask_prob=0.8 or iterations.0.steps=10. Raises UserError for
    an unknown recipe, unknown keys and impossible values.
    """
    packaged = Path(str(resources.files("pretrain"))) / "configs" / f"{name}.yaml"
    if name not in recipe_names() and not Path(name).is_file():
        raise UserError(f"there is no recipe or file {name!r}: {nearest(name, recipe_names())}")
    values = with_settings(read_values(packaged if name in recipe_names() else Path(name), f"recipe {name}"), settings)
    recipe = from_dict(Recipe, values, f"recipe {name}")
    recipe.check(f"recipe {name}")
    return recipe


def read_values(path: Path, where: str, derived: tuple[Path, ...] = ()) -> Any:
    """Return the values of a recipe's YAML file; `base`, a path relative to the file, gives those that it omits.

    Mappings are merged key by key; lists are replaced. derived: the recipes that have this one as their base. Raises
    UserError if there is no such file, if it is not valid YAML, and if a recipe is its own base.
    """
    path = path.resolve()
    if path in derived:
        raise UserError(f"{where} is its own base: {' -> '.join(p.name for p in (*derived, path))}")
    if not path.is_file():
        raise UserError(f"{where}: there is no file {path}")
    values = parsed(read_text(path), where)
    if not isinstance(values, dict) or "base" not in values:
        return values
    base = values.pop("base")
    if not isinstance(base, str):
        raise UserError(f"base is {shown(base)} in {where}, but must be the path of a recipe, relative to this one")
    inherited = read_values(path.parent / base, f"base {base} of {where}", (*derived, path))
    return _merged(inherited, values)


def _merged(base: Any, values: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(values, dict):
        return values
    return base | {key: _merged(base.get(key), value) for key, value in values.items()}


def parsed(text: str, where: str) -> Any:
    """Return the content of YAML text; raise UserError if it is not valid. where: its name in the message."""
    return parse_yaml(text, where)


def with_settings(values: Any, settings: Sequence[str]) -> Any:
    """Apply settings KEY=VALUE to the content of a YAML file, and return it. A VALUE is YAML, too.

    >>> with_settings({"a": {"b": 1}, "c": [{"d": 2}]}, ["a.b=3", "c.0.d=[4]"])
    {'a': {'b': 3}, 'c': [{'d': [4]}]}
    """
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise UserError(f"--set {setting} is not KEY=VALUE, such as batch_seconds=6 or iterations.0.steps=10")
        *path, last = key.split(".")
        place = values
        for part in path:
            place = place.setdefault(part, {}) if isinstance(place, dict) else place[_index(place, part, setting)]
        if isinstance(place, dict):
            place[last] = parsed(value, f"--set {setting}")
        else:
            place[_index(place, last, setting)] = parsed(value, f"--set {setting}")
    return values


def _index(place: Any, part: str, setting: str) -> int:
    if not isinstance(place, list) or not part.isdigit() or int(part) >= len(place):
        raise UserError(f"--set {setting}: the recipe has no {part!r} at that place")
    return int(part)
