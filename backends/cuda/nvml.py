# SPDX-License-Identifier: Apache-2.0
"""Power, energy and other sensors of an NVIDIA device, from NVML (package nvidia-ml-py).

Units of NVML: energy mJ since the driver was loaded, power mW, memory bytes, clocks MHz. The
energy counter (Volta and later) comes first: on A100 and H100 the power sensor covers only a
quarter of the time (arXiv 2312.02741).
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from bertbench.backends.accelerator import one_line
from bertbench.backends.sensors import Sensors, visible_entry
from bertbench.common.errors import Unsupported

Reading = Callable[[], dict[str, float]]

THROTTLING = {
    "power": 0x4 | 0x80,
    "thermal": 0x20 | 0x40,
    "hardware": 0x8,
    "other": ~(0x1 | 0x2 | 0x4 | 0x8 | 0x20 | 0x40 | 0x80),
}
"""Bits of nvmlClocksEventReasons (nvml.h): software power cap and power brake; software and
hardware thermal slowdown; hardware slowdown; the rest. Idle (0x1) and clocks set by an application
(0x2) do not count."""


def open_nvml(index: int, visible: str | None, uuid: str | None) -> tuple[Sensors, str | None]:
    """Return the sensors of this process's device ``index``, and why power is missing, or None.

    ``visible`` is CUDA_VISIBLE_DEVICES. ``uuid`` is the device's in torch; it identifies a device
    given by number (CUDA sorts by speed, NVML by bus). Raises Unsupported where no sensor works.
    """
    nvml = _load()
    try:
        card, part, mig = _find(nvml, visible_entry(index, visible), uuid)
    except (nvml.NVMLError, Unsupported) as error:
        why = without_ids(one_line(error))
        raise Unsupported(f"NVML does not have device {index}: {why}") from None
    readings, missing = _working(nvml, _readings(nvml, card, part, mig))
    measure = next((name for name in ("energy", "power") if name in readings), None)
    no_power = None
    if mig:
        no_power = "MIG: NVML measures the power of the whole card, not of this instance"
    elif measure is None:
        no_power = f"NVML reports neither energy nor power of this device: {missing['power']}"
    if not readings:
        raise Unsupported(no_power or "NVML reports no sensor of this device")

    def read() -> Mapping[str, float]:
        sample: dict[str, float] = {}
        try:
            for reading in readings.values():
                sample.update({name: float(value) for name, value in reading().items()})
        except nvml.NVMLError as error:
            raise RuntimeError(one_line(error)) from error
        return sample

    return Sensors(read, f"nvml ({measure or 'no power'})"), no_power


PATHS = {0: "one board", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
"""nvmlGpuTopologyLevel_t (nvml.h), with the names of `nvidia-smi topo -m`."""


def interconnect(index: int, visible: str | None, uuid: str | None) -> str | None:
    """Return how this device reaches the host's other GPUs; arguments as in ``open_nvml``.

    For example ``NVLink to 1 of 3 GPUs, 4 links; PCIe to 2 of 3 GPUs (NODE 1, SYS 1)``. None where
    there is no other GPU, for a MIG instance, which reaches none, and where NVML does not say.
    """
    try:
        nvml = _load()
        card, _, mig = _find(nvml, visible_entry(index, visible), uuid)
        devices = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
        own = nvml.nvmlDeviceGetUUID(card)
        others = [other for other in devices if nvml.nvmlDeviceGetUUID(other) != own]
        if mig or not others:
            return None
        which, ok = nvml.NVML_P2P_CAPS_INDEX_NVLINK, nvml.NVML_P2P_STATUS_OK
        apart = [o for o in others if nvml.nvmlDeviceGetP2PStatus(card, o, which) != ok]
        paths = Counter(nvml.nvmlDeviceGetTopologyCommonAncestor(card, other) for other in apart)
    except Exception:  # Unsupported, or any error of NVML
        return None
    linked, found = len(others) - len(apart), []
    if linked:
        links = f"{_active_links(nvml, card)} links"
        found.append(f"NVLink to {linked} of {len(others)} GPUs, {links}")
    if apart:
        named = ", ".join(f"{PATHS.get(level, level)} {n}" for level, n in sorted(paths.items()))
        found.append(f"PCIe to {len(apart)} of {len(others)} GPUs ({named})")
    return "; ".join(found)


def _active_links(nvml: Any, card: Any) -> int:
    """Return the number of a card's NVLinks that are up; those that it lacks raise."""
    up = 0
    for link in range(nvml.NVML_NVLINK_MAX_LINKS):
        with contextlib.suppress(nvml.NVMLError):
            up += nvml.nvmlDeviceGetNvLinkState(card, link) == nvml.NVML_FEATURE_ENABLED
    return up


