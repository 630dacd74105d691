# SPDX-License-Identifier: Apache-2.0
"""Whether samples can be what MLPerf's procedure makes; one set of bounds for check and run.

The procedure masks 15 % of the tokens, replaces 80 % of those by [MASK], 10 % by random tokens and
keeps 10 %, and takes a random next sentence for half of the samples, and for all of one sentence.
A share is compared within SIGMAS standard deviations of a binomial distribution, so sound data of
any size is doubted less than once in 10**9 looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bertbench.common.data.hdf5 import Limits
from bertbench.common.data.samples import IntArray, Samples, places
from bertbench.common.errors import BadInput

SIGMAS = 6.2
MASKED_LM_PROB, MASK, KEPT = 0.15, 0.8, 0.1
MOST_KEPT = 0.2
"""Above it the inputs show what is to be predicted: the accuracy means nothing."""
MOST_OF_ONE_LABEL = 0.5
"""Above it a constant answer is right more often than wrong."""
MOST_RANDOM_NEXT = 0.9
RAREST_NEXT = 0.01
"""Below it next sentences are all of one kind."""
ENOUGH = 40
"""Samples of which all are alike less than once in 10**11 draws of two kinds."""
MAX_REPEATED = 0.01
"""Share of a file's samples that may occur before: short documents repeat by chance."""
MOST_REPEATED = 0.5
"""Above it a run trains on, or evaluates, fewer samples than it says, or others."""

SAMPLED_ROWS, COMPARED_ROWS = 4096, 1024
"""A run looks at so many samples of each shard, and compares so many with other shards'."""
REFUSED_ROWS = 8 * SAMPLED_ROWS
"""A run refuses what it finds among so many samples. What it finds later, in MLPerf's data hours
later, is a note."""
SHOWN_NOTES = 8

_HASH_ROWS = 4096


class Finding(NamedTuple):
    """Something that MLPerf's procedure does not give."""

    text: str
    impossible: bool
    """Whether a result on such data would mean nothing."""


@dataclass(slots=True, kw_only=True, eq=False)
class Counts:
    """Samples as numbers; counts of several files add up."""

    samples: int = 0
    tokens: int = 0
    random_next: int = 0
    expected: int = 0
    """Masked positions that the procedure gives at these lengths."""
    kept: int = 0
    """Masked positions that show their label."""
    labels: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64 [vocab], how often each token is a label."""
    shown: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64 [vocab], how often each token is at a masked position."""

    @classmethod
    def of(cls, samples: Samples, limits: Limits) -> Counts:
        """Count ``samples`` that are within ``limits``."""
        shown = samples.input_ids[masked_at(samples)]
        wanted = np.maximum(1, np.round(MASKED_LM_PROB * samples.lengths))
        return cls(
            samples=len(samples),
            tokens=int(samples.offsets[-1]),
            random_next=int(samples.next_sentence_labels.sum(dtype=np.int64)),
            expected=int(np.minimum(limits.max_predictions, wanted).sum()),
            kept=int((shown == samples.masked_labels).sum()),
            labels=np.bincount(samples.masked_labels, minlength=limits.vocab_size),
            shown=np.bincount(shown, minlength=limits.vocab_size),
        )

    @classmethod
    def total(cls, counts: Sequence[Counts]) -> Counts:
        """Return the sum of ``counts``, at least one."""
        return cls(**{f.name: sum(getattr(c, f.name) for c in counts) for f in fields(cls)})

    @property
    def masked(self) -> int:
        """Masked positions."""
        return int(self.labels.sum())


def findings(counts: Counts, masked_lm_prob: float = MASKED_LM_PROB) -> list[Finding]:
    """Return what the procedure does not give, worst first; too few samples give nothing."""
    found = [*_next_sentences(counts)]
    masked = counts.masked
    if masked >= ENOUGH:
        found += [*_masks(counts, masked), *_number(counts, masked, masked_lm_prob)]
    return sorted(found, key=lambda one: not one.impossible)


def _next_sentences(counts: Counts) -> list[Finding]:
    n, random = counts.samples, counts.random_next
    rarer, share = min(random, n - random), random / max(1, n)
    kind = "random" if 2 * random > n else "true"
    if n >= ENOUGH and (rarer == 0 or (n >= ENOUGH / RAREST_NEXT and rarer < RAREST_NEXT * n)):
        what = (
            f"{n - rarer:,} of {n:,} next-sentence labels are alike ({kind} next sentences): the "
            f"documents of the text have one sentence each, or the labels are damaged"
        )
        return [Finding(what, True)]
    if share < 0.5 - _bound(0.5, n) or (share > MOST_RANDOM_NEXT and n >= ENOUGH):
        what = f"{share:.1%} of the next sentences are random; MLPerf's procedure gives 50 to 90 %"
        return [Finding(what, False)]
    return []


