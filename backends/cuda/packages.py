# SPDX-License-Identifier: Apache-2.0
"""Kernels of apex and TransformerEngine, used only when they are installed and requested.

Written from their public sources (apex: csrc/multi_tensor_lamb.cu and optimizers/fused_lamb.py;
TransformerEngine: pytorch/attention/dot_product_attention); not run here.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bertbench.backends.cuda.ops import Kernel, check_inputs
from bertbench.common.data.batch import Tokens
from bertbench.common.errors import Unsupported
from bertbench.common.model.ops import ComputeTypeOps
from bertbench.common.optim.lamb import LambKernel, LambStep, lamb_update, matrices

HOW_TO_GET = {
    "apex": "NVIDIA's apex is built from its repository with APEX_CPP_EXT=1 APEX_CUDA_EXT=1, or "
    "comes with NVIDIA's PyTorch container (the `apex` on the package index is another project)",
    "transformer_engine": "pip install --no-build-isolation transformer_engine[pytorch], which "
    "compiles against this torch and CUDA, or use NVIDIA's PyTorch container",
}
_MODULES = {"apex": "amp_C", "transformer_engine": "transformer_engine"}
"""Package -> the module that proves it; amp_C is apex's compiled extension."""

_CHUNK = 2048 * 32
"""Elements that one block of apex's kernels updates (apex/multi_tensor_apply/__init__.py)."""


def why_no_package(name: str) -> str | None:
    """Return why ``name`` (a key of HOW_TO_GET) cannot be used, or None; import nothing."""
    if importlib.util.find_spec(_MODULES[name]) is not None:
        return None
    part = "without its CUDA extensions " if importlib.util.find_spec(name) is not None else ""
    return f"{'installed ' + part if part else 'not installed '}({HOW_TO_GET[name]})"


def load(name: str, module: str) -> Any:
    """Import ``module`` of the package; raise Unsupported when it is missing or broken."""
    why = why_no_package(name)
    if why is None:
        try:
            return importlib.import_module(module)
        except Exception as error:  # whatever a binary extension may raise
            why = f"failed to load: {type(error).__name__}: {error}"
    raise Unsupported(f"--kernels {name}: {why}")


class ApexLamb:
    """The formula of common/optim/lamb.py in apex's multi-tensor kernels.

    Overwrites the gradients with the update. All tensors must be contiguous. The kernel clips by a
    norm and its limit: here the factor's reciprocal and 1, of which it takes none below 1.
    """

    def __init__(self) -> None:
        self._lamb = load("apex", "amp_C").multi_tensor_lamb
        self._constants: tuple[Tensor, Tensor] | None = None

    def __call__(self, s: LambStep) -> None:
        if self._constants is None:
            device = s.params[0].device
            no_overflow = torch.zeros(1, dtype=torch.int32, device=device)
            self._constants = no_overflow, torch.zeros(1, device=device)
        no_overflow, grad_norm = self._constants
        if s.clip_factor is not None:
            grad_norm = s.clip_factor.reciprocal().view(1)
        # Norms are per tensor: stacked matrices go in as views of the single ones.
        lists = [
            matrices(tensors, s.segments)
            for tensors in (s.grads, s.params, s.exp_avgs, s.exp_avg_sqs)
        ]
        self._lamb(
            _CHUNK, no_overflow, lists, s.lr, s.beta1, s.beta2, s.eps, s.step,
            1,  # bias correction
            s.weight_decay,
            1,  # the mean of gradients takes (1 - beta1) of the new one
            1,  # decoupled weight decay
            grad_norm, 1.0,
            False,  # the trust ratio only where there is weight decay
        )  # fmt: skip


def lamb_why_not(kernel: LambKernel, device: torch.device) -> str | None:
    """Compare two tiny updates with ``lamb_update``'s; return why they differ, or None."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((12, 8), (5, 3))]
    worst = 0.0
    for weight_decay in (0.01, 0.0):
        results = []
        for update, on in ((kernel, device), (lamb_update, torch.device("cpu"))):
            p, m, v = ([t.to(on, copy=True).mul_(f) for t in start] for f in (1.0, 0.0, 0.0))
            for step in (1, 2):
                g = [t.to(on, copy=True).sin_() for t in start]
                clip = torch.tensor(0.75, device=on)
                update(LambStep(p, g, m, v, [3, 1], 0.1, 0.9, 0.99, 1e-6, weight_decay, step, clip))
            results.append(torch.cat([t.cpu().flatten() for t in (*p, *m, *v)]))
        worst = max(worst, float((results[0] - results[1]).abs().max()))
    return None if worst <= 1e-5 else f"its update differs from the plain one by {worst:.1e}"


class TransformerEngineOps(ComputeTypeOps):
    """Attention by TransformerEngine; it chooses between cuDNN's and flash-attn's kernels.

    Its LayerNorm is a module that holds its own parameters, so the model's stays torch's.
    """

    name = "transformer_engine"
    KERNEL = Kernel(
        label="transformer-engine-thd", dtypes=(torch.bfloat16, torch.float16), head_multiple=8
    )

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__(dtype)
        self._te = load("transformer_engine", "transformer_engine.pytorch")
        self._modules: dict[tuple[int, int, float], Any] = {}

    @property
    def kernels(self) -> Mapping[str, str]:
        return {**super().kernels, "attention": self.KERNEL.label}

    def attention(self, qkv: Tensor, tokens: Tokens, *, num_heads: int, dropout: float) -> Tensor:
        """Return [T, H] from [T, 3H]; raise Unsupported as ``check_inputs``."""
        hidden = qkv.shape[1] // 3
        head = hidden // num_heads
        check_inputs(self.name, self.KERNEL, qkv.dtype, head)
        # Dropout belongs to the module, which has no parameters: one for each rate.
        key = (num_heads, head, dropout)
        if key not in self._modules:
            self._modules[key] = self._te.DotProductAttention(
                num_heads,
                head,
                attention_dropout=dropout,
                qkv_format="thd",
                attn_mask_type="padding",
            )
        q, k, v = qkv.view(len(qkv), 3, num_heads, head).unbind(1)
        out: Tensor = self._modules[key](
            q,
            k,
            v,
            qkv_format="thd",
            attn_mask_type="padding",
            cu_seqlens_q=tokens.cu_seqlens,
            cu_seqlens_kv=tokens.cu_seqlens,
            max_seqlen_q=tokens.max_length,
            max_seqlen_kv=tokens.max_length,
        )
        return out.reshape(len(qkv), hidden)