def driver_version() -> str | None:
    """Return the driver's version, or None."""
    try:
        nvml = _load()
        return str(nvml.nvmlSystemGetDriverVersion())
    except Exception:  # Unsupported, or any error of NVML
        return None


def _load() -> Any:
    """Return the initialised library; raise Unsupported where it cannot be initialised."""
    try:
        import pynvml
    except ImportError:
        raise Unsupported("package nvidia-ml-py is not installed") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        known = {
            pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "libnvidia-ml.so.1 is not found; it comes with "
            "the driver (in a container: NVIDIA_DRIVER_CAPABILITIES=utility)",
            pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded",
        }
        raise Unsupported(f"no NVML: {known.get(error.value, one_line(error))}") from None
    return pynvml


def _find(nvml: Any, entry: str, uuid: str | None) -> tuple[Any, Any, bool]:
    """Return the card of an entry of CUDA_VISIBLE_DEVICES, its memory's owner, and if it is MIG.

    The memory's owner is the card, its MIG instance, or None where that is unknown.
    """
    if entry.startswith("MIG-GPU-"):  # the older form: MIG-GPU-<uuid>/<instance>/<instance>
        return _by_uuid(nvml, entry.removeprefix("MIG-").split("/")[0]), None, True
    if entry.startswith("MIG-"):
        part = _by_uuid(nvml, entry)
        return nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(part), part, True
    card = None
    if not entry.isdigit():
        card = _by_uuid(nvml, entry)
    elif uuid is not None:
        with contextlib.suppress(nvml.NVMLError):
            card = _by_uuid(nvml, uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
    if card is None:
        card = nvml.nvmlDeviceGetHandleByIndex(int(entry))
    try:
        mig = bool(nvml.nvmlDeviceGetMigMode(card)[0])
    except nvml.NVMLError:
        mig = False
    return card, None if mig else card, mig


def _by_uuid(nvml: Any, uuid: str) -> Any:
    """Return the device of this UUID; as for CUDA, an unambiguous beginning is enough."""
    try:
        return nvml.nvmlDeviceGetHandleByUUID(uuid)
    except (nvml.NVMLError_NotFound, nvml.NVMLError_InvalidArgument):
        devices = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
        fitting = [d for d in devices if nvml.nvmlDeviceGetUUID(d).startswith(uuid)]
        if len(fitting) != 1:
            raise
        return fitting[0]


def _readings(nvml: Any, card: Any, part: Any, mig: bool) -> dict[str, Reading]:
    """Return every possible reading; for a MIG instance, none that is the whole card's."""
    found: dict[str, Reading] = {}
    if not mig:
        found = {
            "energy": lambda: {"energy_j": nvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1e3},
            "power": lambda: {"power_w": nvml.nvmlDeviceGetPowerUsage(card) / 1e3},
            "utilization": lambda: {
                "utilization_percent": nvml.nvmlDeviceGetUtilizationRates(card).gpu
            },
        }
    if part is not None:
        found["memory"] = lambda: {"memory_used_bytes": nvml.nvmlDeviceGetMemoryInfo(part).used}
    return found | {
        "temperature": lambda: {
            "temperature_c": nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU)
        },
        "sm clock": lambda: {"sm_clock_mhz": nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_SM)},
        "memory clock": lambda: {
            "memory_clock_mhz": nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_MEM)
        },
        "throttling": lambda: throttling(_reasons(nvml, card)),
    }


def _working(nvml: Any, readings: dict[str, Reading]) -> tuple[dict[str, Reading], dict[str, str]]:
    """Return the readings that this device and driver have, and why the others are missing."""
    works: dict[str, Reading] = {}
    missing: dict[str, str] = {}
    for name, reading in readings.items():
        try:
            reading()
        except nvml.NVMLError as error:
            missing[name] = one_line(error)
        else:
            works[name] = reading
    return works, missing


_NAMES = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")


def _reasons(nvml: Any, handle: Any) -> int:
    """Return the clocks' event reasons, by the name that this driver and package have."""
    for name in _NAMES:
        function = getattr(nvml, name, None)
        try:
            if function is not None:
                return int(function(handle))
        except nvml.NVMLError_FunctionNotFound:
            continue
    raise nvml.NVMLError(nvml.NVML_ERROR_FUNCTION_NOT_FOUND)


def throttling(reasons: int) -> dict[str, float]:
    """Return ``throttled`` and each ``throttle_<reason>``, 0 or 1, from NVML's bits."""
    flags = {name: float(bool(reasons & bits)) for name, bits in THROTTLING.items()}
    named = {f"throttle_{name}": value for name, value in flags.items()}
    return {"throttled": max(flags.values()), **named}


def without_ids(text: str) -> str:
    """Return ``text`` without devices' UUIDs, which identify a machine."""
    return re.sub(r"\b(MIG-GPU|GPU|MIG)-[0-9A-Za-z/-]+", r"\1-...", text)
