# SPDX-License-Identifier: Apache-2.0
"""The definition of done of an adapter: ``pytest tests/contract --backend NAME``.

Each test states its requirement and, when it fails, how to change the adapter. A skip states its
reason. How to write an adapter: docs/adding-a-backend.md. This file tests the adapter's facts of
its device, and its refusals.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from bertbench.backends.base import PRECISIONS, Backend
from bertbench.common.errors import Unsupported

ROOT = Path(__file__).parents[2]
MIB = 2**20


def test_probe_says_that_it_can_run(backend_class: type[Backend]) -> None:
    """``probe`` answers ok with a reason that ``doctor`` can print in one line."""
    probe = backend_class.probe()
    assert probe.ok is True
    assert probe.reason and "\n" not in probe.reason, "give one line: doctor prints it"
    count = backend_class.device_count()
    assert isinstance(count, int) and count >= 1, "probe is ok, so device_count() must be >= 1"


def test_describe_is_typed_and_unknown_is_none(backend: Backend) -> None:
    """``describe`` and ``peak_memory`` say None where they do not know: never 0, -1 or ''."""
    info = backend.describe()
    assert info.backend == backend.name and info.name, "describe() needs backend and name"
    assert info.index == (backend.device.index or 0), "index is the local device's"
    assert isinstance(info.simulated, bool)
    assert info.memory_bytes is None or info.memory_bytes > MIB, (
        f"memory_bytes is {info.memory_bytes}: give bytes, or None if unknown"
    )
    for name in ("driver", "runtime"):
        value = getattr(info, name)
        assert value is None or (isinstance(value, str) and value.strip()), (
            f"{name} is {value!r}: give its version as text, or None"
        )
    assert all(isinstance(x, str) for pair in info.extras.items() for x in pair)
    held = torch.ones(MIB, device=backend.device)
    peak = backend.peak_memory()
    assert peak is None or (peak.peak_memory_bytes >= held.nbytes and peak.definition), (
        f"peak_memory() is {peak} while {held.nbytes} bytes are held: count them and define the "
        "count, or return None if it is unknown"
    )


def test_capabilities_are_from_the_vocabulary(backend: Backend) -> None:
    """``capabilities`` has known precisions, plain kernels, and notes that are not empty."""
    have = backend.capabilities
    assert set(have.precisions) <= set(PRECISIONS), (
        f"precisions are {have.precisions}; choose from {PRECISIONS}"
    )
    assert {"fp32", "tf32"} & set(have.precisions), "float32 products are one of fp32 and tf32"
    assert "plain" in have.kernels, "plain kernels run anywhere: keep them beside the fused ones"
    assert have.collective is None or (have.collective and isinstance(have.collective, str))
    assert all(isinstance(x, str) and x for pair in have.notes.items() for x in pair)


def test_local_rank_chooses_the_device(backend_class: type[Backend], backend: Backend) -> None:
    """Process number n works on device n: tensors land there, and it is the current device."""
    for rank in range(min(backend_class.device_count(), 2)):
        one = backend_class(rank)
        assert one.device.type == backend_class.device_type
        index = one.device.index
        assert index in (rank, None if one.device_type == "cpu" else rank), (
            f"local rank {rank} got device {index}: build torch.device(type, local_rank)"
        )
        here = torch.ones(1, device=one.device_type).device
        assert here == torch.ones(1, device=one.device).device, (
            f"tensors without an index land on {here}: call set_device({one.device}) in __init__"
        )
    backend_class(0)  # back to the first for the tests that follow


def test_a_rank_beyond_the_devices_is_refused(backend_class: type[Backend]) -> None:
    """More processes than devices is Unsupported, and says how many devices there are."""
    if backend_class.device_type == "cpu":
        pytest.skip("host processes share the processor, which has no device numbers")
    count = backend_class.device_count()
    with pytest.raises(Unsupported, match=rf"\b{count}\b") as refused:
        backend_class(count)
    assert "NPROC" in str(refused.value), "the message must name the fix: NPROC"


def test_visible_devices_are_respected(backend_class: type[Backend]) -> None:
    """With one entry in the vendor's variable there is one device, and the record holds it."""
    variable = backend_class.visible_devices_env
    if variable is None:
        pytest.skip(f"{backend_class.name} names no visible_devices_env")
    entry = os.environ.get(variable, "0").split(",")[0]
    script = (
        "from bertbench import backends; import json; "
        f"b = backends.load({backend_class.name!r}); one = b(0); "
        "print(json.dumps([b.device_count(), dict(one.describe().extras)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {variable: entry}, cwd=ROOT,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    count, extras = json.loads(done.stdout.splitlines()[-1])
    assert count == 1, f"{variable}={entry} leaves one device, but device_count() is {count}"
    assert variable in extras, f"describe().extras must record {variable}"
    if entry.isdecimal():  # a device's UUID need not be published
        assert extras[variable] == entry, f"describe().extras must record {variable} as it is"


def test_unknown_kernels_compiler_and_collective_are_refused(backend: Backend) -> None:
    """Each refusal is Unsupported and lists what exists."""
    have = backend.capabilities
    with pytest.raises(Unsupported) as refused:
        backend.ops("no_such", have.precisions[0])
    assert all(name in str(refused.value) for name in have.kernels), "list the kernels there are"
    with pytest.raises(Unsupported) as refused:
        backend.compile(nn.Linear(2, 2), "no_such")
    listed = have.compilers or ("none",)
    assert all(name in str(refused.value) for name in listed), "list the compilers there are"
    with pytest.raises(Unsupported) as refused:
        backend.resolve_collective("no_such")
    assert str(have.collective) in str(refused.value), "name the collective there is"
    assert backend.resolve_collective(None) == have.collective
