# SPDX-License-Identifier: Apache-2.0
"""Prepare a process in which torch runs forward and backward passes over fake CUDA tensors.

All changes to torch are here: the library ``no_device.cpp`` (see its comments) and ``pretend``.
Import this module, call ``start``, and import torch only then.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from bertbench.common.errors import Unsupported

SOURCE = Path(__file__).with_name("no_device.cpp")
FLAGS = ("-std=c++20", "-O1", "-g0", "-w", "-fPIC", "-shared")


def start() -> None:
    """Load ``no_device.cpp`` and torch. The process must not use a device afterwards.

    Raises Unsupported without Linux, torch's headers or a working C++ compiler.
    """
    if sys.platform != "linux":
        raise Unsupported(
            f"tracing needs Linux (it replaces two symbols of torch), not {sys.platform}"
        )
    assert "torch" not in sys.modules, "torch is loaded already, and bound to its own functions"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # hides real devices
    library = ctypes.CDLL(str(_library()), mode=ctypes.RTLD_GLOBAL)
    import torch

    library.bertbench_register_guard()
    torch.autograd.set_multithreading_enabled(False)


def _library() -> Path:
    """Return the shared object; build it into the cache at first use (about 3 seconds)."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise Unsupported("torch is not installed")
    root = Path(found.origin).parent
    if not (root / "include" / "c10").is_dir():
        raise Unsupported(f"torch in {root} has no C++ headers: install torch from its wheel")
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        raise Unsupported("tracing needs a C++ compiler: install g++ or clang, or set CXX")
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    except OSError as error:
        raise Unsupported(
            f"the C++ compiler {compiler!r} does not start ({error}): install g++, or set CXX"
        ) from error
    parts = (SOURCE.read_text(), version, *FLAGS, (root / "version.py").read_text(), str(root))
    key = hashlib.sha256("\0".join((*parts, platform.machine())).encode()).hexdigest()[:16]
    target = _cache() / "native" / f"no-device-{key}.so"
    if not target.exists():
        _build(compiler, root, target)
    return target


def _cache() -> Path:
    """As bertbench.common.native.cache_dir, which imports torch."""
    base = os.environ.get("BERTBENCH_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bertbench"


def _build(compiler: str, root: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    lib = root / "lib"
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        built = Path(work) / "no_device.so"
        done = subprocess.run(
            [compiler, *FLAGS, f"-I{root / 'include'}", str(SOURCE), "-o", str(built)]
            + [f"-L{lib}", f"-Wl,-rpath,{lib}", "-lc10"],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line]
            raise Unsupported(
                f"the C++ compiler {compiler} fails on {SOURCE.name}: "
                f"{' | '.join(errors[:3]) or done.stderr.strip()[-500:]}. It needs C++20 "
                "(g++ 11 or clang 14, or newer): set CXX to such a compiler."
            )
        built.replace(target)  # atomic: another process may build the same


@contextlib.contextmanager
def pretend(backward: Callable[..., None]) -> Iterator[None]:
    """Make torch treat fake CUDA tensors as a device's, within this context.

    ``backward`` replaces Tensor.backward.
    """
    import torch
    import torch.nn.functional as F

    amp = torch.get_device_module("cuda").amp.common
    changes: tuple[tuple[Any, str, Any], ...] = (
        # Autocast and GradScaler switch themselves off without a device.
        (amp, "amp_definitely_not_available", lambda: False),
        (torch.get_device_module("cuda"), "is_bf16_supported", lambda *_, **__: True),
        # Module.to cannot exchange a fake tensor's device in place.
        (torch.nn.Module, "_apply", _replace_parameters),
        # torch would query the device's driver for its fused kernels.
        (F, "scaled_dot_product_attention", scaled_dot_product_attention),
        (torch.Tensor, "backward", backward),
    )
    with contextlib.ExitStack() as stack:
        for owner, name, value in changes:
            stack.enter_context(mock.patch.object(owner, name, value))
        yield


def _replace_parameters(module: Any, fn: Callable[[Any], Any], recurse: bool = True) -> Any:
    """Apply ``fn`` like nn.Module._apply, with new parameters, made once if shared."""
    import torch

    made: dict[int, Any] = {}
    for part in module.modules() if recurse else [module]:
        for name, old in part._parameters.items():
            if old is not None:
                if id(old) not in made:
                    with torch.no_grad():
                        made[id(old)] = torch.nn.Parameter(fn(old), old.requires_grad)
                part._parameters[name] = made[id(old)]
        for name, old in part._buffers.items():
            if old is not None:
                part._buffers[name] = fn(old)
    return module


def scaled_dot_product_attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """Attend with the kernel that CUDA chooses from compute capability 8.0 on.

    [B, N, L, D] without a mask: FlashAttention in 16 bits, memory-efficient attention in float32.
    With a mask: memory-efficient. Fewer dimensions: matrix products and softmax.
    """
    import torch

    aten = torch.ops.aten
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = (t.to(dtype) for t in (query, key, value))
    if query.dim() != 4 or enable_gqa:
        return aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )[0]
    if attn_mask is None and query.dtype in (torch.bfloat16, torch.float16):
        return aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, scale=scale
        )[0]
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
    )[0]
