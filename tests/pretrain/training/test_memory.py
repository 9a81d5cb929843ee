"""Memory that a training needs."""

from __future__ import annotations

import pytest

from pretrain.recipes import read_recipe
from pretrain.training import memory


def test_memory_grows_with_the_model() -> None:
    recipes = map(read_recipe, ("sparseformer_dn_mini", "hubert_base"))
    small, large = (memory.required_bytes(recipe.config, 4.0) for recipe in recipes)
    assert large[0] == pytest.approx(16 * 94.4e6, rel=0.01)
    assert 10 * small[1] < large[1]
