# SPDX-License-Identifier: Apache-2.0
"""Searching a mask by gradient descent: differentiable attention masks (DAM, Shi et al. 2021).

Each cell of a mask has a logit, and is kept with the probability sigmoid(logit). A cell is a
distance abs(i - j) or a band of them (structured, DAM_s), or an entry or a block (unstructured,
DAM_u). Training samples the cells (Gumbel-sigmoid, straight-through). Evaluation and export keep a
cell where its logit is above 0, or with a target sparsity the most probable cells that meet it.
Shapes: L layers (1: shared), H heads, n tokens, C cells.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertbench.common.errors import BadInput
from bertbench.common.masks.mask import AttentionMask, Head
from bertbench.common.masks.patterns import MAX_LENGTH

if TYPE_CHECKING:
    from bertbench.common.data.batch import Tokens

_INIT_STD = 2**0.5 * 1e-3
"""Of a logit: the difference of the reference's two, each 1e-3 x normal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Temperature:
    """The sampler's temperature: from ``start`` to ``end`` in ``steps``, by a constant factor.

    It changes gradients, not which cells are kept. The reference stays at 1.
    """

    start: float = 1.0
    end: float = 1.0
    steps: int = 0

    def __post_init__(self) -> None:
        """Raise BadInput for a temperature that is not positive, or a negative number of steps."""
        if not 0 < self.start < 1e6 or not 0 < self.end < 1e6 or self.steps < 0:
            raise BadInput(f"temperatures are above 0 and steps from 0: not {self}")

    def at(self, step: int) -> float:
        """Return the temperature of a step, from 0."""
        share = min(1.0, step / self.steps) if self.steps else 1.0
        return self.start * (self.end / self.start) ** share


