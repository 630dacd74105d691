# SPDX-License-Identifier: Apache-2.0
"""Print, as shell assignments for init.sh, whether this Python's torch is a vendor's build.

A vendor's build comes from a container or SDK, is in no package index and must never be replaced; a
plain CPU build is available anywhere. Several vendors appear as CUDA (CoreX, MACA, DTK), so every
build but the plain one counts as a vendor's. Standard library only, and any Python 3.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shlex
import site
import sys

PLUGINS = (
    "torch_gcu",
    "torch_npu",
    "torch_mlu",
    "torch_musa",
    "torch_sdaa",
    "torch_xmlir",
    "torch_xla",
    "torch_neuronx",
    "habana_frameworks",
    "intel_extension_for_pytorch",
)
"""Packages that add a vendor's device to torch; others are found by their entry point."""


def describe() -> dict[str, str]:
    """Return ``kind``, which is none, plain, vendor or broken, and ``what``, its description."""
    if importlib.util.find_spec("torch") is None:
        return {"kind": "none", "what": "no torch"}
    plugins = find_plugins()
    # A broken plugin does not make torch broken; `bertbench doctor` reports it.
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    try:
        import torch
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        return {"kind": "broken", "what": what}
    version = str(torch.__version__)
    built = torch.version
    label = version.partition("+")[2]
    signs = [
        f"{name} {value}"
        for name, value in (
            ("CUDA", getattr(built, "cuda", None)),
            ("HIP", getattr(built, "hip", None)),
            ("XPU", getattr(built, "xpu", None)),
        )
        if value
    ]
    if label not in ("", "cpu") and not signs:
        signs.append(f"build {label}")
    signs += plugins
    kind = "vendor" if signs else "plain"
    return {
        "kind": kind,
        "what": f"torch {version}" + (f" ({', '.join(signs)})" if signs else ""),
        "version": version,
        "supported": "yes" if supported(version) else "no",
    }


def find_plugins() -> list[str]:
    """Find the installed packages that add a device to torch, without importing them."""
    found = [name for name in PLUGINS if importlib.util.find_spec(name)]
    for distribution in importlib.metadata.distributions():
        for entry in distribution.entry_points:
            name = entry.value.split(":")[0].split(".")[0]
            if entry.group == "torch.backends" and name not in found:
                found.append(name)
    return found


def supported(version: str) -> bool:
    """Return whether torch is 2.10 to 2.15, as pyproject.toml requires, or a 2.10.0a0+... build."""
    major, minor = version.split(".")[:2]
    return (2, 10) <= (int(major), int(minor)) < (2, 16)


def constraints() -> str:
    """Return pins for torch and the packages tied to its build, which pip must not change."""
    tied = ("torch", "triton", "nvidia-", "cuda-", "pytorch-triton", "intel-extension", "habana")
    pins = {
        f"{d.metadata['Name']}=={d.version}"
        for d in importlib.metadata.distributions()
        if (d.metadata["Name"] or "").lower().replace("_", "-").startswith(tied)
        and not (d.metadata["Name"] or "").lower().startswith("nvidia-ml-py")
    }
    return "\n".join(sorted(pins))


def main() -> None:
    """Print the pins with ``--constraints``, else the description."""
    if "--constraints" in sys.argv:
        print(constraints())
        return
    found = describe()
    # A Python in a virtual environment hides its packages from --system-site-packages.
    inside = sys.prefix != sys.base_prefix
    found["hidden_site"] = os.pathsep.join(site.getsitepackages()) if inside else ""
    for key, value in found.items():
        print(f"outer_{key}={shlex.quote(value)}")


if __name__ == "__main__":
    main()
