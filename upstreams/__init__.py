"""Superbit's upstreams: waveform -> frozen features, for s3prl and without it.

Importing this package imports neither torch nor s3prl.
"""

from __future__ import annotations


def register() -> list[str]:
    """Put this project's upstream names into `s3prl.hub`; return the names.

    After it, `s3prl.hub.<name>`, `s3prl.nn.S3PRLUpstream("<name>")` and run_downstream's `-u <name>` work.
    """
    from upstreams.s3prl.hubconf import register as register_names

    return register_names()
