# SPDX-License-Identifier: Apache-2.0
"""Project a measured run to more devices: a model of a step, and MLPerf's published convergence.

    time = samples(batch) / rate;   rate = batch / step;   step = t (batch / devices + fixed) + e

t is the device's seconds a sequence, from the smaller system's own step. ``fixed`` is the work of a
step that does not shrink with the batch, in sequences: optimizer, launches, small products. e is
the part of communication and imbalance that computation does not hide. The published systems give
``fixed``, e for their own networks, and samples(batch). The figures are modelled, not measured.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bertbench.common.errors import BadInput, Unsupported
from bertbench.common.results.published import load_published
from bertbench.common.results.statistics import median
from bertbench.common.results.store import REFERENCE

LABEL = "modelled, not measured"
TABLE = REFERENCE / "mlperf-training-bert-systems.json"
TARGET = 0.72
FIXED = range(17)
"""Values of Fit.fixed that are tried, in sequences of a device."""
FEWEST, RARE_ABOVE = 2, 6144
"""Systems that make a point of the convergence curve; above this batch one is enough."""


@dataclass(frozen=True)
class System:
    """A system of MLPerf Training's BERT, closed division, with the target 0.72."""

    round: str
    submitter: str
    name: str
    device: str
    software: str
    devices: int
    batch: int
    samples: float
    """Sequences to the target; median of the runs."""
    rate: float
    """Sequences/s, evaluations included; median of the runs."""
    time_s: float
    """Time to the target."""

    @property
    def family(self) -> tuple[str, ...]:
        """Systems that differ only in their size."""
        return self.round, self.submitter, self.device, self.software

    @property
    def step_s(self) -> float:
        return self.batch / self.rate


Systems = Sequence[tuple[System, bool]]
"""Each system, and whether it is an earlier one's copy."""


@functools.cache
def published_systems(path: Path = TABLE) -> Systems:
    """Return each system with all figures, and whether it is an earlier round's copy.

    The open division is left out, which may change the recipe. Raises BadInput as
    ``load_published``.
    """
    found, seen = [], set()
    for row in load_published(path)["rows"]:
        metrics = row["metrics"]
        samples, rate, time_s = (
            metrics.get(name, {}).get("value")
            for name in ("samples_to_target", "sequences_per_second_e2e", "time_to_target_s")
        )
        is_open = row["division"] == "open" or row["system"].endswith("-open")
        if is_open or row["quality"]["target"] != TARGET or not (samples and rate):
            continue
        if row["devices"] and row["batch"]:
            system = System(
                row["round"], row["submitter"], row["system"], str(row["device"]),
                str(row["software"]), row["devices"], row["batch"], samples, rate, time_s,
            )  # fmt: skip
            figures = (system.devices, samples, rate, time_s)
            found.append((system, figures in seen))
            seen.add(figures)
    return tuple(found)


class Pair(NamedTuple):
    """The smallest system of a family, and a larger one."""

    small: System
    large: System


def pairs(systems: Systems) -> list[Pair]:
    """Return each larger system with its family's smallest; copies are left out."""
    families = defaultdict(list)
    for system, copied in systems:
        families[system.family].append((system, copied))
    found = []
    for members in families.values():
        ordered = sorted(members, key=lambda m: (m[0].devices, m[0].name))
        small = ordered[0][0]
        larger = [s for s, copied in ordered if s.devices > small.devices and not copied]
        found += [Pair(small, system) for system in larger]
    return found


@dataclass(frozen=True)
class Network:
    """The exposed seconds of a step's all-reduce: as published systems had them, or of a link.

    A ring of N devices sends 2 (N - 1) / N of the gradients' bytes from each; ``bandwidth`` is what
    nccl-tests calls the bus bandwidth.
    """

    label: str
    sequences: float | None = None
    """Beyond the smaller system, in sequences of a device; None for a link."""
    gradient_bytes: float = 0.0
    bandwidth: float = math.inf
    """Bytes/s."""
    latency_s: float = 0.0
    """Per doubling of the devices."""
    hidden: float = 0.0
    """The share that computation hides."""

    def exposed_s(self, devices: int, sequence_s: float) -> float:
        """Return sequences x ``sequence_s``, or (1 - hidden) (ring / bandwidth + log2 latency)."""
        if self.sequences is not None:
            return self.sequences * sequence_s
        ring = 2 * (devices - 1) / devices * self.gradient_bytes / self.bandwidth
        return (1 - self.hidden) * (ring + self.latency_s * math.log2(devices))


