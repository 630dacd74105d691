# SPDX-License-Identifier: Apache-2.0
"""Searching a mask by gradient descent: differentiable attention masks (DAM, Shi et al. 2021).

Each cell of a mask has a logit, and is kept with the probability sigmoid(logit). A cell is a
distance abs(i - j) or a band of them (structured, DAM_s), or an entry or a block (unstructured,
DAM_u). Training samples the cells (Gumbel-sigmoid, straight-through); evaluation and export keep a
cell where its logit is above 0. Shapes: L layers (1: shared), H heads, n tokens, C cells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bertbench.common.errors import BadInput
from bertbench.common.masks.mask import AttentionMask, Head
from bertbench.common.masks.patterns import MAX_LENGTH

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
        rate: float = 1.0,
        seed: int = 0,
    ) -> None:
        """Set the cells: ``block`` x ``block`` entries, or as many distances where ``structured``.

        ``symmetric`` is of unstructured masks. Protected from being dropped: the ``window``
        neighbours of each side (0: the diagonal; None: none) and rows and columns of ``globals``
        ([CLS] is 0; that of [SEP] differs between sequences, length - 1 in the longest). Logits
        move at ``rate`` times the optimizer's learning rate.
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
        at = torch.arange(length)
        distance = (at[:, None] - at).abs()
        i, j = at[:, None] // block, at // block
        side = -(-length // block)
        if structured:
            entries = distance // block
        elif symmetric:
            low, high = torch.minimum(i, j), torch.maximum(i, j)
            entries = low * side - low * (low - 1) // 2 + high - low  # of the upper triangle
        else:
            entries = i * side + j
        count = int(entries.max()) + 1
        always = torch.zeros(length, length, dtype=torch.bool)
        always[list(globals)] = always[:, list(globals)] = True
        protected = torch.zeros(count, dtype=torch.bool)
        if window is not None:
            protected[entries[distance <= window]] = True
        counts = torch.bincount(entries[~always], minlength=count).float()
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(layers, heads, count, generator=generator) * _INIT_STD
        self._shape = start.shape
        self.scores = nn.Parameter(start.flatten() / rate)
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

        In training it is a sample whose gradient is that of the soft one; in evaluation, the cells
        with logits above 0.
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
            keep = straight_through(self.logits.float(), self.noise(), tau)
        else:
            keep = (self.logits > 0).float()
        return self._completed(keep)

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
        return lamb * self._replaced(self._keep())

    def hinge(self, ratio: float, *, weight: float = 1.0, tolerance: float = 0.002) -> Tensor:
        """Return ``weight`` x the distance of the sparsity ratio from ``ratio``, float32 [].

        It counts the mask that evaluation and ``export`` give, and is 0 within ``tolerance``. Wang
        et al. 2022 penalise too dense masks only; this one meets the ratio from both sides, for
        comparisons at equal sparsity, once the learning rate has decayed. Raises BadInput for a
        ratio that no mask has.
        """
        if not 0 <= ratio < 1:
            raise BadInput(f"the target sparsity ratio is {ratio}: it must be from 0 to below 1")
        away = self.density() - (1 - ratio)
        return weight * (away.abs() - tolerance).clamp(min=0)

    def density(self) -> Tensor:
        """Return nnz / n^2 of the mask that ``export`` gives, the mean of layers and heads, [].

        Its gradient is that of the expected mask.
        """
        kept = self._completed((self.logits > 0).float())
        heads = self._shape[0] * self._shape[1]
        return self._replaced(kept) / (heads * self.length**2)

    def _replaced(self, keep: Tensor) -> Tensor:
        """Return the entries of ``keep`` [L, H, C], with the gradient of the expected ones, []."""
        with torch.autocast(keep.device.type, enabled=False):
            keep = keep.detach()
            open_ = self.counts * ~self.protected
            expected = (torch.sigmoid(self.logits.float()) * open_).sum()
            per_head = self.always.sum() * (keep.shape[0] * keep.shape[1])
            return (keep * self.counts).sum() + per_head + (expected - expected.detach())

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

    def sparsity_ratio(self) -> float:
        """Return 1 - nnz / n^2 of the mask that ``export`` gives, the mean over layers and heads.

        Padding is ignored.
        """
        return self.export().sparsity_ratio(self.length)


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
