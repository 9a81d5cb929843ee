"""Import of public HuBERT checkpoints, in the layouts of transformers, fairseq, torchaudio and s3prl."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch
from torch import Tensor

from upstreams.config import ModelConfig
from upstreams.errors import UserError
from upstreams.formats import public_files
from upstreams.formats.public_config import configured
from upstreams.formats.tensors import assign, misfit, not_finite
from upstreams.model import AudioEncoder, without_values

_log = logging.getLogger(__name__)

# Patterns that match a whole tensor name -> the name here; "": no part of the model. In each layout a tensor of HuBERT
# has one name, but the positions' weight, which may be normalised (by two names) or folded.
_TRANSFORMERS = {
    r"feature_extractor\.conv_layers\.(\d+)\.conv\.(\w+)": r"front_end.convolutions.\1.\2",
    r"feature_extractor\.conv_layers\.(\d+)\.layer_norm\.(\w+)": r"front_end.norms.\1.\2",
    r"feature_projection\.layer_norm\.(\w+)": r"front_end.norm.\1",
    r"feature_projection\.projection\.(\w+)": r"front_end.projection.\1",
    r"encoder\.pos_conv_embed\.conv\.bias": "encoder.positions.convolution.bias",
    r"encoder\.pos_conv_embed\.conv\.(?:weight_g|parametrizations\.weight\.original0)": "magnitude",
    r"encoder\.pos_conv_embed\.conv\.(?:weight_v|parametrizations\.weight\.original1)": "direction",
    r"encoder\.pos_conv_embed\.conv\.weight": "folded",
    r"encoder\.layer_norm\.(\w+)": r"encoder.stack_norm.\1",
    r"encoder\.layers\.(\d+)\.attention\.q_proj\.(\w+)": r"encoder.blocks.\1.attention.query.\2",
    r"encoder\.layers\.(\d+)\.attention\.k_proj\.(\w+)": r"encoder.blocks.\1.attention.key.\2",
    r"encoder\.layers\.(\d+)\.attention\.v_proj\.(\w+)": r"encoder.blocks.\1.attention.value.\2",
    r"encoder\.layers\.(\d+)\.attention\.out_proj\.(\w+)": r"encoder.blocks.\1.attention.output.\2",
    r"encoder\.layers\.(\d+)\.layer_norm\.(\w+)": r"encoder.blocks.\1.attention_norm.\2",
    r"encoder\.layers\.(\d+)\.feed_forward\.intermediate_dense\.(\w+)": r"encoder.blocks.\1.feed_forward.expand.\2",
    r"encoder\.layers\.(\d+)\.feed_forward\.output_dense\.(\w+)": r"encoder.blocks.\1.feed_forward.contract.\2",
    r"encoder\.layers\.(\d+)\.final_layer_norm\.(\w+)": r"encoder.blocks.\1.feed_forward_norm.\2",
    r"masked_spec_embed": "",
    r"final_proj\.(\w+)": r"head.projection.\1",  # contentvec
}
# After the removal of two more modules, torchaudio's names are transformers'; its heads have names of their own.
_TORCHAUDIO = {
    **_TRANSFORMERS,
    r"mask_generator\.mask_embedding": "",
    r"aux\.\w+": "",
    r"logit_generator\.final_proj\.(\w+)": r"head.projection.\1",
    r"logit_generator\.label_embeddings": "head.codewords",
}
_FAIRSEQ = {
    r"feature_extractor\.conv_layers\.(\d+)\.0\.(\w+)": r"front_end.convolutions.\1.\2",
    r"feature_extractor\.conv_layers\.(\d+)\.2(?:\.1)?\.(\w+)": r"front_end.norms.\1.\2",
    r"layer_norm\.(\w+)": r"front_end.norm.\1",
    r"post_extract_proj\.(\w+)": r"front_end.projection.\1",
    r"encoder\.pos_conv\.0\.bias": "encoder.positions.convolution.bias",
    r"encoder\.pos_conv\.0\.(?:weight_g|parametrizations\.weight\.original0)": "magnitude",
    r"encoder\.pos_conv\.0\.(?:weight_v|parametrizations\.weight\.original1)": "direction",
    r"encoder\.pos_conv\.0\.weight": "folded",
    r"encoder\.layer_norm\.(\w+)": r"encoder.stack_norm.\1",
    r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(\w+)": r"encoder.blocks.\1.attention.query.\2",
    r"encoder\.layers\.(\d+)\.self_attn\.k_proj\.(\w+)": r"encoder.blocks.\1.attention.key.\2",
    r"encoder\.layers\.(\d+)\.self_attn\.v_proj\.(\w+)": r"encoder.blocks.\1.attention.value.\2",
    r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.(\w+)": r"encoder.blocks.\1.attention.output.\2",
    r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.(\w+)": r"encoder.blocks.\1.attention_norm.\2",
    r"encoder\.layers\.(\d+)\.fc1\.(\w+)": r"encoder.blocks.\1.feed_forward.expand.\2",
    r"encoder\.layers\.(\d+)\.fc2\.(\w+)": r"encoder.blocks.\1.feed_forward.contract.\2",
    r"encoder\.layers\.(\d+)\.final_layer_norm\.(\w+)": r"encoder.blocks.\1.feed_forward_norm.\2",
    r"mask_emb": "",
    r"final_proj\.(\w+)": r"head.projection.\1",
    r"label_embs_concat": "head.codewords",
}
# s3prl's DistilHuBERT: fairseq's names, and the heads that predict the teacher's layers.
_DISTILLER = {**_FAIRSEQ, r"output_layer\.[\w.]+": ""}
_LAYOUTS = {"transformers": _TRANSFORMERS, "torchaudio": _TORCHAUDIO, "fairseq": _FAIRSEQ, "distiller": _DISTILLER}

# Every layout has this tensor. What stands before it is before all tensors of the model.
_FIRST = re.compile(r"(?P<prefix>.*?)feature_extractor\.conv_layers\.0\.(?P<module>conv|0)\.weight")
# Prefixes of transformers' models whose tensors have HuBERT's names.
_OTHERS = re.compile(r"(?:.*\.)?(wav2vec2|wavlm|unispeech|unispeech_sat|data2vec_audio)\.")
POSITIONS = "encoder.positions.convolution.weight"


def load_public(path: Path, config: ModelConfig) -> tuple[AudioEncoder, dict[str, Tensor]]:
    """Return the model of a public HuBERT checkpoint, and the tensors of its pre-training head.

    path: a file, a folder or an index of shards in the layout of transformers (HubertModel, alone or with a head on
    top), fairseq, torchaudio or s3prl (HuBERT and DistilHuBERT). config: of hubert_base, hubert_large or distilhubert;
    the checkpoint's own configuration replaces what shapes do not show (public_config.py). The model is in eval mode.
    The head has the keys "projection.weight", "projection.bias" and "codewords"; it is empty if the file has none.

    Raises UserError on a file that cannot be read safely, is not a HuBERT, does not fit `config` or holds NaN.
    """
    if config.front_end.kind != "waveform" or config.encoder.kind != "transformer":
        raise UserError(f"{config.name} is not a HuBERT: import the weights into hubert_base or hubert_large")
    file = public_files.read(path)
    layout, tensors = _renamed(file.tensors, path)
    head = {name.removeprefix("head."): tensors.pop(name) for name in list(tensors) if name.startswith("head.")}
    if head and head.keys() == {"projection.weight", "projection.bias"}:
        head = {}  # contentvec's projection of the output: without codewords it predicts nothing
    config, where = configured(config, file, layout, bool(head))
    if not where:
        _log.warning("%s states no heads, activation and norms: those of %s are used", path, config.name)
    with without_values():
        model = AudioEncoder(config)
    place = "norm" if config.encoder.norm == "pre" else "input_norm"
    tensors = {name.replace("encoder.stack_norm", f"encoder.{place}"): tensor for name, tensor in tensors.items()}
    expected = model.state_dict()
    _fold_positions(tensors, expected[POSITIONS], path, config.name)
    if problem := misfit(expected, tensors):
        raise UserError(f"{path} does not fit {config.name}: {problem}")
    _check_head(head, config.encoder.dim, path)
    if name := not_finite({**tensors, **head}):
        raise UserError(f"{name} in {path} holds NaN or infinite values: the weights are damaged")
    assign(model, tensors)
    return model.eval(), {name: tensor.float() for name, tensor in head.items()}


def _renamed(tensors: dict[str, Tensor], path: Path) -> tuple[str, dict[str, Tensor]]:
    """Return the layout, and the tensors under this project's names, without those that are no part of the model."""
    found = {match["prefix"]: match["module"] for name in tensors if (match := _FIRST.fullmatch(name))}
    if not found:
        raise UserError(
            f"{path} is not a HuBERT in the layout of transformers or fairseq, torchaudio or s3prl: it has no "
            "feature_extractor.conv_layers.0"
        )
    if len(found) > 1:
        raise UserError(f"{path} holds several models, {', '.join(map(repr, sorted(found)))}: save one of them alone")
    prefix, module = next(iter(found.items()))
    if any(name.startswith(f"{prefix}encoder.transformer.") for name in tensors):
        layout, prefix = "torchaudio", prefix.removesuffix("wav2vec2.")
    elif module == "conv":
        layout = "transformers"
    else:
        is_distilled = any(name.startswith(f"{prefix}output_layer.") for name in tensors)
        layout = "distiller" if is_distilled else "fairseq"
    if other := _OTHERS.fullmatch(prefix):
        raise UserError(f"{path} is a {other[1]}, not a HuBERT: only HuBERTs are imported")
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not name.startswith(prefix):
            continue  # of a head on top, such as lm_head
        short = name.removeprefix(prefix)
        if layout == "torchaudio":
            short = short.removeprefix("wav2vec2.").replace("encoder.transformer.", "encoder.")
            short = short.replace("encoder.feature_projection.", "feature_projection.")
        ours = next((m.expand(new) for old, new in _LAYOUTS[layout].items() if (m := re.fullmatch(old, short))), None)
        if ours is None:
            raise UserError(f"{path} holds {name}, which is not a tensor of HuBERT")
        if ours in renamed and ours:
            raise UserError(f"{path} holds {name} twice, under two names")
        renamed[ours] = tensor
    renamed.pop("", None)
    return layout, renamed


