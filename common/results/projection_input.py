# SPDX-License-Identifier: Apache-2.0
"""What ``bertbench project`` starts from: records or a published system, and a network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bertbench.common.errors import BadInput
from bertbench.common.files import shown
from bertbench.common.results.comparable import FINISHED
from bertbench.common.results.projection import TARGET, Base, Fit, Network, System, Systems
from bertbench.common.results.scaling import RATE
from bertbench.common.results.statistics import median
from bertbench.common.results.store import Result

LINKS = {"10gbe": 1.25, "25gbe": 3.125, "100gbe": 12.5, "200gbe": 25.0, "400gbe": 50.0}
"""Name -> line rate in GB/s, which an all-reduce over one link a node can at most reach."""
ALL = "published"
FLAGS = "--network NAME or --bandwidth_gb_s"


@dataclass(frozen=True)
class NetworkFlags:
    """The flags on the network; None if not given."""

    name: str | None = None
    bandwidth_gb_s: float | None = None
    latency_us: float | None = None
    hidden: float | None = None


def find_system(systems: Systems, text: str) -> System:
    """Return the system ``NAME`` or ``ROUND/NAME``; raises BadInput for none or several."""
    number, _, name = text.rpartition("/")
    found = [s for s, copied in systems if s.name == name and s.round == number.lstrip("v")]
    if not number:
        found = [s for s, copied in systems if s.name == name and not copied]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f"{s.round}/{s.name} ({s.submitter})" for s in found[:5])
        raise BadInput(f"--from_published {shown(text)}: several systems have this name: {names}")
    known = ", ".join(s.name for s, _ in systems if name.lower() in s.name.lower())
    raise BadInput(
        f"--from_published {shown(text)}: no such system in the closed division of rounds 1.0 to "
        f"4.1" + (f"; give one of: {shown(known, 400)}" if known else "")
    )


def record_base(runs: Sequence[Result]) -> tuple[Base, Network | None]:
    """Return the records with the fewest devices as a base, and the network that they measured.

    The rate is the median of the runs; it excludes evaluations, which are added by their seconds a
    trained sequence. Raises BadInput for unusable records, or such of different systems or recipes.
    """
    for run in runs:
        _check(run, runs[0])
    sizes = defaultdict(list)
    for run in runs:
        sizes[run.num_devices or 0].append(run)
    smallest, largest = sizes[min(sizes)], sizes[max(sizes)]
    batch, step_s = _step(smallest)
    reason = None
    if not _converges(smallest[0]):
        reason = (
            f"no published convergence for the recipe {shown(runs[0].preset)}: MLPerf's systems "
            f"train its checkpoint to {TARGET} at sequence length 512"
        )
    evaluation_s = _evaluation_s(smallest)
    base = Base(
        label=shown(smallest[0].title),
        devices=min(sizes),
        batch=batch,
        step_s=step_s,
        evaluation_s=evaluation_s,
        evaluations="as often as in the records, shared by all devices"
        if evaluation_s
        else "not included: the records have none",
        no_time=reason,
        gradient_bytes=_gradient_bytes(largest[0]),
    )
    return base, _measured(base, max(sizes), largest)


def _check(run: Result, first: Result) -> None:
    where = shown(run.path)
    if run.kind != "run" or run.status not in FINISHED or not (run.value(RATE) or 0) > 0:
        raise BadInput(f"{where}: no finished run with {RATE} (status {run.status}); leave it out")
    if run.simulated:
        raise BadInput(f"{where}: its device is simulated, so its rate says nothing; leave it out")
    if not run.num_devices or not run.global_batch:
        raise BadInput(f"{where}: its number of devices or global batch is unknown; leave it out")
    for name in ("benchmark", "preset", "device_name", "precision"):
        if getattr(run, name) != getattr(first, name):
            raise BadInput(
                f"{where}: its {name} is {shown(getattr(run, name))}, not "
                f"{shown(getattr(first, name))} as of {shown(first.path)}; give records of one"
            )


def _step(runs: Sequence[Result]) -> tuple[int, float]:
    """Return global batch and seconds a step."""
    batches = {run.global_batch for run in runs}
    if len(batches) > 1:
        raise BadInput(
            f"records of {runs[0].num_devices} devices have the global batches "
            f"{shown(sorted(map(int, filter(None, batches))))}; give those of one"
        )
    batch = runs[0].global_batch or 0
    return batch, batch / median([run.value(RATE) or 0.0 for run in runs])


def _recipe(run: Result) -> dict[str, Any]:
    found = run.config.get("recipe")
    return found if isinstance(found, dict) else {}


def _converges(run: Result) -> bool:
    recipe = _recipe(run)
    return (
        run.benchmark == "bert_pretraining"
        and recipe.get("target_mlm_accuracy") == TARGET
        and recipe.get("max_seq_length") == 512
        and recipe.get("initial_mlm_accuracy") is not None
    )


def _evaluation_s(runs: Sequence[Result]) -> float | None:
    """Return seconds of evaluation a trained sequence; None without an evaluation."""
    found = [e / run.samples for run in runs if (e := run.value("eval_s")) and run.samples]
    return median(found) if found else None


def _gradient_bytes(run: Result) -> float | None:
    if (sent := run.value("gradient_all_reduce_bytes")) is not None:
        return sent
    elements, impl = run.extras.get("parameters"), run.config.get("impl")
    if type(elements) is not int or not isinstance(impl, dict):
        return None
    return elements * (2 if impl.get("reduce_dtype") == "bf16" else 4)


def _measured(base: Base, devices: int, runs: Sequence[Result]) -> Network | None:
    """Return the network of the largest records: their all-reduce, and the part that was hidden.

    bandwidth = 2 (N - 1) / N bytes / seconds of the all-reduce by itself. Beside records of one
    device with as many sequences, hidden = 1 - (step - step of one) / those seconds; else 0.
    """
    seconds = [s for run in runs if (s := run.value("gradient_all_reduce_s"))]
    if devices < 2 or not seconds or base.gradient_bytes is None:
        return None
    alone, hidden = median(seconds), 0.0
    batch, step_s = _step(runs)
    if base.devices == 1 and batch == devices * base.batch:
        hidden = min(1.0, 1 - (step_s - base.step_s) / alone)
    return Network(
        f"measured on {devices} devices, {hidden:.0%} hidden",
        gradient_bytes=base.gradient_bytes,
        bandwidth=2 * (devices - 1) / devices * base.gradient_bytes / alone,
        hidden=hidden,
    )


def choose_network(flags: NetworkFlags, found: Fit, base: Base, known: Network | None) -> Network:
    """Return the network of the flags; without any ``known``, published or measured.

    Raises BadInput for flags that contradict each other, and where no network is known.
    """
    if flags.name is not None and flags.bandwidth_gb_s is not None:
        raise BadInput("--network and --bandwidth_gb_s are two networks: give one")
    bandwidth = flags.bandwidth_gb_s
    if flags.name is not None:
        bandwidth = LINKS.get(flags.name.lower())
    of_link = flags.latency_us is not None or flags.hidden is not None
    if bandwidth is None and of_link:
        raise BadInput(f"--latency_us and --hidden belong to a link: give {FLAGS}, too")
    if bandwidth is None and flags.name is not None:
        return _of_submitter(flags.name, found, base)
    if bandwidth is None:
        if known is None:
            raise BadInput(f"the records have no all-reduce between devices: give {FLAGS}")
        return known
    if base.gradient_bytes is None:
        raise BadInput(
            f"the bytes of the gradients are unknown for {base.label}: leave the link out, or give "
            f"a submitter's name as --network"
        )
    return Network(
        f"{bandwidth:g} GB/s, {flags.latency_us or 0:g} us",
        gradient_bytes=base.gradient_bytes,
        bandwidth=bandwidth * 1e9,
        latency_s=(flags.latency_us or 0.0) / 1e6,
        hidden=flags.hidden or 0.0,
    )


def _of_submitter(name: str, found: Fit, base: Base) -> Network:
    names = {key[0].lower(): key[0] for key in found.exposed if len(key) == 1} | {ALL: ""}
    if name.lower() not in names:
        raise BadInput(
            f"--network {shown(name)}: give {', '.join(LINKS)}, or, as the systems of a submitter "
            f"or all had it, {', '.join(sorted(filter(None, names.values())))} or {ALL}"
        )
    if base.no_time:
        raise BadInput(
            f"--network {shown(name)}: published networks are known for MLPerf's workload only: "
            f"give --bandwidth_gb_s"
        )
    return found.network(names[name.lower()])
