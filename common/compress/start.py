# SPDX-License-Identifier: Apache-2.0
"""Compression before the first step: pruning by magnitude, and the quantizers' calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from bertbench.common.compress.layers import (
    Choice,
    compress,
    compressed_layers,
    named_quantizers,
)
from bertbench.common.compress.pruning import KEPT, most_nonzeros
from bertbench.common.compress.quantizer import PERCENTILE, least_squares, percentile
from bertbench.common.compress.refit import prune_and_refit
from bertbench.common.config.recipe import Recipe
from bertbench.common.errors import BadInput
from bertbench.common.files import shown

if TYPE_CHECKING:
    from bertbench.common.distributed.world import World

CALIBRATION_SAMPLES = 128
"""Over all ranks: "MLPerf INT8 BERT Finetuning" (mlcommons/inference, language/bert)."""
_RANGE = ".amax"


@dataclass(slots=True)
class Compression:
    """The compression that a recipe asks for."""

    prune: bool
    quantize: bool
    refit: bool = False
    """The kept weights make up for the pruned ones."""
    percentile: float | None = PERCENTILE
    """Of the activations' magnitudes: where their range ends; None: by the least squared error,
    and that of the weights as well."""
    calibration_samples: int = 0
    ranges: Mapping[str, Tensor] = field(default_factory=dict)
    """What the quantizers start from, by name; without any they are calibrated."""

    @classmethod
    def of(cls, recipe: Recipe, model: nn.Module) -> Compression | None:
        """Give ``model`` compressed layers where ``recipe`` asks for them; else return None.

        The values of the parameters are those of ``model`` until ``start``.
        """
        prune = getattr(recipe, "weight_sparsity", None) is not None
        quantize = getattr(recipe, "quantization", None) is not None
        if not (prune or quantize):
            return None
        compress(model, prune=prune, quantize=quantize)
        if prune and not any(layer.pruned for layer in compressed_layers(model)):
            raise BadInput(
                "--weight_sparsity: no weight of this model can be 2:4 sparse: their rows must be "
                "multiples of 8 and their columns of 16. Choose another --hidden_size"
            )
        share = getattr(recipe, "calibration_percentile", PERCENTILE)
        by_error = getattr(recipe, "calibration", "percentile") == "mse"
        refit = prune and getattr(recipe, "pruning", "magnitude") == "least_squares"
        return cls(prune, quantize, refit, None if by_error else share)

    def start(
        self,
        model: nn.Module,
        steps: Iterable[Any],
        forward: Callable[[Any, Any], Any],
        world: World,
    ) -> list[str]:
        """Prune ``model`` and calibrate it on this rank's first ``steps``; return notes.

        ``forward`` takes a micro-batch on the model's device and its step. Where ``ranges`` are
        known they are taken over instead. Where a checkpoint is resumed afterwards, its masks and
        scales replace these. Raises BadInput for ranges of some of the activations only.
        """
        device, taken = next(model.parameters()).device, list[Any]()

        def run() -> None:
            for step in taken:
                for batch in step.micro_batches:
                    forward(batch.to(device), step)

        if self.refit or (self.quantize and not self.ranges):
            taken += _first(steps, CALIBRATION_SAMPLES)
            self.calibration_samples = sum(step.num_samples for step in taken)
        if self.refit:
            prune_and_refit(model, run, world)
        else:
            for layer in compressed_layers(model):
                layer.prune()
        if self.quantize and self.ranges:
            take_ranges(model, self.ranges)
        elif self.quantize:
            calibrate(model, run, world, self.percentile)
        return self._notes(model)

    @property
    def _method(self) -> str:
        return "mse" if self.percentile is None else "percentile"

    def facts(self, model: nn.Module) -> dict[str, Any]:
        """Return for the record what is compressed in ``model`` now.

        Raises ValueError where a pruned weight has more than two of four entries.
        """
        kept, entries, matrices = 0, 0, 0
        for layer in compressed_layers(model):
            for name in layer.pruned:
                weight = getattr(layer, name).weight
                if most_nonzeros(weight) > KEPT:
                    raise ValueError(f"{name}: more than {KEPT} of four weights are not zero")
                kept += int((weight != 0).sum())
                entries += weight.numel()
                matrices += 1
        names = list(named_quantizers(model))
        weights = sum(name.endswith("_weight") for name in names)
        calibrated = self.quantize and not self.ranges and self.calibration_samples
        return {
            "pruned_weights": matrices,
            "pruned_weights_kept": kept / entries if entries else None,
            "pruning": ("least_squares" if self.refit else "magnitude") if self.prune else None,
            "quantized_weights": weights,
            "quantized_activations": len(names) - weights,
            "calibration_samples": self.calibration_samples or None,
            "calibration": self._method if calibrated else None,
            "calibration_percentile": self.percentile if calibrated else None,
        }

    def _notes(self, model: nn.Module) -> list[str]:
        found, notes = self.facts(model), []
        if self.prune:
            notes.append(
                f"2:4 sparsity: {found['pruned_weights']} weight matrices keep "
                f"{100 * found['pruned_weights_kept']:.1f} % of their entries"
                + (f", refitted on {self.calibration_samples} samples" if self.refit else "")
            )
        if self.quantize and self.ranges:
            new = len(named_quantizers(model).keys() - self.ranges.keys())
            notes.append(
                f"INT8: {len(self.ranges)} ranges are those of the starting weights, and {new} "
                f"weights are at their largest magnitude: no calibration"
            )
        elif self.quantize:
            weights, activations = (found[f"quantized_{n}"] for n in ("weights", "activations"))
            where = " at their largest magnitude,", f"at the {self.percentile} percentile"
            if self.percentile is None:
                where = " and", "at the least squared error"
            notes.append(
                f"INT8: {weights} weights{where[0]} {activations} activations {where[1]} of "
                f"{self.calibration_samples} samples"
            )
        return notes


def _first(steps: Iterable[Any], samples: int) -> list[Any]:
    """Return as many of ``steps`` as have ``samples``, or all."""
    taken, found = [], 0
    for step in steps:
        taken.append(step)
        found += step.num_samples
        if found >= samples:
            break
    return taken


def ranges_in(weights: Path | None) -> dict[str, Tensor]:
    """Return the quantizers' ranges, [] each, that a file of starting weights has, by name.

    Checkpoints of compressed runs have them, and weights that ``import-weights`` wrote.
    """
    if weights is None or weights.suffix != ".safetensors":
        return {}
    with safe_open(weights, "pt") as file:
        names = [name for name in file.keys() if name.endswith(_RANGE)]  # noqa: SIM118
        return {name.removesuffix(_RANGE): file.get_tensor(name) for name in names}


def take_ranges(model: nn.Module, ranges: Mapping[str, Tensor]) -> None:
    """Set the quantizers of ``model`` to ``ranges``, [] by name; they quantise from then on.

    Weights without one are at their largest magnitude. Raises BadInput where an activation has
    none, a range belongs to no quantizer, or is not above 0.
    """
    quantizers = named_quantizers(model)
    lacking = [n for n in quantizers if n not in ranges and not n.endswith("_weight")]
    if lacking or ranges.keys() - quantizers.keys():
        other = [*lacking, *sorted(ranges.keys() - quantizers.keys())]
        raise BadInput(
            f"the starting weights have {len(ranges)} quantization ranges, and not those of this "
            f"model: {shown(other[0])}. Give weights of the same model, or without ranges"
        )
    for layer in compressed_layers(model):
        layer.scale_weights()
    for name, value in ranges.items():
        if value.numel() != 1 or not 0 < float(value) < float("inf"):
            raise BadInput(f"the starting weights' range {shown(name)} is not a number above 0")
        quantizers[name].amax.fill_(float(value))
        quantizers[name].finish()


@torch.no_grad()
def calibrate(
    model: nn.Module, forward: Callable[[], Any], world: World, percent: float | None = PERCENTILE
) -> None:
    """Set the scale of each quantizer of ``model``; they quantise from then on.

    ``forward`` runs this rank's calibration samples through the model and is called twice: for the
    range of each activation, and for its histogram. Weights end at their largest magnitude and
    activations at ``percent``, or with None both where the squared error is least. All ranks have
    the same scales afterwards.
    """
    quantizers = named_quantizers(model)
    activations = [q for name, q in quantizers.items() if not name.endswith("_weight")]
    training = model.training
    model.eval()
    choose: Choice = least_squares if percent is None else partial(percentile, percent=percent)
    for layer in compressed_layers(model):
        layer.scale_weights(least_squares if percent is None else None)
    for quantizer in activations:
        quantizer.begin_range()
    forward()
    ranges = torch.tensor(world.gather([float(q.amax) for q in activations])).amax(0)
    for quantizer, largest in zip(activations, ranges, strict=True):
        quantizer.amax.fill_(float(largest))
        quantizer.begin_histogram()
    forward()
    counts = world.sum_(torch.stack([q.histogram() for q in activations]))
    for quantizer, histogram in zip(activations, counts, strict=True):
        quantizer.finish(choose(histogram, quantizer.amax))
    model.train(training)
