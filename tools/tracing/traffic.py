# SPDX-License-Identifier: Apache-2.0
"""Derive bytes, arithmetic and launches of one ATen operation from its arguments and results.

Bytes are a lower bound: the operation reads each element that it needs once, and writes each
element of its results once. A tensor given twice and the repeats of an expanded tensor count once;
operations by index touch the rows that they name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from tracing.launches import CAT_TENSORS, LIMITS, NORM_TENSORS, Limits, multi_tensor

DEVICE = "cuda"
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty"}
ALLOCATIONS |= {"new_empty_strided", "resize_", "set_", "lift_fresh", "lift"}
METADATA = {"detach_", "squeeze_", "unsqueeze_", "t_", "transpose_", "as_strided_"}
SHAPE_ONLY = {"zeros_like", "ones_like", "full_like", "rand_like", "randn_like"}
SHAPE_ONLY |= {"new_zeros", "new_ones", "new_full"}
"""Operations that use only their argument's shape and type."""
OVERWRITES = {"copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_", "random_"}
OVERWRITES |= {"_foreach_copy_", "_foreach_zero_"}
"""In-place operations that do not read the replaced values."""
UNREAD = {"nll_loss_backward": "self", "native_layer_norm_backward": "bias"}
"""Arguments that only give a shape."""
GATHERS = {"embedding": "weight", "index_select": "self", "gather": "self", "index": "self"}
GATHERS |= {"nll_loss_forward": "self"}
"""Operation -> the argument of which it reads some elements."""
SCATTERS = {"index_put": "values", "_index_put_impl": "values", "index_add": "source"}
SCATTERS |= {"index_copy": "source", "scatter": "src", "scatter_add": "src"}
SCATTERS |= {"embedding_dense_backward": "grad_output"}
"""Operation (in place or not) -> the argument whose elements it spreads over its result."""
ADDS = {"index_add", "scatter_add", "embedding_dense_backward"}
"""Those that add to their target, and so read it as well."""
PRODUCTS = {"mm": 0, "bmm": 0, "mv": 0, "linear": 0, "_scaled_mm": 0, "_grouped_mm": 0}
PRODUCTS |= {"addmm": 1, "baddbmm": 1, "addmv": 1, "_addmm_activation": 1}
"""Matrix products -> the position of the first factor, whose last dimension is summed over."""
BACKWARD_PRODUCTS = 2.5
"""Fused attention: five products backward (it computes the scores again) for two forward."""


