"""Messages that a user of s3prl cannot act on stay hidden."""

from __future__ import annotations

import logging
import warnings

import pytest

from upstreams.s3prl.compat.messages import hide_deprecations, quiet_import


def test_warnings_outside_an_import_are_still_logged(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("s3prl.upstream.some_expert")
    with quiet_import():
        logger.warning("a package is not installed")
        logger.error("the checkpoint is broken")
    logger.warning("the input is silent")
    assert caplog.messages == ["the checkpoint is broken", "the input is silent"]


@pytest.mark.parametrize(
    ("module", "category", "shown"),
    [
        ("s3prl.downstream.runner", FutureWarning, False),
        ("/env/site-packages/s3prl/upstream/x/expert", SyntaxWarning, False),
        ("s3prl.downstream.runner", UserWarning, True),
        ("torch.nn", FutureWarning, True),
        ("not_s3prl.module", FutureWarning, True),
    ],
)
def test_only_deprecations_inside_s3prl_are_hidden(module: str, category: type[Warning], shown: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hide_deprecations()
        warnings.warn_explicit("deprecated", category, "file.py", 1, module=module)
    assert bool(caught) is shown
