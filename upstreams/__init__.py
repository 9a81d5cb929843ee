"""Superbit's upstreams map waveforms to frozen features, with or without s3prl.

Importing this package imports neither torch nor s3prl.
"""

from __future__ import annotations


def register() -> list[str]:
    """Register this project's upstreams in `s3prl.hub` and return their names.

    Then `s3prl.hub.<name>`, `s3prl.nn.S3PRLUpstream("<name>")` and run_downstream's `-u <name>` find them.
    """
    from upstreams.s3prl.hubconf import register as register_names

    return register_names()
