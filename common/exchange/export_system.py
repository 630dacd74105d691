# SPDX-License-Identifier: Apache-2.0
"""MLPerf's system description, from the records and from the user.

mlperf_logging's system_desc_checker requires these fields, all as strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertbench.common.errors import BadInput
from bertbench.common.files import read_json, shown
from bertbench.common.results.result import HOST, Result

FIELDS = {
    "submitter": "organisation that submits",
    "division": "closed or open",
    "status": "availability of the system: onprem, cloud, preview or research",
    "system_name": "name of the system, also of its folder and file",
    "number_of_nodes": "machines used",
    "host_processors_per_node": "processor sockets of one machine",
    "host_processor_model_name": "exact model of the processors",
    "host_processor_core_count": "physical cores of one processor",
    "host_processor_vcpu_count": "hardware threads of one processor",
    "host_processor_frequency": "the processors' highest clock rate",
    "host_processor_caches": "sizes of the processors' caches",
    "host_processor_interconnect": "link between the sockets, e.g. UPI; N/A with one",
    "host_memory_capacity": "main memory of one machine",
    "host_memory_configuration": "its modules, e.g. 16x 64 GB DDR5-4800",
    "host_storage_type": "storage of the data, e.g. NVMe SSD",
    "host_storage_capacity": "size of that storage, e.g. 2x 3.84 TB",
    "host_networking": "network cards between the machines; N/A with one machine",
    "host_networking_topology": "how the machines are linked; N/A with one machine",
    "accelerators_per_node": "accelerators used per machine",
    "accelerator_model_name": "exact model of the accelerators",
    "accelerator_host_interconnect": "link of an accelerator to its host, e.g. PCIe Gen5 x16",
    "accelerator_frequency": "clock rate of the accelerators",
    "accelerator_on-chip_memories": "caches and other memories on the chip",
    "accelerator_memory_configuration": "kind of the accelerators' memory, e.g. HBM3",
    "accelerator_memory_capacity": "memory of one accelerator",
    "accelerator_interconnect": "link between accelerators, e.g. NVLink; N/A with one",
    "accelerator_interconnect_topology": "how they are linked, e.g. mesh; N/A with one",
    "cooling": "air or liquid",
    "hw_notes": "anything else about the machine; may be empty",
    "framework": "framework with its version",
    "other_software_stack": "drivers and libraries with versions",
    "operating_system": "name and version",
    "sw_notes": "anything else about the software; may be empty",
}
"""Field -> its meaning."""
INFERENCE_FIELDS = {
    "system_type": "edge, or datacenter,edge; MLPerf Inference has BERT in edge only",
    "system_type_detail": "kind of the system, e.g. server; may be N/A",
    "host_network_card_count": "network cards of one machine, e.g. 1x 10 GbE",
}
"""Those that MLPerf Inference requires besides; it lacks some of the others, and allows them."""
STATUSES = {
    "onprem": "Available on-premise",
    "cloud": "Available cloud",
    "preview": "Preview",
    "research": "Research, Development, or Internal (RDI)",
}
"""The log's word -> the description's, since round 4.0."""
INFERENCE_STATUSES = {
    "onprem": "available", "cloud": "available", "preview": "preview", "research": "rdi"
}  # fmt: skip
NONE = "N/A"
_GIB = 1 << 30


def status_words(ruleset: str) -> Mapping[str, str]:
    """Return the description's words for a status in a round of MLPerf Training."""
    return STATUSES if int(ruleset.split(".")[0]) >= 4 else {word: word for word in STATUSES}


def describe(
    result: Result,
    given: Mapping[str, str],
    known: Mapping[str, str],
    *,
    names: Mapping[str, str] = FIELDS,
    statuses: Mapping[str, str] = STATUSES,
) -> tuple[dict[str, str], list[str]]:
    """Return the description, and a note for each measured value that ``given`` replaces.

    ``given`` are the user's fields, ``known`` those of the export; ``names`` are those required,
    and ``statuses`` the description's words for a status. Raises BadInput, naming every missing
    field with its meaning.
    """
    if foreign := sorted(set(given) - set(names)):
        raise BadInput(f"--{foreign[0]}: these runs' kind of submission has no such field")
    found = {**measured(result), **known}
    fields = {**found, **given}
    missing = [name for name in names if name not in fields]
    if missing:
        lines = [f"  --{name:<36}{names[name]}" for name in missing]
        raise BadInput(
            f"{len(missing)} fields of the system are unknown; give each as a flag, or all in a "
            "JSON file of names and texts (--system_info FILE), N/A if it does not apply:\n"
            + "\n".join(lines)
        )
    notes = [
        f"{name}: {shown(given[name])!r} was given, {shown(value)!r} was measured"
        for name, value in found.items()
        if given.get(name, value) != value
    ]
    status = fields["status"]
    if status not in STATUSES:
        raise BadInput(f"status {shown(status)!r}: choose from {', '.join(STATUSES)}")
    fields["status"] = statuses[status]
    return {name: fields[name] for name in names}, notes


