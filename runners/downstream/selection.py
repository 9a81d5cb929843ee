"""Which of an upstream's features a head reads: -s, -l and --upstream_feature_normalize."""

from __future__ import annotations

import argparse

import torch
from torch import nn

from upstreams.config import SAMPLE_RATE
from upstreams.errors import UserError, nearest


@torch.no_grad()
def check_selection(upstream: nn.Module, args: argparse.Namespace) -> None:
    """Raise UserError for features or a layer that the upstream does not have, and for flags without effect."""
    training = upstream.training
    features = upstream.eval()([torch.zeros(SAMPLE_RATE, device=args.device)])
    upstream.train(training)
    wanted, layer = args.upstream_feature_selection, args.upstream_layer_selection
    if wanted not in features:
        raise UserError(f"{args.upstream} has no features {wanted!r} (-s): {nearest(wanted, features)}")
    is_list = isinstance(features[wanted], list | tuple | dict)
    layers = len(features[wanted]) if is_list else 1
    if layer is not None and not is_list:
        raise UserError(f"the features {wanted} (-s) of {args.upstream} are one layer: remove -l {layer}")
    if layer is not None and not -layers <= layer < layers:
        has = f"the layers 0 to {layers - 1}" if layers > 1 else "only the layer 0"
        raise UserError(f"there is no layer {layer} (-l): the features {wanted} of {args.upstream} have {has}")
    if args.upstream_feature_normalize and (layers == 1 or layer is not None):
        raise UserError(
            "--upstream_feature_normalize applies before the weighted sum of layers, but only one layer is used: "
            "remove it"
        )
