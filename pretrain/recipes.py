"""Recipes: YAML files that say how a model is pre-trained; packaged ones in pretrain/configs."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import yaml

from pretrain.hubert import Objective
from upstreams.config import ModelConfig, QuantizationConfig, from_dict, preset
from upstreams.errors import UserError, nearest
from upstreams.quantization.spec import FLOAT, Bits


@dataclass(frozen=True)
class Iteration:
    """One round of masked prediction: targets by k-means of `layer` of the round before (0: of MFCC)."""

    layer: int
    clusters: int
    steps: int


@dataclass(frozen=True)
class Iterations:
    """HuBERT's two rounds; the second goes on from the first one's weights."""

    mfcc: Iteration
    features: Iteration


@dataclass(frozen=True)
class FromScratch:
    """Quantization from the first step of pre-training on, for comparison with distillation."""

    bits: str = "w32a32"
    config: QuantizationConfig = field(default_factory=QuantizationConfig)
    scale_lr: float = 1e-4  # of the quantizers' scales and shifts


@dataclass(frozen=True)
class Recipe:
    """Everything that `superbit pretrain` needs besides data, folder and seed."""

    model: str
    iterations: Iterations
    source: str = ""
    batch_seconds: float = 60.0
    crop_seconds: float = 4.0
    views: int = 2  # crops of an utterance in a batch; with 2 they are paired for the utterance loss
    lr: float = 3e-3  # of AdamW: norms, biases, embeddings, heads
    matrix_lr: float = 1.5e-2  # of Muon: the blocks' weight matrices
    weight_decay: float = 0.01
    warm_up: float = 0.1
    clip: float = 1.0
    cluster_fraction: float = 0.2  # of the utterances, to fit k-means on
    cluster_starts: int = 20  # initialisations of k-means that are tried
    objective: Objective = field(default_factory=Objective)
    quantization: FromScratch = field(default_factory=FromScratch)

    @property
    def name(self) -> str:
        """Of the checkpoint: the model's, with its bits when it is quantized."""
        bits = self.quantization.bits
        return self.model if Bits.parse(bits) == FLOAT else f"{self.model}_{bits}"

    @property
    def config(self) -> ModelConfig:
        """The model that is pre-trained, in float."""
        return preset(self.model)


def recipe_names() -> list[str]:
    """The packaged recipes."""
    return sorted(
        p.name.removesuffix(".yaml")
        for p in (resources.files("pretrain") / "configs").iterdir()
        if p.name.endswith(".yaml")
    )


def read_recipe(name: str) -> Recipe:
    """The packaged recipe of that name, or the YAML file at that path. Raises UserError when it is neither."""
    if name in recipe_names():
        text = (resources.files("pretrain") / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    elif Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8")
    else:
        raise UserError(f"no recipe or file is called {name!r}: {nearest(name, recipe_names())}")
    try:
        recipe = from_dict(Recipe, yaml.safe_load(text), f"recipe {name}")
    except yaml.YAMLError as error:
        raise UserError(f"recipe {name} is no valid YAML: {error}") from error
    Bits.parse(recipe.quantization.bits)
    layers = recipe.config.encoder.layers
    for what, layer in (
        ("iterations.features.layer", recipe.iterations.features.layer),
        ("objective.utterance_layer", recipe.objective.utterance_layer),
    ):
        if not 1 <= layer <= layers:
            raise UserError(f"{what} is {layer} in recipe {name}, but {recipe.model} has layers 1 to {layers}")
    return recipe
