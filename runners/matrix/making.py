"""The commands that make the checkpoints of a matrix's rows: manifest, labels, pre-training, distillation, packing.

Everything of a seed is in RUNS/seed<k>, as if a person had typed the commands with `--out RUNS/seed<k>`; their locks,
logs and records are in RUNS/stages. What several rows need is made once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runners.matrix import training_cost
from runners.matrix.command import Command, Size, is_done
from runners.matrix.engines.work import Resources
from runners.matrix.estimate import PROCESS_BYTES
from runners.matrix.file import Matrix, Upstream
from runners.matrix.training_plan import as_settings, set_options
from upstreams import registry
from upstreams.config import preset_names
from upstreams.errors import UserError
from upstreams.quantization.spec import FLOAT, Bits

if TYPE_CHECKING:
    from pretrain.recipes import Recipe

UNTRAINED = "_untrained"


class Maker:
    """Collects the commands for the rows of a matrix with the key `training`. corpora, out: absolute paths.

    Raises UserError if a change to the settings of distillation is not valid.
    """

    def __init__(self, matrix: Matrix, corpora: Path, out: Path, *, on_gpu: bool) -> None:
        from pretrain.distill import read_distillation_settings

        assert matrix.training is not None
        self.plan, self.corpora, self.out, self.on_gpu = matrix.training, corpora, out, on_gpu
        self._distillation_settings = read_distillation_settings(None, changes=as_settings(self.plan.quantize))
        self.commands: dict[str, Command] = {}
        self._places: dict[str, object] = {}  # what takes a name, and so its folders
        self._wanted: dict[str, None] = {}  # names of the commands whose outputs rows use
        self._measured: set[str] = set()  # labels

    def makes(self, upstream: Upstream) -> bool:
        """True if the matrix makes the row's checkpoint."""
        return upstream.checkpoint is None and upstream.name in registry.names() and upstream.name != registry.LOCAL

    def checkpoint(self, upstream: Upstream, seed: int) -> tuple[Path, str]:
        """Return the row's checkpoint of a seed and the name of the command that makes it.

        On a CPU, a row with bits is evaluated as the packed file: it is what a device runs, and much faster. Raises
        UserError if the row's recipe is for another model.
        """
        model = max((p for p in preset_names() if f"{upstream.name}_".startswith(f"{p}_")), key=len)
        bits = registry.model_config(upstream.name).bits
        recipe_name = upstream.recipe or model
        first, last = self._pretraining(recipe_name, upstream, seed)
        recipe = self._recipe(recipe_name)
        if recipe.model != model:
            raise UserError(f"row {upstream.label!r} is a {model}, but its recipe {recipe_name} is for {recipe.model}")
        if upstream.name == f"{model}{UNTRAINED}":
            return self.commands[first].outputs[-1], self._use(first)
        if recipe.name == upstream.name:
            checkpoint = self.commands[last].outputs[0]
        else:
            before = upstream.schedule if upstream.schedule is not None else self.plan.schedules.get(bits, ())
            for step in (*before, bits):
                last = self._distillation(last, recipe, str(step), upstream, seed)
            checkpoint = self.commands[last].outputs[0]
        made = last
        if Bits.parse(bits).weight < FLOAT.weight:
            made = self._packing(upstream, checkpoint, last, seed)
        self._measurement(upstream, made)
        evaluated = last if self.on_gpu else made
        return self.commands[evaluated].outputs[0], self._use(evaluated)

    def open(self) -> list[Command]:
        """Return the commands that are to be run: those that rows use and that are not done, and what they need."""
        states: dict[str, bool] = {}
        found: list[Command] = []

        def is_open(name: str) -> bool:
            if name in states:
                return states[name]
            command = self.commands[name]
            data = {command.manifest, command.source}
            # Labels do not count: a finished pre-training does not need them any more.
            replaced = [need for need in command.needs if data & set(self.commands[need].outputs) and is_open(need)]
            states[name] = bool(replaced) or not is_done(command)
            if states[name]:
                for need in command.needs:
                    is_open(need)
                found.append(command)
            return states[name]

        for name in self._wanted:
            is_open(name)
        return found

    def _use(self, name: str) -> str:
        self._wanted[name] = None
        return name

    def _recipe(self, name: str) -> Recipe:
        from pretrain.recipes import read_recipe

        return read_recipe(name, as_settings(self.plan.pretrain))

    def _place(self, thing: str, seed: int, key: object, upstream: Upstream) -> tuple[str, Path]:
        """Return a command's name and its `--out`: of its own for a row whose settings differ from an earlier row's."""
        name = f"{thing} seed {seed}"
        if self._places.setdefault(name, key) == key:
            return name, self.out / f"seed{seed}"
        return f"{thing} of {upstream.label} seed {seed}", self.out / f"seed{seed}" / "rows" / upstream.label

    def _add(self, name: str, command: Command) -> str:
        return self.commands.setdefault(name, command).name

    def _stage(self, name: str) -> Path:
        return self.out / "stages" / name.replace(" ", "-")

    def _manifest(self, upstream: Upstream) -> tuple[Path, tuple[str, ...]]:
        """Return the manifest of a row and the names of the commands that make it."""
        if upstream.manifest is not None or not self.plan.audio:
            return self.corpora / (upstream.manifest or self.plan.manifest), ()
        audio, folder = self.corpora / self.plan.audio, self.out / "manifest"
        match = ("--match", self.plan.match) if self.plan.match else ()
        command = Command(
            name="manifest",
            needs=(),
            arguments=("manifest", str(audio), "--out", str(folder), "--valid", "0", *match),
            folder=self._stage("manifest"),
            part="manifest",
            outputs=(folder / "train.tsv",),
            owned=(folder,),
            inputs={"audio": self.plan.audio, "match": self.plan.match},
            resources=Resources(memory=int(PROCESS_BYTES)),
            size=Size(kind="manifest", model="", units=3600.0),
        )
        return folder / "train.tsv", (self._add("manifest", command),)

    def _labels(
        self, recipe: Recipe, manifest: Path, needs: tuple[str, ...], upstream: Upstream, seed: int
    ) -> tuple[Path, tuple[str, ...]]:
        """Return the folder of the label sets of a recipe, and the names of the commands that make its first one."""
        from pretrain.targets.alignment import first_mfcc_frame, label_set_name
        from pretrain.targets.features import mfcc_dim
        from upstreams.config import HOP

        first = recipe.iterations[0] if recipe.iterations else None
        if first is None or recipe.label_rate:
            return self.out / f"seed{seed}" / "labels", needs
        front_end = recipe.config.front_end
        kmeans = {
            "clusters": first.clusters,
            "subsampling": front_end.downsample_rate // HOP,
            "first": first_mfcc_frame(front_end),
            "window": first.window,
            "fraction": recipe.cluster_fraction,
            "n-init": recipe.cluster_starts,
            "seed": seed,
        }
        label_set = label_set_name(first.clusters, front_end, window=first.window)
        name, out = self._place(f"labels {label_set}", seed, (manifest, kmeans), upstream)
        folder = out / "labels" / label_set
        options = [argument for key, value in kmeans.items() for argument in (f"--{key}", str(value))]
        seconds, frame_bytes = _audio_seconds(manifest), 4 * mfcc_dim(first.window)
        command = Command(
            name=name,
            needs=needs,
            arguments=("labels", "mfcc", "--manifest", str(manifest), "--out", str(folder), *options),
            folder=self._stage(name),
            part="labels",
            outputs=(folder / "train.km",),
            owned=(folder,),
            inputs=kmeans,
            manifest=manifest,
            resources=Resources(memory=int(PROCESS_BYTES + frame_bytes * recipe.cluster_fraction * 200 * seconds)),
            size=Size(kind="labels", model="", units=seconds, disk_bytes=int(100 * seconds)),
        )
        return folder.parent, (self._add(name, command),)

    def _pretraining(self, recipe_name: str, upstream: Upstream, seed: int) -> tuple[str, str]:
        """Add a pre-training, one command for each iteration; return the names of the first and the last one."""
        recipe = self._recipe(recipe_name)
        manifest, made_first = self._manifest(upstream)
        labels, needs = self._labels(recipe, manifest, made_first, upstream, seed)
        name, out = self._place(f"pretrain {recipe.model}", seed, (recipe_name, manifest), upstream)
        checkpoints = out / "checkpoints"
        made = (checkpoints / f"{recipe.name}.safetensors", checkpoints / f"{recipe.model}{UNTRAINED}.safetensors")
        changes = set_options(as_settings(self.plan.pretrain))
        paths = ("--manifest", str(manifest), "--out", str(out), "--labels", str(labels))
        last, names = len(recipe.iterations), []
        for number in range(1, last + 1) if last else (0,):
            part = f"iteration{number}" if number else "teacher"
            stop = () if number == last else ("--stage", part)
            command = Command(
                name=f"{name} {part}",
                needs=needs,
                arguments=("pretrain", recipe_name, *paths, "--seed", str(seed), *changes, *stop),
                folder=self._stage(name),
                part=part,
                outputs=made if number == last else made[1:],
                owned=(out / "pretrain" / recipe.name, *made),
                settings=recipe,
                inputs={"seed": seed},
                manifest=manifest,
                resources=training_cost.training_resources(
                    recipe.config, recipe, self.plan.processes, on_gpu=self.on_gpu
                ),
                size=training_cost.pretraining_size(recipe, number),
            )
            names.append(self._add(command.name, command))
            needs = (names[-1], *made_first)
        return names[0], names[-1]

    def _distillation(self, teacher: str, recipe: Recipe, bits: str, upstream: Upstream, seed: int) -> str:
        """Add a distillation to a bit width from the checkpoint of another command; return its name."""
        settings = self._distillation_settings
        manifest, made_first = self._manifest(upstream)
        source = self.commands[teacher].outputs[0]
        student = f"{recipe.model}_{bits}"
        name, out = self._place(f"quantize {student}", seed, (teacher, manifest), upstream)
        checkpoint = out / "checkpoints" / f"{student}.safetensors"
        changes = set_options(as_settings(self.plan.quantize))
        paths = ("--manifest", str(manifest), "--out", str(out))
        command = Command(
            name=name,
            needs=(teacher, *made_first),
            arguments=("quantize", str(source), "--bits", bits, *paths, "--seed", str(seed), *changes),
            folder=self._stage(name),
            part="quantize",
            outputs=(checkpoint,),
            owned=(out / "quantize" / student, checkpoint),
            settings=settings,
            inputs={"bits": bits, "seed": seed},
            manifest=manifest,
            source=source,
            resources=training_cost.training_resources(
                recipe.config, settings, self.plan.processes, on_gpu=self.on_gpu
            ),
            size=training_cost.distillation_size(recipe.config, settings, settings.steps),
        )
        return self._add(name, command)

    def _packing(self, upstream: Upstream, checkpoint: Path, made_by: str, seed: int) -> str:
        """Add the packing of a row's checkpoint; return its name."""
        packed = self.out / f"seed{seed}" / "packed" / f"{upstream.label}.safetensors"
        name = f"pack {upstream.label} seed {seed}"
        command = Command(
            name=name,
            needs=(made_by,),
            arguments=("pack", str(checkpoint), "--out", str(packed)),
            folder=self._stage(name),
            part="pack",
            outputs=(packed,),
            owned=(packed,),
            source=checkpoint,
            resources=Resources(memory=int(2 * PROCESS_BYTES)),
            size=Size(kind="pack", model=upstream.name, units=1.0),
        )
        return self._use(self._add(name, command))

    def _measurement(self, upstream: Upstream, made_by: str) -> None:
        """Add the measurement of the speed of what a command made, once for all seeds of a row."""
        if upstream.label in self._measured:
            return
        self._measured.add(upstream.label)
        made = self.commands[made_by].outputs[0]
        measured = self.out / "measured" / f"{upstream.label}.json"
        name = f"measure {upstream.label}"
        command = Command(
            name=name,
            needs=(made_by,),
            arguments=("profile", str(made), "--measure", "--json", str(measured)),
            folder=self._stage(name),
            part="measure",
            outputs=(measured,),
            owned=(measured,),
            source=made,
            resources=Resources(memory=int(2 * PROCESS_BYTES), alone=True),
            size=Size(kind="measure", model=upstream.name, units=15.0),
        )
        self._use(self._add(name, command))


def _audio_seconds(manifest: Path) -> float:
    """Return the seconds of audio of a manifest; 0 if it is not there yet."""
    from pretrain.audio.manifest import Manifest

    return 3600 * Manifest.read(manifest).hours if manifest.is_file() else 0.0