class MaskSearch(nn.Module):
    """A mask for ``length`` tokens of which every cell can be learnt: call it for [L, H, n, n].

    Call ``advance`` after each optimizer step. All micro-batches of a step, and all ranks, draw the
    same cells, which depend on (seed, step) only; a resumed search goes on with its step's.
    Raises BadInput for sizes that no mask has.
    """

    scores: nn.Parameter
    """float32 [L H C], the logits over ``rate``: one vector, which no optimizer decays or takes a
    trust ratio of (as in the reference)."""
    step: Tensor
    """int64 [], the optimizer steps done; saved with the logits."""
    cells: Tensor
    """int64 [n, n], the cell of each entry."""
    counts: Tensor
    """float32 [C], each cell's entries, without those of global tokens."""
    protected: Tensor
    """bool [C], cells that are always kept."""
    always: Tensor
    """bool [n, n], rows and columns of global tokens."""

    def __init__(
        self,
        length: int,
        heads: int,
        *,
        layers: int = 1,
        structured: bool = True,
        symmetric: bool = True,
        block: int = 1,
        window: int | None = None,
        globals: Sequence[int] = (),
        temperature: Temperature | None = None,
        ratio: float | None = None, start: float = 0.5, ramp: int = 0,
        rate: float = 1.0,
        seed: int = 0,
    ) -> None:  # fmt: skip
        """Set the cells: ``block`` x ``block`` entries, or as many distances where ``structured``.

        ``symmetric`` is of unstructured masks. Protected from being dropped: the ``window``
        neighbours of each side (0: the diagonal; None: none) and rows and columns of ``globals``
        ([CLS] is 0; that of [SEP] differs between sequences, length - 1 in the longest). ``ratio``
        is the target sparsity, which ``hinge`` and ``export`` meet. Cells are kept with the
        probability ``start`` at first, and the target is approached in ``ramp`` steps. Logits move
        at ``rate`` times the optimizer's learning rate.
        """
        super().__init__()
        if not 1 < length <= MAX_LENGTH or min(heads, layers, block) < 1 or block > length:
            raise BadInput(
                f"a search has 2 to {MAX_LENGTH} tokens, heads and layers from 1, and blocks of at "
                f"most its tokens: not {length} tokens, {heads} heads, {layers} layers, {block}"
            )
        if not all(0 <= at < length for at in globals):
            raise BadInput(f"global tokens {list(globals)} must be from 0 to {length - 1}")
        self.length, self.structured, self.seed, self.rate = length, structured, seed, rate
        self.temperature = temperature or Temperature()
        if ratio is not None and not 0 <= ratio < 1:
            raise BadInput(f"the target sparsity ratio is {ratio}: it must be from 0 to below 1")
        if not 0 < start < 1 or ramp < 0:
            raise BadInput(f"cells start with a probability between 0 and 1, not {start}")
        self.ratio, self.start, self.ramp = ratio, start, ramp
        at = torch.arange(length)
        distance = (at[:, None] - at).abs()
        entries = _cells(length, block, structured=structured, symmetric=symmetric)
        count = int(entries.max()) + 1
        always = torch.zeros(length, length, dtype=torch.bool)
        always[list(globals)] = always[:, list(globals)] = True
        protected = torch.zeros(count, dtype=torch.bool)
        if window is not None:
            protected[entries[distance <= window]] = True
        counts = torch.bincount(entries[~always], minlength=count).float()
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(layers, heads, count, generator=generator) * _INIT_STD
        self._shape = drawn.shape
        self.scores = nn.Parameter((drawn.flatten() + math.log(start / (1 - start))) / rate)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        for name, value in (
            ("cells", entries), ("counts", counts), ("protected", protected), ("always", always),
        ):  # fmt: skip
            self.register_buffer(name, value, persistent=False)

    @property
    def logits(self) -> Tensor:
        """The logit of each cell, float32 [L, H, C]."""
        return (self.scores * self.rate).view(self._shape)

    # -- masks ------------------------------------------------------------------------------------
    def forward(self) -> Tensor:
        """Return the mask, float32 [L, H, n, n] of zeros and ones.

        In training it is a sample whose gradient is that of the soft one; in evaluation, what
        ``export`` gives.
        """
        mask = self._keep()[..., self.cells]
        return torch.where(self.always, torch.ones((), device=mask.device), mask)

    def advance(self) -> None:
        """Go on to the next optimizer step's sample and temperature."""
        self.step += 1

    def noise(self) -> Tensor:
        """Return the step's logistic noise, float32 [L, H, C], made on the host."""
        text = f"{self.seed} {int(self.step)}".encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:4], "big")
        uniform = torch.rand(self._shape, generator=torch.Generator().manual_seed(seed))
        return uniform.clamp(1e-6, 1 - 1e-6).logit().to(self.scores.device)

    def _keep(self) -> Tensor:
        """Return the cells that are kept, float32 [L, H, C]: no query is left without a key."""
        if self.training:
            tau = self.temperature.at(int(self.step))
            return self._completed(straight_through(self.logits.float(), self.noise(), tau))
        return self._completed(self._chosen())

    @torch.no_grad()
    def _chosen(self) -> Tensor:
        """Return the cells that evaluation keeps, float32 [L, H, C], before ``_completed``."""
        if self.ratio is None:
            return (self.logits > 0).float()
        masks = self._shape[0] * self._shape[1]
        fixed = self.always.sum() + (self.counts * self.protected).sum()
        budget = masks * ((1 - self.ratio) * self.length**2 - fixed)
        sizes = (self.counts * ~self.protected).expand(self._shape).flatten()
        order = self.logits.flatten().argsort(descending=True, stable=True)
        keep = torch.zeros_like(sizes)
        keep[order] = (sizes[order].double().cumsum(0) <= budget).float()
        return keep.view(self._shape)

    def _completed(self, keep: Tensor) -> Tensor:
        """Return ``keep`` [L, H, C] with the cells that must be, gradients unchanged: [L, H, C].

        Those protected, and the diagonal's of each query that would have no key in a sequence that
        ends with it (of two tokens for the first query).
        """
        given, keep = keep, keep.detach() > 0
        needed = self.protected.expand_as(keep)
        at = torch.arange(self.length, device=keep.device)
        near = at <= at.clamp(min=1)[:, None]
        open_ = ((keep | needed)[..., self.cells] | self.always) & near
        empty = ~open_.any(-1)
        diagonal = self.cells.diagonal().expand_as(empty)
        found = torch.zeros(keep.shape, device=keep.device).scatter_add_(
            -1, diagonal, empty.float()
        )
        return given + ((needed | (found > 0)) & ~keep).float()

    # -- penalties --------------------------------------------------------------------------------
    def penalty(self, lamb: float) -> Tensor:
        """Return ``lamb`` x the sum over the sampled mask of all layers and heads, float32 [].

        The value is the reference's (--lamb), also in fp16, where its own overflows. The gradient
        is that of the expected mask, so that it reaches every cell, not only those sampled on.
        """
        with torch.autocast(self.scores.device.type, enabled=False):
            expected = self._entries(torch.sigmoid(self.logits.float()))
            kept = self._entries(self._keep().detach())
            return lamb * (kept + (expected - expected.detach()))

    def hinge(self, weight: float = 1.0) -> Tensor:
        """Return ``weight`` x the distance of the expected sparsity from ``ratio``, float32 [].

        Samples then have the target's sparsity, on average, and so has ``export``. In the first
        ``ramp`` steps it is approached as in gradual pruning (Zhu and Gupta 2017: by the cube of
        what is left). Wang et al. 2022 penalise too dense masks only; this one comes from both
        sides, for comparisons at equal sparsity. Raises BadInput without a ``ratio``.
        """
        if self.ratio is None:
            raise BadInput("a search without a target sparsity has no distance from it")
        with torch.autocast(self.scores.device.type, enabled=False):
            expected = self._entries(torch.sigmoid(self.logits.float()))
        density = expected / (self._shape[0] * self._shape[1] * self.length**2)
        left = max(0.0, 1 - int(self.step) / self.ramp) if self.ramp else 0.0
        goal = 1 - self.ratio
        return weight * (density - goal - (self.start - goal) * left**3).abs()

    @torch.no_grad()
    def density(self) -> Tensor:
        """Return nnz / n^2 of what ``export`` gives, the mean of layers and heads, float32 []."""
        kept = self._entries(self._completed(self._chosen()))
        return kept / (self._shape[0] * self._shape[1] * self.length**2)

    def _entries(self, keep: Tensor) -> Tensor:
        """Return the entries of cells kept with probabilities ``keep`` [L, H, C], float32 []."""
        own = torch.where(self.protected, torch.ones_like(keep), keep) * self.counts
        return own.sum() + self.always.sum() * (keep.shape[0] * keep.shape[1])

    # -- results ----------------------------------------------------------------------------------
    @torch.no_grad()
    def export(self) -> AttentionMask:
        """Return the mask of evaluation: bits per distance where they can be, else bits [n, n]."""
        training = self.training
        try:
            mask = self.eval()().bool().cpu().numpy()
        finally:
            self.train(training)
        bands = self.structured and not bool(self.always.any())
        rows: list[list[Head]] = [[head[0] if bands else head for head in layer] for layer in mask]
        return AttentionMask(rows)


