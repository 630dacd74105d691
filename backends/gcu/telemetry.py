# SPDX-License-Identifier: Apache-2.0
"""Enflame's sensors: the library ``pyefml`` in both its generations, else the tool ``efsmi``.

Names and units: ``efml.h`` of EnflameTechnology/gcu-exporter, and outputs of ``efsmi`` captured by
others (cited in the tests). Without an energy counter, energy is power times time.
"""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bertbench.backends.sensors import TOOL_PERIOD_S, Sensors, quantity, run_tool, visible_entry
from bertbench.common.errors import Unsupported

VISIBLE = "TOPS_VISIBLE_DEVICES"

Read = Callable[[], dict[str, float]]


def find_sensors(index: int, *, tools: bool = True) -> Sensors:
    """Return the sensors of this process's device ``index`` from the first source with power.

    A source without power is taken only where none has it (a sleeping card shows "-"). ``tools``:
    also try efsmi, which has real cards only. Raises Unsupported, with each source's problem,
    where none works.
    """
    entry = visible_entry(index, os.environ.get(VISIBLE))
    if entry.startswith(("DRS-", "MIG-")):
        raise Unsupported(f"{entry} is a slice of a card, which has no power sensor")
    working: list[Sensors] = []
    problems: dict[str, list[str]] = {}
    for source, attach in (_LIBRARIES | _TOOLS if tools else _LIBRARIES).items():
        try:
            read = attach(entry)
            reading = read()
        except Exception as error:  # every binding has its own kind
            lines = str(error).strip().splitlines() or [type(error).__name__]
            problems.setdefault(lines[0].removeprefix("efsmi: "), []).append(source)
            continue
        found = Sensors(read, source, TOOL_PERIOD_S if source in _TOOLS else 0.1)
        if "power_w" in reading:
            return found
        working.append(found)
    if not working:
        raise Unsupported("; ".join(f"{', '.join(who)}: {why}" for why, who in problems.items()))
    return working[0]


def driver_version(index: int) -> str | None:
    """Return the driver's version from ``efsmi``, or None."""
    try:
        entry = visible_entry(index, os.environ.get(VISIBLE))
        device = _device(entry, efsmi_text())
    except (RuntimeError, ValueError, Unsupported):
        return None
    return device.get("Driver Info", {}).get("Ver")


# -- pyefml -----------------------------------------------------------------------------------
def _efml_by_handle(entry: str) -> Read:
    """Read by the NVML-like names: mW, bytes, MHz, degrees Celsius."""
    api = importlib.import_module("pyefml")
    _initialise(api)

    def uuids() -> Iterable[tuple[int, str]]:
        for index in range(api.efmlDeviceGetCount()):
            yield index, _text(api.efmlDeviceGetUUID(api.efmlDeviceGetHandleByIndex(index)))

    handle = api.efmlDeviceGetHandleByIndex(_physical(entry, uuids))
    gcu, sip, memory = (
        getattr(api, name, value)
        for name, value in (
            ("EFML_TEMPERATURE_GCU", 0),
            ("EFML_CLOCK_SIP", 1),
            ("EFML_CLOCK_MEM", 2),
        )
    )
    sensors: dict[str, Callable[[], Any]] = {
        "power_w": lambda: api.efmlDeviceGetPowerUsage(handle) / 1e3,
        "memory_used_bytes": lambda: api.efmlDeviceGetMemoryInfo(handle).used,
        "utilization_percent": lambda: api.efmlDeviceGetUtilizationRates(handle).gcu,
        "temperature_c": lambda: api.efmlDeviceGetTemperature(handle, gcu),
        "sm_clock_mhz": lambda: api.efmlDeviceGetClockInfo(handle, sip),
        "memory_clock_mhz": lambda: api.efmlDeviceGetClockInfo(handle, memory),
    }
    if getattr(api, "SIMULATED", False):
        # The real library's report of throttling is not public, so only the stand-in is read.
        sensors["throttled"] = lambda: api.efmlDeviceGetDpmLevel(handle) < api.EFML_DPM_LEVEL_ACTIVE
    return _reader(sensors)


def _efml_by_index(entry: str) -> Read:
    """Read by the older names, whose undocumented units follow from the card's limits.

    A card's memory is between 1 GiB and 1 TiB, and its power limit between 1 W and 1 kW, so the
    magnitude of a total or a limit identifies its unit. ``efmlGetDevPwr`` and its fields are those
    of ``efml.h``; a binding without them has no power here.
    """
    api = importlib.import_module("pyefml")
    _initialise(api)
    index = _physical(entry, lambda: ())
    api.efmlGetDevInfo(index)  # raises where this generation or this device does not exist

    def memory() -> float:
        found = api.efmlGetDevMem(index)
        total = float(found.vramTotal)
        unit = 1.0 if total >= 2**30 else 2.0**10 if total >= 2**20 else 2.0**20
        return found.vramUse * unit

    def power() -> float:
        found = api.efmlGetDevPwr(index)
        return found.cur_pwr_consumption / (1e3 if found.pwr_capability > 2e3 else 1.0)

    return _reader({"power_w": power, "memory_used_bytes": memory})