def _fold_positions(tensors: dict[str, Tensor], expected: Tensor, path: Path, model: str) -> None:
    """Replace the positions' normalised or folded weight by the weight that the model has, of the shape of `expected`.

    Weight normalisation is over all dimensions but the kernel's (wav2vec 2.0).
    """
    parts: dict[str, Tensor] = {
        name: tensors.pop(name) for name in ("folded", "magnitude", "direction") if name in tensors
    }
    shape = expected.shape[:-1]  # (dim, dim / groups, kernel)
    if parts.keys() not in ({"folded"}, {"magnitude", "direction"}):
        has = " and ".join(parts) or "no part"
        raise UserError(
            f"{path} has {has} of the weight of the convolutional positions: it needs weight_g and weight_v, or weight"
        )
    shapes = {"folded": shape, "direction": shape, "magnitude": torch.Size((1, 1, shape[-1]))}
    meta = {name: torch.empty(shapes[name], device="meta") for name in parts}
    if problem := misfit(meta, parts):
        raise UserError(f"{path} does not fit {model}: of the convolutional positions {problem}")
    if "folded" in parts:
        weight = parts["folded"].float()
    else:
        direction = parts["direction"].float()
        weight = parts["magnitude"].float() * direction / direction.norm(dim=(0, 1), keepdim=True)
    tensors[POSITIONS] = weight.unsqueeze(-1)


def _check_head(head: dict[str, Tensor], dim: int, path: Path) -> None:
    """Raise UserError unless the head is complete, and of one projection for all codewords."""
    if not head:
        return
    names = {"projection.weight", "projection.bias", "codewords"}
    if head.keys() != names:
        problem = f"it lacks {min(names - head.keys())}"
    else:
        code = head["codewords"].shape[-1] if head["codewords"].ndim == 2 else 0
        expected = {
            "projection.weight": torch.empty(code, dim, device="meta"),
            "projection.bias": torch.empty(code, device="meta"),
            "codewords": torch.empty(len(head["codewords"]) if code else 0, code, device="meta"),
        }
        found = misfit(expected, head)
        if found is None:
            return
        problem = f"{found}; a projection for each codebook (untie_final_proj) is not supported"
    raise UserError(
        f"the pre-training head in {path} cannot be used: {problem}; "
        "to import the model alone, remove final_proj and label_embs_concat from the file"
    )
