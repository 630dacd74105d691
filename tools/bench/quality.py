# SPDX-License-Identifier: Apache-2.0
"""Runs of one recipe over seeds and sides, in our runner and in a peer, saved as they end."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bertbench.common.errors import BadInput
from bertbench.common.files import write_atomic
from bertbench.common.measure.code import code_hash

ROOT = Path(__file__).resolve().parents[2]


class Interrupted(Exception):
    """The current run was stopped in an orderly way."""


class Comparison(ABC):
    """All seeds' runs, saved in ``folder``/quality.json; saved ones are not repeated.

    Args:
        recipe: the name of our recipe.
        folder: of the results; it is made.
        same: what all runs have in common; raises BadInput where the saved runs' differ.
        flags: of every run, besides the seed.
        threads: of every run.
        seeds: each of them on every side.
        sides: those to run.
    """

    def __init__(
        self,
        recipe: str,
        *,
        folder: Path,
        same: dict[str, Any],
        flags: Sequence[str],
        threads: int,
        seeds: Iterable[int],
        sides: Iterable[str],
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.recipe, self._folder, self._threads = recipe, folder, threads
        self._flags, self._seeds, self._sides = list(flags), list(seeds), list(sides)
        self.file = folder / "quality.json"
        self.content: dict[str, Any] = {"same": same, "runs": {}}
        if self.file.is_file():
            self.content = known = json.loads(self.file.read_text(encoding="utf-8"))
            other = [name for name in same if known["same"].get(name) != same[name]]
            if other:
                raise BadInput(
                    f"{self.file} was made with another {', '.join(other)}: give another --output, "
                    f"or the same options to continue"
                )

    @abstractmethod
    def one(
        self, side: str, flags: list[str], seed: int, say: Callable[[str], None]
    ) -> dict[str, Any]:
        """Do one run; return its scores and figures."""

    @abstractmethod
    def summary(self, runs: dict[str, Any]) -> dict[str, Any]:
        """Return the means over the seeds of ``runs`` (seed -> side -> figures)."""

    @abstractmethod
    def line(self, found: dict[str, Any]) -> str:
        """Return one run as a line."""

    def run(self, say: Callable[[str], None]) -> dict[str, Any]:
        """Run the missing seeds and sides; return everything."""
        for seed in self._seeds:
            for side in self._sides:
                if side in self.content["runs"].get(str(seed), {}):
                    say(f"seed {seed}, {side}: done before")
                    continue
                say(f"seed {seed}, {side}: begins")
                found = self.one(side, [*self._flags, "--seed", str(seed)], seed, say)
                details = {"code_hash": code_hash(), "threads": self._threads}
                self._keep(seed, side, found | details)
                say(f"seed {seed}, {side}: {self.line(found)}")
        self.content["summary"] = self.summary(self.content["runs"])
        return self.content

    def _keep(self, seed: int, side: str, found: dict[str, Any]) -> None:
        """Add a run to the file, which other commands may have changed meanwhile."""
        with (self._folder / "quality.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.file.is_file():
                known = json.loads(self.file.read_text(encoding="utf-8"))
                self.content = known | self.content | {"runs": known["runs"]}
            self.content["runs"].setdefault(str(seed), {})[side] = found
            self.content["summary"] = self.summary(self.content["runs"])
            write_atomic(self.file, json.dumps(self.content, indent=1) + "\n")

    def own_run(self, flags: list[str], scores: Iterable[str]) -> dict[str, Any]:
        """Run as a user does; the record stays in the folder."""
        command = [
            *(sys.executable, "-m", "bertbench", "run", self.recipe, *flags, "--skip_checkpoint"),
            *("--output_dir", str(self._folder.resolve() / "records"), "--json"),
        ]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            printed, _ = process.communicate()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        result = json.loads((printed.strip().splitlines() or ["{}"])[-1])
        if process.returncode == 130:
            raise Interrupted
        if process.returncode:
            why = result.get("reason") or result.get("error") or "see above"
            raise BadInput(f"our run ended with exit code {process.returncode}: {why}")
        metrics = result["metrics"]
        apart = metrics["eval_s"] + metrics["checkpoint_s"]
        found = {name: metrics[name] for name in scores} | {
            "training_s": metrics["run_time_s"] - apart,
            "training_sequences_per_second": metrics["sequences_per_second"],
            "seconds": metrics["e2e_time_s"],
        }
        if (rate := metrics.get("inference_sequences_per_second")) is not None:
            found["inference_sequences_per_second"] = rate
        return found | {"record": self.relative(Path(result["record"]))}

    def relative(self, path: Path) -> str:
        """Return ``path`` from the folder of the results."""
        return path.resolve().relative_to(self._folder.resolve()).as_posix()