@dataclass(frozen=True)
class Fit:
    """The parameters, from published systems."""

    fixed: float
    """Work of a step that does not shrink with the batch, in sequences of a device."""
    exposed: dict[tuple[str, ...], float]
    """Submitter and device, submitter, or nothing -> exposed sequences; medians."""
    curve: tuple[tuple[int, float], ...]
    """Global batch and samples to the target, ascending."""
    batches: tuple[tuple[int, int], ...] = ()
    """Devices and global batch of each system."""

    def network(self, submitter: str, device: str = "") -> Network:
        """Return the network of a submitter's systems of a device, else of its, else of all."""
        for key, what in (
            ((submitter, device), f"{submitter}'s published systems of {device}"),
            ((submitter,), f"{submitter}'s published systems"),
        ):
            if key in self.exposed:
                return Network(f"median of {what}", self.exposed[key])
        return Network("median of all published systems", self.exposed[()])

    def samples(self, batch: int) -> float | None:
        """Return samples to the target, log-log between points; None outside them."""
        batches, samples = np.log(np.array(self.curve)).T
        at = math.log(batch)
        if not batches[0] <= at <= batches[-1]:
            return None
        return float(np.exp(np.interp(at, batches, samples)))


def fit(systems: Systems) -> Fit:
    """Return the parameters for which the rates of all larger systems are best explained.

    ``fixed`` has the least sum of |log(projected / published step)|, given the classes' medians.
    """
    known = pairs(systems)
    own = [system for system, copied in systems if not copied]
    at: dict[int, list[float]] = defaultdict(list)
    for system in own:
        at[system.batch].append(system.samples)
    curve = tuple(
        (batch, median(values))
        for batch, values in sorted(at.items())
        if len(values) >= FEWEST or batch > RARE_ABOVE
    )

    def loss(fixed: float) -> float:
        found = Fit(fixed, _exposed(known, fixed), curve)
        steps = ((_step(found, pair), pair.large.step_s) for pair in known)
        return sum(abs(math.log(max(step, 1e-9) / real)) for step, real in steps)

    fixed = min(FIXED, key=loss)
    return Fit(fixed, _exposed(known, fixed), curve, tuple((s.devices, s.batch) for s in own))


def _sequence_s(small: System, fixed: float) -> float:
    return small.step_s / (small.batch / small.devices + fixed)


def _exposed(known: Iterable[Pair], fixed: float) -> dict[tuple[str, ...], float]:
    """Return the median of step / t - (batch / devices + fixed) of each class."""
    found = defaultdict(list)
    for small, large in known:
        beyond = large.step_s / _sequence_s(small, fixed) - large.batch / large.devices - fixed
        for key in ((large.submitter, large.device), (large.submitter,), ()):
            found[key].append(beyond)
    return {key: median(values) for key, values in found.items()}


def _step(found: Fit, pair: Pair) -> float:
    small, large = pair
    t = _sequence_s(small, found.fixed)
    network = found.network(large.submitter, large.device)
    return t * (large.batch / large.devices + found.fixed) + network.exposed_s(large.devices, t)


@dataclass(frozen=True)
class Base:
    """The measured system from which is projected."""

    label: str
    devices: int
    batch: int
    """Sequences of a step on all devices."""
    step_s: float
    evaluation_s: float | None = None
    """Seconds of evaluation a trained sequence; None if unknown, or in ``step_s``."""
    evaluations: str = "in the other parts, as the published rate includes them"
    no_time: str | None = None
    """Reason why the samples to its target are unknown; None for MLPerf's workload."""
    gradient_bytes: float | None = None
    """Gradients of a step as one device sends them; None if unknown."""