class Call:
    """One operation called on the device."""

    def __init__(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        """``func`` is an OpOverload, the rest its arguments and result."""
        schema = func._schema
        self.name: str = schema.name.rpartition("::")[2]
        self.overload: str = schema.overload_name
        self.base = self.name if self.name.startswith("_f") else self.name.removesuffix("_")
        self.results = list(tensors(result))
        self._mutable: bool = schema.is_mutable
        # In autograd a subclass of Tensor, as fake ones are, gets the form that is not in place.
        self._only_rows = self.base in SCATTERS and self.name.endswith(("_", "index_add"))
        self.values = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
        self._arguments = [a for a in schema.arguments if self.values.get(a.name) is not None]

    @property
    def devices(self) -> set[str]:
        """The device types of all its tensors."""
        given = (t for value in self.values.values() for t in tensors(value))
        return {t.device.type for t in (*given, *self.results)}

    @property
    def is_view(self) -> bool:
        """Whether it only describes or allocates memory."""
        if self.name in ALLOCATIONS | METADATA:
            return True
        if self._mutable:
            return False
        owned = {storage(t) for value in self.values.values() for t in tensors(value)}
        return all(storage(t) in owned for t in self.results)

    # -- bytes --------------------------------------------------------------------------------
    def bytes(self) -> int:
        """Return the minimum of bytes read and written on the device."""
        read = [t for a in self._arguments if self._reads(a) for t in tensors(self.values[a.name])]
        written: list[Tensor] = []
        if not self._only_rows:
            changed = [self.values[a.name] for a in self._arguments if self._writes(a)]
            written = [*tensors(changed), *self.results]
        return unique_bytes(read) + unique_bytes(written) + self._by_index()

    def _reads(self, argument: Any) -> bool:
        if self.base in SHAPE_ONLY or UNREAD.get(self.name) == argument.name:
            return False
        if argument.name == GATHERS.get(self.name):
            return False
        if self._only_rows and argument.name == "self":
            return False
        return not ((argument.is_out or self.name in OVERWRITES) and argument.is_write)

    def _writes(self, argument: Any) -> bool:
        if self.name.startswith("_fused_adam") and argument.name == "grads":
            return self.values.get("grad_scale") is not None  # else they are unchanged
        return bool(argument.is_write)

    def _by_index(self) -> int:
        """Return the bytes of the elements that an index names; repeats may count once."""
        if self.name in GATHERS:
            source = self.values[GATHERS[self.name]]
            named = self.values["target"] if "target" in self.values else self.results[0]
            return min(touched(source), named.numel() * source.element_size())
        if self.base in SCATTERS:
            target, spread = self.results[0], self.values[SCATTERS[self.base]]
            rows = min(touched(target), spread.numel() * target.element_size())
            adds = self.base in ADDS or self.values.get("accumulate", False)
            return rows * (2 if adds else 1)
        return 0

    # -- arithmetic ---------------------------------------------------------------------------
    @property
    def is_product(self) -> bool:
        return self.base in PRODUCTS

    @property
    def is_attention(self) -> bool:
        """Whether it is a fused attention kernel, not one of products and softmax."""
        return "attention" in self.name

    @property
    def is_backward(self) -> bool:
        return self.name.endswith("_backward")

    def flops(self, squares: int) -> int:
        """Return FLOPs, two per multiplication and addition; ``squares``: squared lengths' sum."""
        if self.is_product:
            values = list(self.values.values())
            return 2 * self.results[0].numel() * values[PRODUCTS[self.base]].shape[-1]
        if not self.is_attention:
            return 0
        query, key = self.values["query"], self.values["key"]
        ragged = any(self.values.get(n) is not None for n in ("cum_seq_q", "cu_seqlens_q"))
        if ragged:  # [.., T, N, D]
            forward = 4 * query.shape[-1] * query.shape[-2] * squares
        else:  # [.., L, D]
            forward = 4 * query.numel() * key.shape[-2]
        return int(forward * BACKWARD_PRODUCTS) if self.is_backward else forward

    # -- launches -----------------------------------------------------------------------------
    def launches(self, limits: Limits = LIMITS[4]) -> int:
        """Return an estimate of the kernels: one, or those of CUDA's multi-tensor operations."""
        if self.base in ("cat", "stack"):
            count = len(next(v for v in self.values.values() if isinstance(v, (list, tuple))))
            return -(-count // CAT_TENSORS)
        if self.name in ("select_backward", "slice_backward"):
            return 2  # zeros and a copy
        if self.name.startswith(("_foreach_", "_fused_", "_amp_foreach_")):
            return self._multi_tensor(limits)
        return 1

    def _multi_tensor(self, limits: Limits) -> int:
        lists = [
            list(tensors(value))
            for name, value in self.values.items()
            if isinstance(value, (list, tuple)) and name != "state_steps"
        ]
        lists = [one for one in lists if one]
        norm = self.name == "_foreach_norm"
        if not self._mutable and not norm:
            lists.append(self.results)
        if not fast_route(lists):
            return len(lists[0])
        sizes = [t.numel() for t in lists[0]]
        scalar_list = self.overload == "ScalarList"
        count = multi_tensor(sizes, len(lists), limits, scalar_list=scalar_list)
        # Partial norms have a buffer of zeros, and are added up.
        return count + (1 + -(-len(sizes) // NORM_TENSORS) if norm else 0)


def fast_route(lists: Sequence[Sequence[Tensor]]) -> bool:
    """Return whether CUDA computes on ``lists`` of [any shape] in common launches (ForeachUtils.h).

    All tensors must be dense and of one type, and the lists must agree in sizes and strides.
    """
    first = lists[0]
    return all(
        t.dtype == first[0].dtype
        and t.shape == like.shape
        and is_dense(t)
        and all(n == 1 or t.stride(i) == like.stride(i) for i, n in enumerate(t.shape))
        for one in lists
        for t, like in zip(one, first, strict=True)
    )


def is_dense(tensor: Tensor) -> bool:
    """Return whether the elements fill their memory without gaps or repeats, in any order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in an argument or result."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)


def on_device(tensor: Tensor) -> bool:
    """Return whether it is on the traced device."""
    return tensor.device.type == DEVICE


def storage(tensor: Tensor) -> int:
    """Return the identity of its memory."""
    return tensor.untyped_storage()._cdata


def touched(tensor: Tensor) -> int:
    """Return the bytes of the elements in memory; an expanded dimension counts once."""
    count = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride or not size else 1
    return count


def unique_bytes(given: Iterable[Tensor]) -> int:
    """Return the bytes of the tensors on the device, each counted once."""
    seen = {
        (storage(t), t.storage_offset(), tuple(t.shape), t.stride(), t.dtype): t
        for t in given
        if on_device(t)
    }
    return sum(map(touched, seen.values()))