def _initialise(api: Any) -> None:
    """Call ``efmlInitV2`` where the library has it and accepts the card, else ``efmlInit``."""
    newer = getattr(api, "efmlInitV2", None)
    if newer is not None:
        try:
            newer()
            return
        except Exception:
            if not hasattr(api, "efmlInit"):
                raise
    if hasattr(api, "efmlInit"):
        api.efmlInit()


def _reader(sensors: Mapping[str, Callable[[], Any]]) -> Read:
    """Return a reader that leaves out each sensor that is missing or fails."""

    def read() -> dict[str, float]:
        reading = {}
        for key, query in sensors.items():
            try:
                value = float(query())
            except Exception:
                continue
            # A card that is on never draws 0 W: that is how "unknown" looks here.
            if math.isfinite(value) and (value > 0 or key != "power_w"):
                reading[key] = value
        if not reading:
            raise RuntimeError("no sensor answers")
        return reading

    return read


# -- efsmi ------------------------------------------------------------------------------------
_ARGUMENTS = ("efsmi", "-q", "-d", "DEVICE,POWER,MEMORY,TEMP,USAGE", "--json-format")


def efsmi_json() -> list[dict[str, Any]]:
    """Return devices from ``efsmi``'s JSON, each ``{"id": 0, section: {key: value}}``.

    Raises RuntimeError for unexpected output.
    """
    out = run_tool(_ARGUMENTS)
    try:
        devices = json.loads(out[out.index("{") :])["devices"]
        return [dict(device) for device in devices]
    except (ValueError, KeyError, TypeError) as error:
        raise RuntimeError("its JSON is not as expected") from error


def efsmi_text() -> list[dict[str, Any]]:
    """Return the same from ``efsmi -q``, whose sections are lines without a colon.

    Raises RuntimeError for output without a device.
    """
    devices: list[dict[str, Any]] = []
    section: dict[str, str] = {}
    for line in run_tool(["efsmi", "-q"]).splitlines():
        key, colon, value = (part.strip() for part in line.partition(":"))
        if key.startswith("DEV ID"):
            devices.append({"id": int(key.removeprefix("DEV ID"))})
        elif devices and colon:
            section[key] = value
        elif devices and key.strip("-"):
            section = devices[-1].setdefault(key, {})
    if not devices:
        raise RuntimeError("no device in its output")
    return devices


def _efsmi(entry: str, query: Callable[[], list[dict[str, Any]]]) -> Read:
    return lambda: reading_of(_device(entry, query()))


def _device(entry: str, devices: list[dict[str, Any]]) -> dict[str, Any]:
    def uuids() -> Iterable[tuple[int, str]]:
        for device in devices:
            yield int(device["id"]), str(device.get("Device Info", {}).get("Dev UUID", ""))

    wanted = _physical(entry, uuids)
    for device in devices:
        if int(device["id"]) == wanted:
            return device
    raise RuntimeError(f"no device {wanted} in its output")


def reading_of(device: Mapping[str, Any]) -> dict[str, float]:
    """Return sensor values of one of ``efsmi``'s devices, for drivers 1.2 ("Mem Usage") and 1.4.

    Bare numbers are MiB, W, degrees Celsius and percent. Driver 1.2 counts its own reserve as used
    memory, 1.4 does not. Raises RuntimeError where no sensor has a value.
    """
    memory = device.get("Device Mem Info", {})
    used = str(memory.get("Used Size", memory.get("Mem Usage", "")))
    texts = {
        "power_w": (_value(device, "Cur Power"), "W"),
        "memory_used_bytes": (f"{used} MiB" if used.isdecimal() else used, "bytes"),
        "temperature_c": (_value(device, "GCU Temp"), "C"),
        "utilization_percent": (_value(device, "GCU Usage"), "%"),
        "memory_clock_mhz": (_value(device, "Mem CLK"), "MHz"),
    }
    found = {key: quantity(text, unit) for key, (text, unit) in texts.items()}
    reading = {key: value for key, value in found.items() if value is not None}
    if not reading:
        raise RuntimeError("no sensor in its output")
    return reading


def _value(device: Mapping[str, Any], key: str) -> str:
    """Return the value of a key that only one section has, or ""."""
    for section in device.values():
        if isinstance(section, Mapping) and key in section:
            return str(section[key])
    return ""


# -- ids --------------------------------------------------------------------------------------
def _physical(entry: str, uuids: Callable[[], Iterable[tuple[int, str]]]) -> int:
    """Return the machine's index for a TOPS_VISIBLE_DEVICES entry: an index or a UUID's start."""
    if entry.isdecimal():
        return int(entry)
    wanted = entry.removeprefix("GCU-")
    matches = [index for index, uuid in uuids() if uuid.removeprefix("GCU-").startswith(wanted)]
    if len(matches) != 1:
        raise RuntimeError(f"{len(matches)} devices have the id {entry}")
    return matches[0]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


_LIBRARIES: dict[str, Callable[[str], Read]] = {
    "pyefml": _efml_by_handle,
    "pyefml by index": _efml_by_index,
}
_TOOLS: dict[str, Callable[[str], Read]] = {
    "efsmi --json-format": lambda entry: _efsmi(entry, efsmi_json),
    "efsmi": lambda entry: _efsmi(entry, efsmi_text),
}
