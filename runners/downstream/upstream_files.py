"""The files that an upstream is built from, and their digests in the checkpoints of an experiment.

A head is only right for the features that it was trained on. A file may be replaced under its name while a job waits
in a queue, so its digest is taken when the head is trained, saved with the head, and compared when the head is used.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from upstreams import registry
from upstreams.errors import UserError
from upstreams.files import sha256

# Key in s3prl's arguments, which every checkpoint of s3prl holds:
# {argument that names the file: {"file": path, "sha256": digest}}
KEY = "upstream_files"
FLAGS = {"upstream_ckpt": "-k", "upstream_model_config": "-g"}

Files = dict[str, dict[str, str]]


def upstream_files(args: argparse.Namespace) -> dict[str, Path]:
    """Return the existing files that the upstream is built from, by the argument that names them.

    A checkpoint that a name of this project implies counts as `upstream_ckpt`. URLs and other names are left out.
    """
    given = {argument: getattr(args, argument, None) for argument in FLAGS}
    if args.upstream in registry.names():
        given["upstream_ckpt"] = registry.checkpoint_path(args.upstream, args.upstream_ckpt)
    return {argument: Path(file) for argument, file in given.items() if file and Path(file).is_file()}


def described(args: argparse.Namespace) -> Files:
    """Return path and SHA-256 of each of `upstream_files`, in the form that checkpoints hold."""
    return {
        argument: {"file": str(file), "sha256": sha256(file)} for argument, file in sorted(upstream_files(args).items())
    }


def check_same(checkpoint: str | Path, saved: Files, found: Files) -> None:
    """Raise UserError unless the upstream's files have the content that the head in `checkpoint` was trained on."""
    for argument, trained_on in saved.items():
        flag = FLAGS[argument]
        if argument not in found:
            raise UserError(
                f"{checkpoint} was trained on {trained_on['file']}, which does not exist: "
                f"give the file with SHA-256 {trained_on['sha256']} by {flag}"
            )
        if found[argument]["sha256"] != trained_on["sha256"]:
            raise UserError(
                f"{checkpoint} was trained on {trained_on['file']} with SHA-256 {trained_on['sha256']}, but "
                f"{found[argument]['file']} has SHA-256 {found[argument]['sha256']}: give the file that it was "
                f"trained on by {flag}, or train a new head"
            )
