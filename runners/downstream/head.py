"""A head that s3prl trained, as a packed file holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runners.corpora.check.fluent_commands import SLOTS
from runners.corpora.files import read_table
from runners.corpora.published import EMOTIONS, KEYWORDS, VOXCELEB_SPEAKERS
from runners.downstream.past import arguments_of
from runners.downstream.states import read_state
from runners.downstream.upstream_files import KEY, check_same
from runners.tasks import Task, read_config, task_of
from upstreams.errors import UserError
from upstreams.files import sha256
from upstreams.packed.head import PREFIX, TASKS, Head, TrainedHead

# s3prl reads the audio of KS with SoX's "gain -3.0".
GAIN = {"ks": 10 ** (-3 / 20)}
# The parameters of SUPERB's UtteranceLevel with MeanPooling. Other heads have others.
PROJECTION, LAST = "projector", "model.post_net.linear"


def read_head(path: Path, upstream: Path, corpora: Path | None = None) -> TrainedHead:
    """Return the head in a checkpoint of s3prl.

    upstream: the file that it is packed with. corpora: their root, if the corpus that an IC head was trained on has
    moved: its training list has the names of the classes. Raises UserError if the head was trained on another file, or
    is none of SUPERB's heads of KS, IC, SID and ER on the weighted sum of all hidden states of a frozen upstream.
    """
    import torch

    state = read_state(path)
    args, config = arguments_of(path, state)
    task = task_of(args.get("downstream", ""), config)
    if task is None or task.name not in TASKS:
        name = task.name if task else args.get("downstream")
        raise UserError(f"{path} holds a head of {name}: only heads of {', '.join(TASKS)} can be packed")
    if args.get("upstream_trainable"):
        raise UserError(f"{path} was trained with a fine-tuned upstream (-f), which is in no checkpoint of superbit")
    check_same(path, args.get(KEY) or {}, {"upstream_ckpt": {"file": str(upstream), "sha256": sha256(upstream)}})
    parameters, layers = state.get("Downstream"), (state.get("Featurizer") or {}).get("weights")
    names = {f"{layer}.{part}" for layer in (PROJECTION, LAST) for part in ("weight", "bias")}
    if not isinstance(parameters, dict) or parameters.keys() - {"best_score"} != names:
        raise UserError(
            f"{path} holds another head than SUPERB's of {task.name}: a projection, the mean over the frames and a "
            "linear layer"
        )
    if not isinstance(layers, torch.Tensor) or args.get("upstream_feature_normalize"):
        raise UserError(
            f"{path} was not trained on the weighted sum of all hidden states: leave out -s, -l and "
            "--upstream_feature_normalize"
        )
    first, first_bias, last, last_bias = (
        parameters[f"{layer}.{part}"].double() for layer in (PROJECTION, LAST) for part in ("weight", "bias")
    )
    head = Head(task.name, _slots(task, config, len(last_bias), corpora, path))
    tensors = {
        "gain": torch.tensor(GAIN.get(task.name, 1.0)),
        "layer_weights": layers.double().softmax(0),
        "weight": last @ first,
        "bias": last @ first_bias + last_bias,
    }
    return TrainedHead(
        head,
        {f"{PREFIX}{name}": tensor.float().contiguous().numpy() for name, tensor in tensors.items()},
        {"sha256": sha256(path), "step": state.get("Step"), "upstream": args.get("upstream"), "seed": args.get("seed")},
    )


def _slots(
    task: Task, config: dict[str, Any], outputs: int, corpora: Path | None, path: Path
) -> dict[str, tuple[str, ...]]:
    """Return the classes of each slot, in the order of the head's outputs."""
    slots: dict[str, tuple[str, ...]]
    if task.name == "ks":
        slots = {"keyword": (*KEYWORDS, "_unknown_", "_silence_")}
    elif task.name == "sid":
        slots = {"speaker": tuple(f"id{number}" for number in VOXCELEB_SPEAKERS)}
    elif task.name == "er":
        slots = {"emotion": tuple(sorted(EMOTIONS, key=lambda name: EMOTIONS[name]))}
    else:
        listings = [_training_list(config)]
        if corpora is not None:
            listings.append(_training_list(read_config(task.config_file, corpora)))
        listing = next((one for one in listings if one.is_file()), None)
        if listing is None:
            raise UserError(
                f"{listings[-1]}, which has the names of the classes of {path}, does not exist: give the folder of "
                "the corpora with --corpora"
            )
        columns = zip(*read_table(listing, *SLOTS), strict=True)
        # s3prl numbers the values in the order in which they first appear.
        slots = {slot: tuple(dict.fromkeys(column)) for slot, column in zip(SLOTS, columns, strict=True)}
    if (count := sum(map(len, slots.values()))) != outputs:
        raise UserError(f"{path} has {outputs} outputs, but {task.name} has {count} classes")
    return slots


def _training_list(config: dict[str, Any]) -> Path:
    return Path(config["downstream_expert"]["datarc"]["file_path"]) / "data" / "train_data.csv"
