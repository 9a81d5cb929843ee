"""The choice of the kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from upstreams.errors import UserError
from upstreams.packed import kernels, library


@pytest.fixture(autouse=True)
def fresh_choice() -> Iterator[None]:
    """Empty the caches before and after a test."""
    for cached in (kernels.chosen_by, library.load):
        cached.cache_clear()
    yield
    for cached in (kernels.chosen_by, library.load):
        cached.cache_clear()


def test_an_unavailable_kernel_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.VARIABLE, "avx51")
    with pytest.raises(UserError, match="avx512"):
        kernels.chosen()
    monkeypatch.setenv(kernels.VARIABLE, "avx512")
    monkeypatch.setattr(kernels, "levels", lambda: ("scalar",))
    with pytest.raises(UserError, match="available are scalar"):
        kernels.chosen()


def test_a_missing_kernel_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    monkeypatch.setattr(kernels, "levels", lambda: ())
    monkeypatch.setattr(kernels, "missing_reason", lambda: "no compiled kernel is installed")
    assert kernels.chosen() == "torch"
    kernels.chosen()
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.skipif(not library.levels(), reason="the package was built without a compiler")
def test_a_kernel_with_another_interface_is_not_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after an update of the sources without a build."""
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    monkeypatch.setattr(library, "VERSION", library.VERSION + 1)
    assert kernels.chosen() == "torch"
    assert f"needs version {library.VERSION}" in capsys.readouterr().err
