# SPDX-License-Identifier: Apache-2.0
"""The type in which gradients are reduced over ranks, as a communication hook of DDP.

torch's ``bf16_compress_hook`` does the same, but DistributedDataParallel accepts it only beside
NCCL or XCCL, and it divides in bfloat16, which rounds once more.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future

REDUCE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Values of --reduce_dtype."""


def reduce_in(model: nn.parallel.DistributedDataParallel, reduce_dtype: str) -> None:
    """Have ``model`` reduce its gradients in ``reduce_dtype``, a key of REDUCE_DTYPES."""
    dtype = REDUCE_DTYPES[reduce_dtype]
    if dtype != torch.float32:  # DDP's own way
        # A lambda, since DDP refuses annotations that are text.
        model.register_comm_hook(dtype, lambda dtype, bucket: _mean(dtype, bucket))


def _mean(dtype: torch.dtype, bucket: Any) -> Future[Tensor]:
    """Start to average a bucket's gradients [N] over all ranks: rounded, added, divided."""
    buffer = bucket.buffer()
    added: Future[list[Tensor]] = dist.all_reduce(buffer.to(dtype), async_op=True).get_future()
    return added.then(lambda done: buffer.copy_(done.value()[0]).div_(dist.get_world_size()))
