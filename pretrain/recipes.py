"""Recipes: YAML files that say how a model is pre-trained; packaged ones in pretrain/configs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from pretrain.objectives.hubert import Objective
from pretrain.training.loop import Training
from upstreams.config import EncoderConfig, ModelConfig, QuantizationConfig, from_dict, preset
from upstreams.errors import UserError, nearest
from upstreams.quantization.spec import FLOAT, Bits


@dataclass(frozen=True)
class Iteration:
    """One round of masked prediction: targets by k-means of `layer` of the round before (0: of MFCC)."""

    layer: int
    clusters: int
    steps: int
    from_scratch: bool = False  # start from the initialisation, not from the round before (as HuBERT does)


@dataclass(frozen=True)
class Teacher:
    """Distillation after the iterations: predict a teacher's layers, by L1 and cosine (DistilHuBERT, 2110.01900)."""

    name: str = ""  # a checkpoint of this project, one of its names, or any upstream of s3prl; none when empty
    layers: tuple[int, ...] = (4, 8, 12)  # hidden states of the teacher, 0 its input
    steps: int = 0
    cosine_weight: float = 1.0


@dataclass(frozen=True)
class Expectation:
    """What a recipe is for, costs and gives; "not run" where nobody has run it."""

    audio_hours: float = 0.0
    gpu_hours: str = "not run"
    loss: str = "not run"  # of the masked frames at the end of each iteration


@dataclass(frozen=True)
class FromScratch:
    """Quantization from the first step of pre-training on, for comparison with distillation."""

    bits: str = "w32a32"
    config: QuantizationConfig = field(default_factory=QuantizationConfig)


@dataclass(frozen=True, kw_only=True)
class Recipe(Training):
    """Everything that `superbit pretrain` needs besides data, folder and seed."""

    model: str
    encoder: dict[str, Any] = field(default_factory=dict)  # keys of the preset's encoder to change
    iterations: tuple[Iteration, ...] = ()
    teacher: Teacher = field(default_factory=Teacher)
    source: str = ""
    expected: Expectation = field(default_factory=Expectation)
    views: int = 2  # crops of an utterance in a batch; with 2 they are paired for the utterance loss
    cluster_fraction: float = 0.2  # of the utterances, to fit k-means on
    cluster_starts: int = 20  # initialisations of k-means that are tried
    objective: Objective = field(default_factory=Objective)
    quantization: FromScratch = field(default_factory=FromScratch)

    @property
    def name(self) -> str:
        """Of the checkpoint: the model's, with its bits when it is quantized."""
        bits = self.quantization.bits
        return self.model if Bits.parse(bits) == FLOAT else f"{self.model}_{bits}"

    @cached_property
    def config(self) -> ModelConfig:
        """The model that is pre-trained, in float."""
        config = preset(self.model)
        if not self.encoder:
            return config
        encoder = from_dict(EncoderConfig, dataclasses.asdict(config.encoder) | self.encoder, "encoder of the recipe")
        return dataclasses.replace(config, encoder=encoder)


def recipe_names() -> list[str]:
    """The packaged recipes."""
    return sorted(
        p.name.removesuffix(".yaml")
        for p in (resources.files("pretrain") / "configs").iterdir()
        if p.name.endswith(".yaml")
    )


def read_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """The packaged recipe of that name, or the YAML file at that path, with `settings` (KEY=VALUE) put into it.

    A key may reach inside: objective.mask_prob=0.8, iterations.0.steps=10. Raises UserError when there is no such
    recipe, on keys that it does not have and on values that are impossible.
    """
    if name in recipe_names():
        text = (resources.files("pretrain") / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    elif Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8")
    else:
        raise UserError(f"no recipe or file is called {name!r}: {nearest(name, recipe_names())}")
    values = with_settings(parsed(text, f"recipe {name}"), settings)
    recipe = from_dict(Recipe, values, f"recipe {name}")
    recipe.check(f"recipe {name}")
    Bits.parse(recipe.quantization.bits)
    layers = recipe.config.encoder.layers
    recipe.objective.check(layers, f"recipe {name}")
    if not recipe.iterations and not recipe.teacher.name:
        raise UserError(f"recipe {name} has no iterations and no teacher: it needs one of them")
    for number, iteration in enumerate(recipe.iterations):
        if not 0 <= iteration.layer <= layers or (number == 0 and iteration.layer):
            raise UserError(
                f"iterations[{number}].layer is {iteration.layer} in recipe {name}, but must be 0 (MFCC)"
                + (f" or a layer of {recipe.model}, 1 to {layers}" if number else ", as nothing has been trained yet")
            )
        if iteration.steps < 1 or iteration.clusters < 2:
            raise UserError(f"iterations[{number}] of recipe {name} needs at least 1 step and 2 clusters")
    if recipe.teacher.name and (recipe.teacher.steps < 1 or not recipe.teacher.layers):
        raise UserError(f"teacher of recipe {name} needs at least 1 step and one layer")
    return recipe


def parsed(text: str, where: str) -> Any:
    """The contents of YAML text. Raises UserError where it is none."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where} is no valid YAML: {error}") from error


def with_settings(values: Any, settings: Sequence[str]) -> Any:
    """`values` of a YAML file with KEY=VALUE settings put into it; the value is YAML as well.

    >>> with_settings({"a": {"b": 1}, "c": [{"d": 2}]}, ["a.b=3", "c.0.d=[4]"])
    {'a': {'b': 3}, 'c': [{'d': [4]}]}
    """
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise UserError(f"--set {setting} is no KEY=VALUE, such as batch_seconds=6 or iterations.0.steps=10")
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
        raise UserError(f"--set {setting}: the recipe has no {part!r} there")
    return int(part)
