"""Every flag is applied, refused, or a line says that it has no effect."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from runners.corpora.prepare import prepare
from runners.downstream import run as downstream
from runners.tasks import task_config
from tests.runners.downstream.experiments import logged, overrides, train
from tests.upstreams.packed.models import quantized
from upstreams.config import preset
from upstreams.errors import UserError
from upstreams.formats import checkpoint
from upstreams.packed import convert

EVALUATE = ["-m", "evaluate", "--device", "cpu"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a checkpoint of transformer_mini in float, in w1a1, and packed."""
    folder = tmp_path_factory.mktemp("checkpoints")
    names = ("float", "w1a1", "packed")
    paths = {name: folder / f"{name}.safetensors" for name in names}
    checkpoint.save(paths["float"], checkpoint.build(preset("transformer_mini")), None, {})
    checkpoint.save(paths["w1a1"], quantized("transformer_mini", "w1a1"), None, {})
    convert.pack_checkpoint(paths["w1a1"], paths["packed"])
    return paths


@pytest.fixture(scope="module")
def trained(tiny_corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an experiment of two steps; tests must not change it."""
    expdir = tmp_path_factory.mktemp("trained")
    train("ic", tiny_corpora, expdir, changes=overrides("ic", steps=2))
    return expdir


def notes(capsys: pytest.CaptureFixture[str]) -> str:
    return "".join(line for line in capsys.readouterr().out.splitlines(True) if line.startswith("[superbit]"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-u", "fbank", "-k", "float"], "fbank does not read -k, so .*float.* would have no effect: remove -k$"),
        (["-u", "hubert", "-k", "float"], "hubert does not read -k.*: remove -k, or use hubert_custom or hubert_local"),
        (["-u", "fbank", "-g", "float"], "fbank does not read -g"),
        (["-u", "fbank", "-r"], "fbank downloads nothing: remove -r"),
        (["-u", "hubert_local"], "hubert_local needs a checkpoint: add -k"),
        (["-u", "wav2vec2_custom"], "wav2vec2_custom needs a checkpoint: add -k"),
        (["-u", "hubert_local", "-k", "gone.pt"], r"no checkpoint .*gone\.pt \(-k\)"),
        (["-u", "baseline_local"], "baseline_local needs a configuration: add -g FILE"),
        (["-u", "baseline_local", "-g", "gone.yaml"], r"no configuration .*gone\.yaml \(-g\)"),
        (["-u", "Path"], "no upstream 'Path'"),
        (["-u", "superbit_local", "-k", "float", "-g", "w1a1"], "superbit_local does not read -g"),
        (["-u", "superbit_local", "-k", "float", "-r"], "superbit_local downloads nothing"),
        (["-u", "conformer_mini", "-k", "float"], "holds a transformer_mini with .*: use the upstream superbit_local"),
        (["-u", "transformer_mini", "-k", "w1a1"], "with bits w1a1, but transformer_mini has bits w32a32"),
        (["-u", "superbit_local", "-k", "packed", "-f"], "is packed and cannot be fine-tuned"),
        (["-u", "fbank", "-f"], "fbank has no parameters to fine-tune: remove -f"),
        (["-u", "superbit_local", "-k", "float", "-l", "99"], r"no layer 99 \(-l\): .* have the layers 0 to 4"),
        (["-u", "fbank", "-l", "1"], r"no layer 1 \(-l\): .* have only the layer 0"),
        (
            ["-u", "fbank", "-s", "last_hidden_state", "-l", "0"],
            r"last_hidden_state \(-s\) .* are one layer: remove -l 0",
        ),
        (["-u", "fbank", "--upstream_feature_normalize"], "only one layer is used: remove it"),
        (["-u", "fbank", "-v", "fold2"], "-v chooses the test fold of er, and ic has no variants"),
        (["-u", "fbank", "--feature-store-gb", "3"], "--feature-store-gb has no effect without --feature-store"),
        (["-u", "fbank", "--feature-store-dtype", "fp16"], "--feature-store-dtype has no effect without"),
        (["-u", "fbank", "--upstream_revision", "main"], "remove --upstream_revision"),
        (["-u", "fbank", "-n", "name"], "-p and -n exclude each other"),
        (["-u", "fbank", "--threads", "0"], "--threads must be 1 or more, not 0"),
        (["-u", "fbank", "--seed", "-1"], "--seed must be from 0 to 4294967295, not -1"),
        (["-u", "fbank", "--device", "gpu"], "no device 'gpu'"),
        (["-u", "fbank", "--local_rank", "0"], "--local_rank is set by torchrun"),
        (["-u", "fbank", "-o", "args.seed=one"], r"args\.seed \(-o\) must be a whole number, not 'one'"),
        (["-u", "fbank", "-o", "args.upstream_trainable=1"], "must be true or false, not 1"),
        (["-u", "fbank", "-o", "args.mode=evaluate"], r"args\.mode cannot be changed by -o: give the flag itself"),
    ],
)
def test_a_flag_without_effect_is_refused(
    flags: list[str], message: str, files: dict[str, Path], tiny_corpora: Path, tmp_path: Path
) -> None:
    flags = [str(files.get(flag, flag)) for flag in flags]
    given = ["-m", "train", "-d", "ic", "-p", str(tmp_path / "exp"), "--corpora", str(tiny_corpora)]
    device = [] if "--device" in flags else ["--device", "cpu"]
    few = [] if "-o" in flags else ["-o", overrides("ic", steps=2)]
    with pytest.raises(UserError, match=message) as raised:
        downstream.main([*given, *device, *few, *flags])
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob("exp/*.ckpt"))


def test_a_layer_and_last_hidden_state_exclude_each_other_for_our_models(
    files: dict[str, Path], tiny_corpora: Path, tmp_path: Path
) -> None:
    upstream = ["-u", "superbit_local", "-k", str(files["float"])]
    with pytest.raises(UserError, match=r"last_hidden_state \(-s\) .* are one layer"):
        train("ic", tiny_corpora, tmp_path, *upstream, "-l", "2", "-s", "last_hidden_state")


def test_a_fine_tuned_upstream_learns_and_is_evaluated_with_what_it_learned(
    files: dict[str, Path], tiny_corpora: Path, tmp_path: Path
) -> None:
    upstream = ["-u", "superbit_local", "-k", str(files["float"]), "-f"]
    train("ic", tiny_corpora, tmp_path, *upstream, changes=overrides("ic", steps=2))
    learned = torch.load(tmp_path / "states-2.ckpt")["Upstream"]
    before = checkpoint.load(files["float"]).state_dict()
    assert any(not torch.equal(tensor, learned[f"model.{name}"]) for name, tensor in before.items())
    assert downstream.main([*EVALUATE, "-e", str(tmp_path / "states-2.ckpt")])


def test_a_second_experiment_in_the_same_folder_is_refused(trained: Path, tiny_corpora: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"holds an experiment already \(.*\): add -a to resume it, or choose another -p"
    ):
        train("ic", tiny_corpora, trained)
    (tmp_path / "dev-best.ckpt").touch()
    for more in ((), ("-a",)):
        with pytest.raises(UserError, match=r"already \(dev-best\.ckpt\): choose another -p"):
            train("ic", tiny_corpora, tmp_path, *more)


def test_the_variant_of_er_is_its_test_fold(tiny_corpora: Path, tmp_path: Path) -> None:
    train("er", tiny_corpora, tmp_path / "exp", "-v", "fold2", changes=overrides("er", steps=2))
    config = yaml.safe_load((tmp_path / "exp" / "config.yaml").read_text())
    assert config["downstream_expert"]["datarc"]["test_fold"] == "fold2"
    assert list((tmp_path / "exp").glob("*_fold2_predict.txt"))
    with pytest.raises(UserError, match=r"no fold 'fold6' \(-v\)"):
        train("er", tiny_corpora, tmp_path / "other", "-v", "fold6")
    fold = overrides("er", **{"config.downstream_expert.datarc.test_fold": "fold1"})
    with pytest.raises(UserError, match=r"-v is fold2, but .*test_fold is fold1 \(-o\)"):
        train("er", tiny_corpora, tmp_path / "other", "-v", "fold2", changes=fold)


def test_a_changed_learning_rate_is_used_when_a_training_resumes(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "exp")
    resume = ["-m", "train", "--device", "cpu", "-e", str(tmp_path / "exp")]
    downstream.main([*resume, "-o", "config.runner.total_steps=4,,config.optimizer.lr=1e-30"])
    first, second = (torch.load(path) for path in (trained / "states-2.ckpt", tmp_path / "exp" / "states-4.ckpt"))
    assert second["Config"]["optimizer"]["lr"] == second["Optimizer"]["param_groups"][0]["lr"] == 1e-30
    assert second["Optimizer"]["state"][0]["step"] == 4, "the moments are those of the first training"
    assert all(torch.equal(first["Downstream"][key], second["Downstream"][key]) for key in ("projector.weight",))
    with pytest.raises(UserError, match=r"optimizer\.torch_optim_name was 'Adam' and cannot be 'SGD' when .* resumes"):
        downstream.main([*resume, "-o", "config.optimizer.torch_optim_name=SGD"])


def test_so_is_one_with_a_schedule(tiny_corpora: Path, tmp_path: Path) -> None:
    schedule = {"scheduler.name": "linear_schedule_with_warmup", "scheduler.num_warmup_steps": 1}
    changes = overrides("ic", steps=2, **{f"config.{key}": value for key, value in schedule.items()})
    train("ic", tiny_corpora, tmp_path, changes=changes)
    resume = ["-m", "train", "--device", "cpu", "-e", str(tmp_path)]
    downstream.main([*resume, "-o", "config.runner.total_steps=8,,config.runner.save_step=1,,config.optimizer.lr=0.7"])
    state = torch.load(tmp_path / "states-8.ckpt")
    assert state["Scheduler"]["base_lrs"] == [0.7] and state["Scheduler"]["last_epoch"] == 8


def test_initial_weights_are_all_that_i_takes(trained: Path, tiny_corpora: Path, tmp_path: Path) -> None:
    still = overrides("ic", steps=2, **{"config.optimizer.lr": 1e-30})
    train("ic", tiny_corpora, tmp_path, "-i", str(trained / "states-2.ckpt"), changes=still)
    before, after = (torch.load(folder / "states-2.ckpt") for folder in (trained, tmp_path))
    assert torch.equal(before["Downstream"]["projector.weight"], after["Downstream"]["projector.weight"])
    assert after["Optimizer"]["state"][0]["step"] == 2, "neither the step nor the optimizer's state is taken over"


def test_a_head_for_another_upstream_or_task_is_refused_with_one_sentence(
    trained: Path, files: dict[str, Path], tiny_corpora: Path, tmp_path: Path
) -> None:
    given = ["-d", "ic", "-p", str(tmp_path), "--corpora", str(tiny_corpora), "-i", str(trained / "states-2.ckpt")]
    with pytest.raises(UserError, match="does not fit: it was saved with another configuration or on another"):
        downstream.main([*EVALUATE, *given, "-u", "superbit_local", "-k", str(files["float"])])
    with pytest.raises(UserError, match=r"holds a head for ic, not for ks \(-d\)"):
        downstream.main([*EVALUATE, "-e", str(trained), "-d", "ks"])
    with pytest.raises(UserError, match="-m evaluate needs a trained head of ic: add -e CKPT"):
        downstream.main([*EVALUATE, *given[:-2], "-u", "fbank"])


def test_what_has_no_effect_on_a_checkpoint_is_said(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "my.yaml"
    saved = torch.load(trained / "states-2.ckpt")["Config"]
    config.write_text(yaml.safe_dump(saved | {"runner": saved["runner"] | {"log_step": 7}}))
    evaluate = [*EVALUATE, "-e", str(trained)]
    downstream.main(
        [*evaluate, "-c", str(config), "--seed", "1338", "-o", "config.optimizer.lr=3.0", "--backend", "gloo"]
    )
    said = notes(capsys)
    assert "runner.log_step stays 2 as in" in said and f"not 7 as in {config}" in said
    assert "seed stays 1337" in said
    assert "config.optimizer.lr (-o) has no effect on -m evaluate" in said
    assert "--backend has no effect: this is a single process" in said


def test_even_a_default_value_is_said_to_have_no_effect(
    tiny_corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("ic", tiny_corpora, tmp_path, "--seed", "5", changes=overrides("ic", steps=2))
    capsys.readouterr()
    downstream.main([*EVALUATE, "-e", str(tmp_path), "--seed", "1337"])
    assert "seed stays 5" in notes(capsys)


def test_what_has_no_effect_on_a_new_experiment_is_said(
    tiny_corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "my.yaml"
    config = task_config("ic", tiny_corpora)
    config["runner"] |= {"total_steps": 2, "save_step": 2, "fp16": True}
    config["downstream_expert"]["datarc"] |= {"num_workers": 0, "train_batch_size": 2}
    file.write_text(yaml.safe_dump(config))
    arguments = ["-m", "train", "-u", "fbank", "-d", "ic", "-c", str(file), "-p", str(tmp_path / "exp")]
    more = ["--device", "cpu", "--corpora", str(tmp_path), "-t", "dev", "--disable_cudnn", "--verbose"]
    downstream.main([*arguments, *more])
    said = notes(capsys)
    assert "-t has no effect on -m train" in said
    assert f"--corpora has no effect: {file} does not use ${{root}}" in said
    assert "runner.fp16 has no effect on a CPU" in said
    assert "--disable_cudnn has no effect on a CPU" in said
    assert "the head has" in said and "parameters" in said
    assert logged(tmp_path / "exp") is not None


def test_the_cache_folder_is_where_s3prl_downloads_to(
    tiny_corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import upstreams

    upstreams.register()
    from s3prl import hub
    from s3prl.util import download

    folders = []

    def upstream(**arguments: object) -> torch.nn.Module:
        folders.append(download.get_dir())
        return hub.fbank()

    monkeypatch.setattr(hub, "needs_a_download", upstream, raising=False)
    before = download._download_dir
    changes = overrides("ic", steps=2)
    train(
        "ic",
        tiny_corpora,
        tmp_path / "exp",
        "-u",
        "needs_a_download",
        "--cache_dir",
        str(tmp_path / "cache"),
        changes=changes,
    )
    assert folders == [tmp_path / "cache"]
    assert download._download_dir == before


def test_asr_is_evaluated_on_test_other_once_its_list_is_prepared(tiny_corpora: Path, tmp_path: Path) -> None:
    root = tmp_path / "corpora"
    shutil.copytree(tiny_corpora / "LibriSpeech", root / "LibriSpeech")
    shutil.copytree(tiny_corpora / "len_for_bucket", root / "len_for_bucket")
    train("asr", root, tmp_path / "exp", changes=overrides("asr", steps=2))
    evaluate = [*EVALUATE, "-e", str(tmp_path / "exp" / "states-2.ckpt"), "-t", "test-other"]
    with pytest.raises(UserError, match=r"the folder .*test-other is missing"):
        downstream.main(evaluate)
    shutil.copytree(root / "LibriSpeech" / "test-clean", root / "LibriSpeech" / "test-other")
    with pytest.raises(UserError, match=r"test-other\.csv is missing; `superbit corpus prepare asr` makes it"):
        downstream.main(evaluate)
    assert prepare("asr", task_config("asr", root)) == [root / "len_for_bucket" / "test-other.csv"]
    metrics = downstream.main(evaluate)
    assert metrics == downstream.main([*evaluate[:-1], "test-clean"])


@pytest.mark.parametrize(
    ("task", "message"), [("ks", "no split 'test-other': did you mean 'test'"), ("asr", "test-other")]
)
def test_a_split_that_is_not_there_is_named(task: str, message: str, tiny_corpora: Path, tmp_path: Path) -> None:
    train(task, tiny_corpora, tmp_path, changes=overrides(task, steps=2))
    with pytest.raises(UserError, match=message):
        downstream.main([*EVALUATE, "-e", str(tmp_path / "states-2.ckpt"), "-t", "test-other"])
