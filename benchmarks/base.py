# SPDX-License-Identifier: Apache-2.0
"""The contract of a benchmark. One class is a benchmark; its package is imported only when used.

Importing this file, and a benchmark's own ``benchmark.py``, must not import torch: ``bertbench
list`` and ``describe`` are instant. Methods import the rest themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from bertbench.common.config.recipe import Impl, Preset, Settings
from bertbench.common.config.reference_flags import BATCHES, Flags, derive_batches, fields

if TYPE_CHECKING:
    from bertbench.backends.base import Backend
    from bertbench.common.distributed.world import World
    from bertbench.common.training.events import Observer
    from bertbench.common.training.task import Source, Task

Division = Literal["closed", "open"]
"""MLPerf's divisions."""


class Benchmark(ABC):
    """A benchmark: its recipes, and how a run of one is built.

    A run calls ``check``, ``prepare`` (rank 0 first), ``build`` and ``observers`` in this order,
    trains the task, and ends with ``closing``.
    """

    name: ClassVar[str]
    """Lower-case letters, digits and single underscores; the folder of its records."""
    example: ClassVar[tuple[str, ...]]
    """Words after ``bertbench run`` of a run that takes seconds on a CPU and needs no data; the
    contract tests run it."""
    verbs: ClassVar[Mapping[str, str]] = {}
    """Words of the command line that belong to the benchmark, ``score squad`` -> module:function.
    The function takes the words after them and returns the exit code."""

    @property
    @abstractmethod
    def presets(self) -> Mapping[str, Preset]:
        """The named recipes; names are unique over all benchmarks."""

    @abstractmethod
    def prepare(self, settings: Settings) -> Source:
        """Return the run's data, made or fetched if need be; raises BadInput with the fix."""

    @abstractmethod
    def build(self, settings: Settings, backend: Backend, world: World, source: Source) -> Task:
        """Return the task of this rank."""

    def translate(self, argv: Sequence[str], preset: Preset) -> tuple[list[str], list[str]]:
        """Return the preset's own flags for ``argv``, and notes for the user.

        Override it to accept the flags of reference scripts (common/config/reference_flags.py).
        Raises BadInput for an unknown flag.
        """
        flags = Flags(fields(type(preset.recipe), Impl, type(preset.run)), {}, BATCHES)
        derive = partial(derive_batches, global_batch=preset.recipe.global_batch, world=None)
        return flags.translate(argv, derive)

    def check(self, settings: Settings) -> None:
        """Refuse settings that no run can honour; ``--dry_run`` calls it as well.

        It may look at files, and neither writes nor downloads. Raises BadInput or Unsupported.
        """
        return

    def stand_in(self, settings: Settings) -> Source | None:
        """Return data that ``--dry_run`` can build a task with, and compute one made-up sequence.

        It reads no sample and writes nothing; its starting weights are those that a flag names.
        None: the dry run makes the other checks.
        """
        return None

    def division(self, settings: Settings) -> Division | None:
        """Return MLPerf's division of a run; None where MLPerf has no such benchmark."""
        return None

    def observers(
        self,
        task: Task,
        settings: Settings,
        folder: Path,
        *,
        system: str,
        began: float,
        resumed: Path | None,
    ) -> Sequence[Observer]:
        """Return what writes the benchmark's own files into the record ``folder``.

        ``began`` is the reading of ``time.monotonic`` at which initialisation began, ``resumed``
        the checkpoint that the run continues.
        """
        return ()

    def closing(self, folder: Path) -> Sequence[str]:
        """Return the lines to print at the end of a run whose record is ``folder``."""
        return ()
