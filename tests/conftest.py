"""Fixtures that several parts of the test suite use."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported anywhere: on few cores one thread is faster than several for models of this size.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what is cached about corpora out of the developer's own cache."""
    os.environ["SUPERBIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    """Fail a test that leaves logging switched off: tests that run after it would see no messages."""
    before = logging.root.manager.disable
    yield
    after, logging.root.manager.disable = logging.root.manager.disable, before
    assert after == before, "logging.disable was called and not taken back"


@pytest.fixture(scope="session")
def tiny_corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a corpora root with a few sounds for each of the seven tasks; tests must not change it."""
    from tests.tiny_corpora import build

    return build(tmp_path_factory.mktemp("corpora"))


@pytest.fixture(scope="session")
def more_tiny_corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a corpora root for the three other tasks; tests must not change it."""
    from tests.tiny_more_corpora import build

    return build(tmp_path_factory.mktemp("more_corpora"))
