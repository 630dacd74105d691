# SPDX-License-Identifier: Apache-2.0
"""Compression before the first step: pruning by magnitude, and the quantizers' calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bertbench.common.compress.layers import compress, compressed_layers, named_quantizers
from bertbench.common.compress.pruning import KEPT, most_nonzeros
from bertbench.common.compress.quantizer import PERCENTILE
from bertbench.common.config.recipe import Recipe
from bertbench.common.errors import BadInput

if TYPE_CHECKING:
    from bertbench.common.distributed.world import World

CALIBRATION_SAMPLES = 128
"""Over all ranks: "MLPerf INT8 BERT Finetuning" (mlcommons/inference, language/bert)."""


@dataclass(slots=True)
class Compression:
    """The compression that a recipe asks for."""

    prune: bool
    quantize: bool
    calibration_samples: int = 0

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
        return cls(prune, quantize)

    def start(
        self,
        model: nn.Module,
        steps: Iterable[Any],
        forward: Callable[[Any, Any], Any],
        world: World,
    ) -> list[str]:
        """Prune ``model`` and calibrate it on this rank's first ``steps``; return notes.

        ``forward`` takes a micro-batch on the model's device and its step. Where a checkpoint is
        resumed afterwards, its masks and scales replace these.
        """
        for layer in compressed_layers(model):
            layer.prune()
        if self.quantize:
            taken, samples = [], 0
            for step in steps:
                taken.append(step)
                samples += step.num_samples
                if samples >= CALIBRATION_SAMPLES:
                    break
            self.calibration_samples = samples
            device = next(model.parameters()).device

            def run() -> None:
                for step in taken:
                    for batch in step.micro_batches:
                        forward(batch.to(device), step)

            calibrate(model, run, world)
        return self._notes(model)

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
        return {
            "pruned_weights": matrices,
            "pruned_weights_kept": kept / entries if entries else None,
            "quantized_weights": weights,
            "quantized_activations": len(names) - weights,
            "calibration_samples": self.calibration_samples or None,
            "calibration_percentile": 100 * PERCENTILE if names else None,
        }

    def _notes(self, model: nn.Module) -> list[str]:
        found, notes = self.facts(model), []
        if self.prune:
            notes.append(
                f"2:4 sparsity: {found['pruned_weights']} weight matrices keep "
                f"{100 * found['pruned_weights_kept']:.1f} % of their entries"
            )
        if self.quantize:
            notes.append(
                f"INT8: {found['quantized_weights']} weights at their largest magnitude, "
                f"{found['quantized_activations']} activations at the {100 * PERCENTILE:g} "
                f"percentile of {self.calibration_samples} samples"
            )
        return notes


@torch.no_grad()
def calibrate(model: nn.Module, forward: Callable[[], Any], world: World) -> None:
    """Set the scale of each quantizer of ``model``; they quantise from then on.

    ``forward`` runs this rank's calibration samples through the model and is called twice: for the
    range of each activation, and for its histogram. All ranks have the same scales afterwards.
    """
    quantizers = named_quantizers(model)
    activations = [q for name, q in quantizers.items() if not name.endswith("_weight")]
    training = model.training
    model.eval()
    for layer in compressed_layers(model):
        layer.scale_weights()
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
        quantizer.finish(histogram)
    model.train(training)
