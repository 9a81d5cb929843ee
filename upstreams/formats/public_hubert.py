"""Import of public HuBERT checkpoints, in the file layouts of transformers, fairseq and s3prl.

Only tensors are read. A pickled file is loaded with `weights_only`, so that it cannot run code.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from upstreams.config import ModelConfig
from upstreams.errors import UserError
from upstreams.model import AudioEncoder

# Patterns that match a whole tensor name -> the name here. In both layouts each tensor of HuBERT has one name.
_TRANSFORMERS = {
    r"feature_extractor\.conv_layers\.(\d+)\.conv\.(\w+)": r"front_end.convolutions.\1.\2",
    r"feature_extractor\.conv_layers\.(\d+)\.layer_norm\.(\w+)": r"front_end.norms.\1.\2",
    r"feature_projection\.layer_norm\.(\w+)": r"front_end.norm.\1",
    r"feature_projection\.projection\.(\w+)": r"front_end.projection.\1",
    r"encoder\.pos_conv_embed\.conv\.bias": "encoder.positions.convolution.bias",
    r"encoder\.pos_conv_embed\.conv\.(?:weight_g|parametrizations\.weight\.original0)": "magnitude",
    r"encoder\.pos_conv_embed\.conv\.(?:weight_v|parametrizations\.weight\.original1)": "direction",
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
}
_FAIRSEQ = {
    r"feature_extractor\.conv_layers\.(\d+)\.0\.(\w+)": r"front_end.convolutions.\1.\2",
    r"feature_extractor\.conv_layers\.(\d+)\.2(?:\.1)?\.(\w+)": r"front_end.norms.\1.\2",
    r"layer_norm\.(\w+)": r"front_end.norm.\1",
    r"post_extract_proj\.(\w+)": r"front_end.projection.\1",
    r"encoder\.pos_conv\.0\.bias": "encoder.positions.convolution.bias",
    r"encoder\.pos_conv\.0\.weight_g": "magnitude",
    r"encoder\.pos_conv\.0\.weight_v": "direction",
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


class _Vocabulary:
    """Placeholder for fairseq's Dictionary: its files pickle one beside the weights, and it is not used here."""


def load_public(path: Path, config: ModelConfig) -> tuple[AudioEncoder, dict[str, Tensor]]:
    """Return the model of `config` with the weights of a public HuBERT checkpoint, and the pre-training head's tensors.

    path: a .safetensors or PyTorch file in the layout of transformers (HubertModel, alone or with a head on top),
    fairseq or s3prl. config: of hubert_base or hubert_large; the files do not state the number of attention heads and
    the position of the norms. The model is in eval mode. The head has the keys "projection.weight", "projection.bias"
    and "codewords"; it is empty if the file has none. Raises UserError on a file that cannot be read safely, is not a
    HuBERT or does not fit `config`.
    """
    if config.front_end.kind != "waveform" or config.encoder.kind != "transformer":
        raise UserError(f"{config.name} is not a HuBERT: import the weights into hubert_base or hubert_large")
    tensors = _renamed(_state_dict(path), path)
    if "magnitude" in tensors:
        # Fold weight normalisation, over all dimensions but the kernel's (wav2vec 2.0), into the weight.
        magnitude, direction = tensors.pop("magnitude"), tensors.pop("direction")
        weight = magnitude * direction / direction.norm(dim=(0, 1), keepdim=True)
        tensors["encoder.positions.convolution.weight"] = weight.unsqueeze(-1)
    place = "norm" if config.encoder.norm == "pre" else "input_norm"
    tensors = {name.replace("encoder.stack_norm", f"encoder.{place}"): tensor for name, tensor in tensors.items()}
    head = {name.removeprefix("head."): tensors.pop(name) for name in list(tensors) if name.startswith("head.")}
    with torch.device("meta"):
        model = AudioEncoder(config)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        problem = str(error).splitlines()[1].strip()
        raise UserError(f"{path} does not fit {config.name}: {problem}") from error
    return model.eval(), head


def _state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, in float32."""
    if not path.is_file():
        raise UserError(f"there is no file {path}: give a HuBERT checkpoint of transformers, fairseq or s3prl")
    try:
        if path.suffix == ".safetensors":
            content: object = load_file(path)
        else:
            with torch.serialization.safe_globals([(_Vocabulary, "fairseq.data.dictionary.Dictionary")]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise UserError(f"{path} is damaged or not a checkpoint ({type(error).__name__})") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds Python objects besides tensors, which could run code and are not loaded: "
            "save the state dict alone, with safetensors or torch.save"
        ) from error
    for key in ("model", "model_weight"):  # the key in fairseq's files, and in s3prl's converted files
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{path} holds no state dict: it must map names to tensors")
    # A model with a head on top (HubertForCTC) has HuBERT's tensors under a prefix.
    prefix = "hubert." if any(name.startswith("hubert.") for name in content) else ""
    return {name.removeprefix(prefix): t.float() for name, t in content.items() if name.startswith(prefix)}


def _renamed(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the tensors under this project's names, without the mask embedding."""
    if "feature_projection.projection.weight" in tensors:
        layout = _TRANSFORMERS
    elif "post_extract_proj.weight" in tensors:
        layout = _FAIRSEQ
    else:
        raise UserError(
            f"{path} is not a HuBERT in the layout of transformers or fairseq: it has neither "
            "feature_projection.projection.weight nor post_extract_proj.weight"
        )
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, ours in layout.items():
            if match := re.fullmatch(pattern, name):
                renamed[match.expand(ours)] = tensor
                break
        else:
            raise UserError(f"{path} holds {name}, which is not a tensor of HuBERT")
    renamed.pop("", None)
    return renamed