def _masks(counts: Counts, masked: int) -> list[Finding]:
    """Compare what the masked positions show."""
    found = []
    kept, most = counts.kept / masked, int(counts.labels.max())
    # A random token is the label itself now and then, more often in a small vocabulary.
    chance = KEPT / max(1, int(np.count_nonzero(counts.labels)))
    if kept > MOST_KEPT + _bound(MOST_KEPT, masked):
        what = f"the inputs show {kept:.1%} of the tokens to be predicted, MLPerf's procedure 10 %"
        found.append(Finding(f"{what}: any accuracy can be reached on them", True))
    elif kept > KEPT + chance + _bound(KEPT + chance, masked) or kept < KEPT - _bound(KEPT, masked):
        what = f"the inputs show {kept:.1%} of the tokens to be predicted, MLPerf's procedure 10 %"
        found.append(Finding(what, False))
    if most > (MOST_OF_ONE_LABEL + _bound(MOST_OF_ONE_LABEL, masked)) * masked:
        what = (
            f"{most / masked:.1%} of the tokens to be predicted are token "
            f"{int(counts.labels.argmax())}: a constant answer has that accuracy. The text is not "
            f"of this vocabulary, or the labels are damaged"
        )
        found.append(Finding(what, True))
    mask = int(counts.shown.max()) / masked
    if not -_bound(MASK, masked) <= mask - MASK <= chance + _bound(MASK, masked):
        what = f"{mask:.1%} of the tokens to be predicted show one token, [MASK] or another"
        found.append(Finding(f"{what}; MLPerf's procedure replaces 80 % by [MASK]", False))
    return found


def _number(counts: Counts, masked: int, prob: float) -> list[Finding]:
    """Compare how many positions are masked; a lower limit than the run's gives fewer."""
    wanted = counts.expected * prob / MASKED_LM_PROB
    if 0.5 * wanted <= masked <= 1.05 * wanted + ENOUGH:
        return []
    what = f"{masked / counts.tokens:.1%} of the tokens are to be predicted; MLPerf's procedure"
    return [Finding(f"{what} gives {wanted / counts.tokens:.1%} at these lengths", False)]


def _bound(share: float, n: int) -> float:
    return SIGMAS * float(np.sqrt(share * (1 - share) / max(1, n)))


class Inspection:
    """Look at each shard of a run as it is loaded, and refuse what cannot be before training."""

    def __init__(
        self, limits: Limits, held_out: Samples | None, where: str = "evaluation data"
    ) -> None:
        """Look at all evaluation samples, at least one; None without evaluations.

        Raises BadInput, naming ``where`` they are, for samples on which a result would mean
        nothing.
        """
        self.limits = limits
        self.held_out = np.zeros(0, np.uint64)
        self._counts: list[Counts] = []
        self._paths: dict[Path, None] = {}
        self._notes: dict[str, None] = {}
        self._looked = 0
        self._known, self._owners = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        """Hashes of samples of all shards, ascending, and the number of each one's shard."""
        self._below = np.iinfo(np.uint64).max
        """Of every shard all samples with keys below are known."""
        if held_out is not None:
            whole, self.held_out = hashes(held_out)
            for one in [*findings(Counts.of(held_out, limits)), *_repeats_within(whole)]:
                if one.impossible:
                    raise BadInput(f"{where}: {one.text}; `bertbench data check` examines all data")
                self._notes[f"evaluation data: {one.text}"] = None
        self._leaked = np.zeros(len(self.held_out), bool)
        self._leaks_of: dict[str, int] = {}

    def __call__(self, path: Path, samples: Samples) -> None:
        """Look at some of a shard's samples, once; raises BadInput for what cannot be."""
        if path in self._paths:
            return
        keys = _keys(samples)
        order = np.argsort(keys, kind="stable")[:SAMPLED_ROWS]
        some = samples.take(order)
        counts = Counts.of(some, self.limits)
        whole, texts = hashes(some)
        found = [one for one in findings(counts) if one.impossible] + _repeats_within(whole)
        found += self._repeats(keys[order], whole) + self._leaks(path, texts)
        self._counts.append(counts)
        self._paths[path] = None
        self._looked += len(some)
        for finding in found:
            text = f"{path}: {finding.text}"
            if finding.impossible and self._looked <= REFUSED_ROWS:
                raise BadInput(f"{text}; `bertbench data check` examines all data")
            self._notes[text] = None

    def notes(self) -> list[str]:
        """Return what is unusual in all that was loaded."""
        total = Counts.total(self._counts) if self._counts else Counts()
        found = [*self._notes][:SHOWN_NOTES]
        if len(self._notes) > SHOWN_NOTES:
            more = len(self._notes) - SHOWN_NOTES
            found.append(f"training data: {more:,} more such notes; see `bertbench data check`")
        if self._leaked.sum() > MAX_REPEATED * len(self._leaked):
            most = max(self._leaks_of, key=self._leaks_of.__getitem__)
            found.append(f"training data: {self._leak(f'most of them in {most}')}")
        return found + [f"training data: {one.text}" for one in findings(total)]

    def _repeats(self, keys: IntArray, whole: IntArray) -> list[Finding]:
        """Compare those samples of a shard, in order of ``keys``, that were chosen in all."""
        if len(keys) > COMPARED_ROWS:
            self._below = min(self._below, keys[COMPARED_ROWS])
        new = np.unique(whole[:COMPARED_ROWS][keys[:COMPARED_ROWS] < self._below])
        at = np.searchsorted(self._known, new)
        seen = np.searchsorted(self._known, new, side="right") > at
        owners = self._owners[at[seen]]
        self._known = np.insert(self._known, at[~seen], new[~seen])
        self._owners = np.insert(self._owners, at[~seen], len(self._paths))
        if len(new) < ENOUGH or len(owners) <= MAX_REPEATED * len(new):
            return []
        other = list(self._paths)[np.bincount(owners).argmax()].name
        if len(owners) > MOST_REPEATED * len(new):
            return [Finding(f"it holds the samples of {other}: remove one of them", True)]
        what = f"{len(owners) / len(new):.1%} of its samples are in shards before it, such as"
        return [Finding(f"{what} {other}", False)]

    def _leaks(self, path: Path, texts: IntArray) -> list[Finding]:
        """Add a shard; a finding where the shards now hold too much of the evaluation text."""
        if len(self.held_out) < ENOUGH:
            return []
        here = np.isin(self.held_out, texts)
        self._leaks_of[path.name] = int(here.sum())
        before = self._leaked.mean()
        self._leaked |= here
        if before <= MOST_REPEATED < self._leaked.mean():
            return [Finding(f"it {self._leak('with the shards before it')}", True)]
        return []

    def _leak(self, where: str) -> str:
        share = self._leaked.mean()
        return (
            f"holds the text of {share:.1%} of the evaluation samples, {where}: hold other text out"
        )


