# SPDX-License-Identifier: Apache-2.0
"""The samples of a pretraining run: MLPerf's files, prepared ones, or synthetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from bertbench.benchmarks.bert_pretraining.recipes import PretrainingOptions, PretrainingRecipe
from bertbench.common.config.recipe import Settings
from bertbench.common.data import reader
from bertbench.common.data.batch import PretrainingBatch
from bertbench.common.data.hdf5 import Limits
from bertbench.common.data.identity import DataSet, remember
from bertbench.common.data.plausible import Inspection
from bertbench.common.data.reader import count, read
from bertbench.common.data.samples import Samples
from bertbench.common.data.shards import DataRoot, find_shards, fitting, locate, refuse_copies
from bertbench.common.data.stream import TrainStream, eval_batches, first_samples
from bertbench.common.data.synthetic import SyntheticStream, random_samples, synthetic_eval_batches
from bertbench.common.distributed.world import World
from bertbench.common.errors import BadInput
from bertbench.common.model.weight_files import why_no_file
from bertbench.common.prepare.quickstart import QuickstartOptions, quickstart
from bertbench.common.training.task import Source


@dataclass(frozen=True, kw_only=True)
class PretrainingSource(Source):
    """The samples of one run; without files they are synthetic."""

    recipe: PretrainingRecipe
    train_files: tuple[Path, ...] = ()
    eval_files: tuple[Path, ...] = ()
    opened: DataSet = field(default_factory=DataSet)
    """All files, as they were at the start."""
    inspections: list[Inspection] = field(default_factory=list)
    """Of the training data."""

    @property
    def synthetic(self) -> bool:
        """Random tokens: good for speed, meaningless for accuracy."""
        return not self.train_files

    @property
    def has_eval(self) -> bool:
        """Whether there is anything to evaluate on."""
        return bool(self.eval_files)

    @property
    def limits(self) -> Limits:
        """The model's limits, which samples are checked against."""
        return Limits(
            max_seq_length=self.recipe.max_seq_length,
            max_predictions=self.recipe.max_predictions_per_seq,
            vocab_size=self.recipe.model.vocab_size,
        )

    def hash(self) -> str | None:
        """Return the identity of training and evaluation data as they were opened.

        None for synthetic data, and for files that changed since (``closing_notes``).
        """
        return self.opened.identity().hash if self.opened.signatures else None

    def closing_notes(self) -> list[str]:
        """Return what the run should say of its data, known at its end."""
        found = [] if self.opened.found.note is None else [self.opened.found.note]
        return [note for one in self.inspections for note in one.notes()] + found

    def train(
        self,
        *,
        seed: int,
        world: World,
        micro_batch: int,
        position: dict[str, int] | None,
        pin: bool = False,
    ) -> Iterator[Any]:
        """Return endless optimizer steps for this rank, in page-locked memory with ``pin``.

        Raises BadInput where the first evaluation, hours later, would find too few samples, and
        for data on which a result would mean nothing (plausible.py).
        """
        inspect = Inspection(self.limits, None)
        if not self.synthetic:
            refuse_copies([*self.train_files, *self.eval_files])
        if self.has_eval and self.recipe.eval_iter_samples:
            inspect = self._inspect_held_out()
        shape: dict[str, Any] = {
            "seed": seed,
            "global_batch": self.recipe.global_batch,
            "micro_batch": micro_batch,
            "world": world.size,
            "rank": world.rank,
            "limits": self.limits,
            "position": position,
            "pin": pin,
        }
        if self.synthetic:
            return iter(SyntheticStream(**shape))
        self.inspections.append(inspect)

        def fetch(path: Path, first: int | None) -> Samples:
            samples = self._read(path, first)
            inspect(path, samples)
            return samples

        return iter(TrainStream(self.train_files, fetch=fetch, **shape))

    def evaluation(self, batch_size: int, world: World) -> Sequence[PretrainingBatch]:
        """Return this rank's part of the held-out samples.

        Raises BadInput as ``train``, also where nothing is trained before.
        """
        shape: dict[str, Any] = {
            "num_examples": self.recipe.num_eval_examples,
            "batch_size": batch_size,
            "world": world.size,
            "rank": world.rank,
            "limits": self.limits,
        }
        if self.synthetic:
            return synthetic_eval_batches(**shape)
        if not self.inspections:
            self._inspect_held_out()
        return eval_batches(self.eval_files, fetch=self._read, **shape)

    def _read(self, path: Path, first: int | None) -> Samples:
        """Read a file whose bytes are those of its manifest, where it has one."""
        sha256 = self.opened.unverified(path)
        samples = read(path, self.limits, first, sha256=sha256)
        if sha256 is not None:
            remember(path, sha256, self.opened.signatures[path])
        return samples

    def _inspect_held_out(self) -> Inspection:
        """Look at all samples to evaluate on; raises BadInput for too few, or impossible ones."""
        wanted, where = self.recipe.num_eval_examples, f"{self.eval_files[0].parent}"
        there = sum(map(count, self.eval_files))
        if there < wanted:
            raise BadInput(
                f"{where}: evaluation needs {wanted} samples and there are only {there}; pass "
                f"--num_eval_examples {there}"
            )
        if there > wanted:
            where += f", first {wanted:,} of {there:,} samples"
        return Inspection(self.limits, first_samples(self.eval_files, wanted, self._read), where)


@dataclass(frozen=True, kw_only=True)
class _Files:
    """The files of a data folder and of the flags; None where there are none."""

    root: Path | None = None
    train: tuple[Path, ...] = ()
    held_out: tuple[Path, ...] = ()
    config: Path | None = None
    checkpoint: Path | None = None


