# SPDX-License-Identifier: Apache-2.0
"""The adapter under test, and the reference that it is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from bertbench import backends
from bertbench.backends.base import Backend
from bertbench.backends.cpu_ref.backend import CpuRef
from bertbench.common.errors import BertbenchError
from tests.contract.helpers import Work
from tests.contract.tiny_task import (
    Curve,
    exact_precision,
    ten_steps,
    tiny_task,
    unchanged_switches,
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With one of --backend and --benchmark, only its own tests of this folder are run."""
    chosen = {n: config.getoption(f"--{n}") is not None for n in ("backend", "benchmark")}
    if chosen["backend"] == chosen["benchmark"]:
        return
    here = Path(__file__).parent
    kept = [
        item
        for item in items
        if here not in item.path.parents
        or item.path.name.startswith("test_benchmark") == chosen["benchmark"]
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.fixture(scope="session")
def backend_class(request: pytest.FixtureRequest) -> type[Backend]:
    """The class that ``--backend`` names; everything fails with the reason if it cannot run."""
    name = request.config.getoption("--backend") or "cpu_ref"
    try:
        cls = backends.load(name)
    except BertbenchError as error:
        pytest.fail(str(error), pytrace=False)
    probe = cls.probe()
    if not probe.ok:
        pytest.fail(f"backend {name!r} cannot run here, so it cannot be tested: "
                    f"{probe.reason}", pytrace=False)  # fmt: skip
    return cls


@pytest.fixture(scope="session")
def session_backend(backend_class: type[Backend]) -> Iterator[Backend]:
    with unchanged_switches():
        yield backend_class(0)


@pytest.fixture
def backend(session_backend: Backend) -> Iterator[Backend]:
    """The adapter, on its first device; the TF32 switches are as they were afterwards."""
    session_backend.seed(0)
    yield session_backend
    session_backend.precision(exact_precision(session_backend))


@pytest.fixture
def work(backend: Backend) -> Work:
    return Work(backend)


@dataclass(frozen=True)
class Reference:
    """Ten steps of cpu_ref in fp32 with plain kernels, and the weights they began from."""

    weights: dict[str, torch.Tensor]
    curve: Curve


@pytest.fixture(scope="session")
def reference() -> Reference:
    """Computed once, on the CPU."""
    exact = ("--precision", "fp32", "--kernels", "plain")
    with unchanged_switches():
        cpu = CpuRef()
        task, _ = tiny_task(cpu, *exact)
        weights = {name: value.clone() for name, value in task.model.state_dict().items()}
        return Reference(weights, ten_steps(cpu, weights, *exact))