def _repeats_within(whole: IntArray) -> list[Finding]:
    """Compare the samples of a set, by their hashes [N], with each other."""
    n, again = len(whole), len(whole) - len(np.unique(whole))
    if n < ENOUGH or again <= MAX_REPEATED * n:
        return []
    what = f"{again:,} of {n:,} samples are others again: make them with `bertbench data prepare`"
    return [Finding(what, again > MOST_REPEATED * n)]


def _keys(samples: Samples) -> IntArray:
    """Return uint64 [N], equal for equal samples: a hash of seven tokens and the length.

    The samples with the lowest keys are a random choice, and the same one from each shard that
    holds them, in whatever order (Broder, 1997, "On the resemblance and containment of
    documents"). All tokens of a large shard would take a second of the first step.
    """
    weights, start, lengths = _weights(4, 8), samples.offsets[:-1], samples.lengths
    keys = lengths.astype(np.uint64) * weights[0]
    for place in range(1, 8):
        ids = samples.input_ids[start + place * lengths // 8].astype(np.uint64)
        keys += (ids + 1) * weights[place]
    return keys


def refuse_impossible(where: str, counts: Counts) -> None:
    """Raise BadInput for samples on which a result would mean nothing."""
    for one in findings(counts):
        if one.impossible:
            raise BadInput(f"{where}: {one.text}; `bertbench data check` examines all data")


def masked_at(samples: Samples) -> IntArray:
    """Return the indices [M] of the masked positions into the flat tokens."""
    return samples.masked_positions + np.repeat(samples.offsets[:-1], samples.masked_counts)


def hashes(samples: Samples) -> tuple[IntArray, IntArray]:
    """Return hashes modulo 2**64 of each sample and of each sample's unmasked tokens.

    A sum of values times random weights, one for each place (Lemire and Kaser, 2014), which numpy
    is fast at. Values differ by less than 2**16, so two samples that differ have equal hashes with
    a chance below 2**-47.
    """
    longest = int(samples.lengths.max(initial=0))
    token, position, label = (_weights(seed, longest) for seed in range(3))
    last = _weights(3, 2)
    whole, texts = [], []
    for start in range(0, len(samples), _HASH_ROWS):
        part = samples.take(np.arange(start, min(start + _HASH_ROWS, len(samples))))
        weights = token[places(part.offsets)]
        ids = _sums((part.input_ids.astype(np.uint64) + 1) * weights, part.offsets)
        rank = places(part.masked_offsets)
        labels = part.masked_labels.astype(np.uint64)
        masked = part.masked_positions * position[rank] + (labels + 1) * label[rank]
        one = ids + _sums(masked, part.masked_offsets)
        one += part.split * last[0] + part.next_sentence_labels.astype(np.uint64) * last[1]
        change = labels - part.input_ids[masked_at(part)]  # modulo 2**64, as everything here
        whole.append(one)
        texts.append(ids + _sums(change * token[part.masked_positions], part.masked_offsets))
    return np.concatenate(whole), np.concatenate(texts)


def _weights(seed: int, n: int) -> IntArray:
    """Return random weights [n], a longer sequence beginning with a shorter one."""
    return np.random.Generator(np.random.PCG64(seed)).integers(1 << 64, size=n, dtype=np.uint64)


def _sums(values: IntArray, offsets: IntArray) -> IntArray:
    """Return the sum of each piece; pieces may be empty."""
    total = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values, out=total[1:])
    return total[offsets[1:]] - total[offsets[:-1]]