def check_data(settings: Settings) -> None:
    """Refuse flags that do not name a complete data set; reads no sample and writes nothing.

    Raises BadInput with the flag that is missing or too much.
    """
    recipe, run = _parts(settings)
    if run.init_checkpoint is not None and (why := why_no_file(run.init_checkpoint)):
        raise BadInput(f"--init_checkpoint {run.init_checkpoint}: {why}")
    ignored = _ignored(run)
    if ignored:
        given = "--synthetic" if run.synthetic else "--data or --input_dir"
        raise BadInput(f"{', '.join(ignored)} would be ignored beside {given}: leave one out")
    if run.synthetic:
        random_samples(1, PretrainingSource(recipe=recipe, description="").limits, seed=0)
        if run.bert_config_path is not None:
            _check_config(recipe, run.bert_config_path)
        if run.verify_checkpoint:
            raise BadInput("--verify_checkpoint needs held-out samples: give --data or --eval_dir")
        return
    if _quick_start(settings):
        if run.text is not None and not run.text.exists():
            raise BadInput(f"--text {run.text} does not exist: name a text, an archive or a folder")
        return
    if run.data is None and run.input_dir is None:
        raise BadInput(
            f"{settings.preset.name} needs data: {settings.preset.data}. Give --data PATH (or "
            f"--input_dir and --eval_dir), or --synthetic for a pure speed run."
        )
    _check_files(settings, _locate(settings, run.data))


def find_source(settings: Settings) -> PretrainingSource:
    """Return the run's samples; makes or fetches the quick-start corpus if it is meant.

    Raises BadInput as ``check_data``.
    """
    recipe, run = _parts(settings)
    check_data(settings)
    if run.synthetic:
        return PretrainingSource(
            recipe=recipe,
            description="synthetic tokens, Wikipedia-like lengths",
            init_checkpoint=run.init_checkpoint,
            notes=("synthetic data: without evaluations and target",),
        )
    root, described = run.data, f"files under {run.data}"
    if _quick_start(settings):
        wanted = QuickstartOptions(
            vocab_size=recipe.model.vocab_size,
            max_seq_length=recipe.max_seq_length,
            max_predictions_per_seq=recipe.max_predictions_per_seq,
            dupe_factor=recipe.quickstart_dupe_factor,
            text=run.text,
        )
        root = quickstart(wanted)
        described = "the quick-start corpus" if run.text is None else f"text from {run.text}"
    elif run.input_dir is not None:
        described = f"files in {run.input_dir}"
    files = _locate(settings, root)
    _check_files(settings, files)
    opened = DataSet.open([*files.train, *files.held_out])
    number, notes = fitting(settings, files.held_out)
    reader.start()
    return PretrainingSource(
        recipe=replace(recipe, num_eval_examples=number),
        description=described,
        notes=notes,
        train_files=files.train,
        eval_files=files.held_out,
        opened=opened,
        init_checkpoint=files.checkpoint,
        vocab_file=None if root is None or run.input_dir else root / "vocab.txt",
    )


def stand_in(settings: Settings) -> PretrainingSource:
    """Return synthetic samples with the weights of --init_checkpoint; reads no data set."""
    recipe, run = _parts(settings)
    return PretrainingSource(recipe=recipe, description="", init_checkpoint=run.init_checkpoint)


def _parts(settings: Settings) -> tuple[PretrainingRecipe, PretrainingOptions]:
    return cast("PretrainingRecipe", settings.recipe), cast("PretrainingOptions", settings.run)


def _quick_start(settings: Settings) -> bool:
    """Return whether the quick-start corpus is meant: a mini recipe without data flags."""
    _, run = _parts(settings)
    own = settings.preset.name in ("mini", "sparse_bert_mini")
    return own and run.data is None and run.input_dir is None


def _locate(settings: Settings, root: Path | None) -> _Files:
    """Return the files under ``root``, with those that flags name in their place."""
    recipe, run = _parts(settings)
    found = DataRoot([], [], None, None) if root is None else locate(root)
    train, held_out = found.train_files, found.eval_files
    if run.input_dir is not None:
        train = find_shards(run.input_dir, "train")
    if run.eval_dir is not None:
        held_out = find_shards(run.eval_dir, "eval")
    return _Files(
        root=root,
        train=tuple(train),
        held_out=tuple(held_out),
        config=run.bert_config_path or found.bert_config,
        checkpoint=run.init_checkpoint
        or (found.checkpoint if recipe.initial_mlm_accuracy is not None else None),
    )


def _check_files(settings: Settings, files: _Files) -> None:
    recipe, run = _parts(settings)
    if recipe.target_mlm_accuracy is not None and not files.held_out:
        raise BadInput(
            f"the target accuracy {recipe.target_mlm_accuracy} needs held-out samples and there "
            f"are none in {run.eval_dir or files.root}: give --eval_dir, or "
            f"--target_mlm_accuracy None"
        )
    refuse_copies([*files.train, *files.held_out], by_name=True)
    if files.config is not None:
        _check_config(recipe, files.config)
    if recipe.initial_mlm_accuracy is not None and files.checkpoint is None:
        raise BadInput(
            f"{settings.preset.name} starts from MLPerf's checkpoint, but "
            f"model.ckpt-28252.pt is missing in {files.root or run.input_dir}: give "
            f"--init_checkpoint PATH; to start from random weights, --initial_mlm_accuracy None"
        )


def _check_config(recipe: PretrainingRecipe, config: Path) -> None:
    recipe.model.check_agrees(config / "bert_config.json" if config.is_dir() else config)


def _ignored(run: PretrainingOptions) -> list[str]:
    """Return the data flags without an effect; launchers add --data by themselves."""
    files = run.data is not None or run.input_dir is not None
    names = ["input_dir", "eval_dir", "text"] if run.synthetic else ["text"] if files else []
    return [f"--{name}" for name in names if getattr(run, name) is not None]