def measured(result: Result) -> dict[str, str]:
    """Return field -> text for each field that the record contains."""
    system = result.system
    processor, software = system["processor"], system["software"]
    sockets, devices = processor.get("sockets"), result.devices
    clock = (processor.get("frequency_mhz") or {}).get("max")
    caches = processor.get("caches")
    values: dict[str, Any] = {
        "number_of_nodes": nodes(result),
        "host_processors_per_node": sockets,
        "host_processor_model_name": processor.get("model"),
        "host_processor_core_count": _each(processor.get("cores"), sockets),
        "host_processor_vcpu_count": _each(processor.get("threads"), sockets),
        "host_processor_frequency": f"{clock:g} MHz" if clock else None,
        "host_processor_caches": ", ".join(f"{k} {v}" for k, v in caches.items())
        if caches
        else None,
        "host_processor_interconnect": NONE if sockets == 1 else None,
        "host_memory_capacity": _gib(system.get("memory_bytes")),
        "hw_notes": "virtual machine" if processor.get("virtual_machine") else "",
        "framework": result.devices[0].get("runtime")
        if result.exported
        else f"PyTorch {software['packages'].get('torch')}",
        "operating_system": system["os"].get("name"),
        "other_software_stack": ", ".join(_software(result)),
        "sw_notes": f"bertbench, commit {result.manifest['commit']}, code {result.code_hash}, "
        f"recipe {result.recipe_hash}",
    }
    if values["number_of_nodes"] == 1:
        values |= {"host_networking": NONE, "host_networking_topology": NONE}
    engine = result.extras.get("engine") if result.exported else None
    if result.backend == HOST or (engine and engine["device"] is None):
        names = [name for name in FIELDS if name.startswith("accelerator_")]
        values |= {"accelerators_per_node": 0, **dict.fromkeys(names, NONE)}
    else:
        values |= _accelerators(result, values["number_of_nodes"], devices)
    return {name: str(value) for name, value in values.items() if value is not None}


def _accelerators(
    result: Result, machines: int | None, devices: list[Mapping[str, Any]]
) -> dict[str, Any]:
    clocks = [r["sm_clock_mhz"] for r in result.telemetry() if r.get("sm_clock_mhz")]
    values: dict[str, Any] = {
        "accelerators_per_node": len(devices) // machines if machines else None,
        "accelerator_model_name": result.device_name,
        "accelerator_memory_capacity": _gib(devices[0].get("memory_bytes")),
        "accelerator_frequency": f"up to {max(clocks):g} MHz while running" if clocks else None,
    }
    if len(devices) == 1:
        names = ("accelerator_interconnect", "accelerator_interconnect_topology")
        values |= dict.fromkeys(names, NONE)
    return values


def nodes(result: Result) -> int | None:
    """Return a run's number of machines; None if unknown."""
    environment = result.system.get("environment") or {}
    local = str(environment.get("LOCAL_WORLD_SIZE", ""))
    if local.isdecimal() and int(local) and result.world_size:
        return max(1, result.world_size // int(local))
    return 1 if result.world_size == 1 else None


def read_info(path: Path) -> dict[str, str]:
    """Read a user's file of fields; raise BadInput if it is not one."""
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"--system_info {shown(path)}: cannot be read as JSON: {shown(error)}"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(v, str) for v in content.values()):
        raise BadInput(f"--system_info {shown(path)}: must be one JSON object of names and texts")
    unknown = sorted(set(content) - {*FIELDS, *INFERENCE_FIELDS})
    if unknown:
        raise BadInput(f"--system_info {shown(path)}: no such field: {shown(', '.join(unknown))}")
    return content


def _software(result: Result) -> list[str]:
    software, device = result.system["software"], result.devices[0]
    packages = software["packages"].items()
    parts = [f"{name} {version}" for name, version in packages if version and name != "torch"]
    known = {"driver": device.get("driver"), "runtime": device.get("runtime")}
    known |= {"compiler": software.get("compiler"), "kernel": result.system["os"].get("kernel")}
    return [f"python {software['python']}", *parts, *(f"{k} {v}" for k, v in known.items() if v)]


def _each(count: int | None, sockets: int | None) -> int | None:
    return count // sockets if count and sockets else None


def _gib(count: int | None) -> str | None:
    return f"{count / _GIB:.4g} GiB" if count else None