def base_of(system: System) -> Base:
    """Return a published system as a base; evaluations are in its rate."""
    label = f"MLPerf {system.round}, {system.submitter}, {system.name}, {system.device}"
    return Base(label, system.devices, system.batch, system.step_s)


@dataclass(frozen=True)
class Projected:
    """One number of devices: modelled, not measured. The parts of ``step_s`` add up."""

    devices: int
    global_batch: int
    samples: float | None
    steps: int | None
    step_s: float
    compute_s: float
    fixed_s: float
    exposed_s: float
    evaluation_s: float | None
    """Share of a step; None if unknown, or in the other parts."""
    sequences_per_second: float
    time_s: float | None
    low_s: float | None = None
    high_s: float | None = None
    left_out_systems: int = 0
    """Left-out systems of this ratio of sizes, from which the interval is."""


def project(
    base: Base, devices: int, found: Fit, network: Network, batch: int | None = None
) -> Projected:
    """Return the projection to ``devices``, at ``batch`` or a published batch of that size.

    Raises BadInput for devices that are not more than the base's, for a batch outside the
    published ones, or one that the devices cannot share.
    """
    if devices <= base.devices:
        raise BadInput(
            f"{devices} devices: {base.label} has {base.devices} itself; give larger --devices"
        )
    if batch is not None:
        return _at(base, devices, found, network, batch)
    kept = base.batch * devices // base.devices
    if base.no_time is None:
        kept = _published_batch(devices, kept, found)
    return _at(base, devices, found, network, kept)


def _published_batch(devices: int, most: int, found: Fit) -> int:
    """Return the largest batch up to ``most`` of the systems nearest in size, shared evenly.

    Nearest is the least |log(devices / devices)|. Raises Unsupported if none has enough sequences.
    """
    possible = [(n, b) for n, b in found.batches if devices <= b <= most]
    if not possible:
        least, largest = found.curve[0][0], found.curve[-1][0]
        raise Unsupported(
            f"{devices} devices: no published batch ({least:,} to {largest:,}) has a sequence for "
            f"each and at most {most:,}, the measured batch of a device on all: give other "
            f"--devices, or --global_batch"
        )
    nearest = min(abs(math.log(n / devices)) for n, _ in possible)
    batch = max(b for n, b in possible if abs(math.log(n / devices)) <= nearest)
    return batch - batch % devices


def _at(base: Base, devices: int, found: Fit, network: Network, batch: int) -> Projected:
    if batch < devices or batch % devices:
        raise BadInput(
            f"a global batch of {batch} cannot be shared evenly by {devices} devices: give a "
            f"multiple of {devices} as --global_batch"
        )
    samples = None if base.no_time else found.samples(batch)
    if samples is None and not base.no_time:
        raise BadInput(
            f"a global batch of {batch:,}: published systems reached the target with "
            f"{found.curve[0][0]:,} to {found.curve[-1][0]:,}; give one of these as --global_batch"
        )
    # ``fixed`` is known for MLPerf's workload only.
    fixed = 0.0 if base.no_time else found.fixed
    own = 0.0 if network.sequences is not None else network.exposed_s(base.devices, 0.0)
    t = (base.step_s - own) / (base.batch / base.devices + fixed)
    if t <= 0:
        raise BadInput(
            f"{network.label}: its all-reduce would take {own:.3g} s of the measured step of "
            f"{base.step_s:.3g} s; check --bandwidth_gb_s and --latency_us"
        )
    parts = (t * batch / devices, t * fixed, network.exposed_s(devices, t))
    evaluation = base.evaluation_s
    if evaluation is not None:
        evaluation *= batch * base.devices / devices
    step = sum(parts) + (evaluation or 0.0)
    steps = None if samples is None else math.ceil(samples / batch)
    return Projected(
        devices, batch, samples, steps, step, *parts, evaluation, batch / step,
        None if samples is None else samples * step / batch,
    )  # fmt: skip