def _cells(length: int, block: int, *, structured: bool, symmetric: bool) -> Tensor:
    """Return the cell of each entry of a mask, int64 [n, n] from 0."""
    at = torch.arange(length)
    if structured:
        return (at[:, None] - at).abs() // block
    i, j = at[:, None] // block, at // block
    side = -(-length // block)
    if not symmetric:
        return i * side + j
    low, high = torch.minimum(i, j), torch.maximum(i, j)
    return low * side - low * (low - 1) // 2 + high - low  # of the upper triangle


def straight_through(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Return 1 where ``logits`` + ``noise`` [...] is above 0, else 0: [...].

    The gradient is that of sigmoid((logits + noise) / temperature): the Gumbel-softmax of two
    channels (Jang et al. 2017) with the difference of their logits and noises.
    """
    soft = torch.sigmoid((logits + noise) / temperature)
    hard = (logits + noise > 0).to(soft.dtype)
    return hard + (soft - soft.detach())


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Return mask x exp(scores) / its sum over keys, float32 [..., n, n], for a mask of 0 and 1.

    The value is that of a softmax over the kept keys. ``mask`` [..., n, n] has a gradient for
    dropped keys too, in which a key scores at most what the best kept one does; adding -1e4 to
    their scores gives them none. Each row of ``mask`` needs a 1.
    """
    scores, mask = scores.float(), mask.float()
    best = scores.detach().masked_fill(mask.detach() == 0, float("-inf")).amax(-1, keepdim=True)
    weights = (scores - best).clamp(max=0).exp() * mask
    return weights / weights.sum(-1, keepdim=True)


def searched_attention(
    qkv: Tensor, tokens: Tokens, mask: Tensor, *, num_heads: int, dropout: float
) -> Tensor:
    """Return attention through a mask that is being learnt: [T, 3H] -> [T, H].

    ``mask`` is float32 [1 or N, L, L] of 0 and 1 and gets a gradient in every entry, so all scores
    are computed, in plain PyTorch on every device: a search's speed is not what is measured.
    """
    hidden, out = qkv.shape[1] // 3, []
    for part in qkv.split(tokens.lengths):
        n = len(part)
        q, k, v = part.view(n, 3, num_heads, hidden // num_heads).permute(1, 2, 0, 3)
        scores = q @ k.transpose(1, 2) * (hidden // num_heads) ** -0.5
        weights = F.dropout(masked_softmax(scores, mask[:, :n, :n]), dropout)
        out.append((weights.to(v.dtype) @ v).transpose(0, 1).reshape(n, hidden))
    return torch.cat(out)
