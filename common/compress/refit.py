# SPDX-License-Identifier: Apache-2.0
"""Kept weights that make up for the pruned ones: least squares over a layer's own inputs.

Pruning leaves a row w of a linear layer two of each four weights. Those that stay, and the bias b,
become those whose sums over the inputs x of calibration samples differ least from the dense row's::

    v = argmin sum_x (v . x + c - w . x - b)^2 + damping |v - w|^2,   v = 0 where w is pruned

which is exact for one layer (Hubara et al. 2021, "AdaPrune"; Frantar and Alistarh 2023). Layers are
done in order, so that each sees the inputs that the pruned ones before it give.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bertbench.common.compress.layers import CompressedLayer, compressed_layers
from bertbench.common.data.batch import Tokens

if TYPE_CHECKING:
    from bertbench.common.distributed.world import World

DAMPING = 0.01
"""In the mean square of an input: holds weights whose inputs hardly vary where they were."""
_SMALLEST = 1e-6
"""Of the damping, where all inputs are 0."""
_CELLS = 1 << 26
"""Numbers of the systems that are solved at a time."""


@torch.no_grad()
def prune_and_refit(model: nn.Module, forward: Callable[[], Any], world: World) -> None:
    """Prune the layers of ``model`` by magnitude and refit what stays; nothing is quantised yet.

    ``forward`` runs this rank's samples through the model. All ranks end with the same weights.
    """
    training, layers = model.training, compressed_layers(model)
    model.eval()
    batches: list[tuple[Tensor, Tokens]] = []
    hook = layers[0].register_forward_pre_hook(lambda _, given: batches.append(given))
    try:
        forward()
    finally:
        hook.remove()
    for layer in layers:
        layer.products = {}
        for x, tokens in batches:
            layer(x, tokens)
        products, layer.products = layer.products, None
        dense = {name: getattr(layer, name).weight.clone() for name in layer.pruned}
        layer.prune()
        for name, weight in dense.items():
            with torch.autocast(weight.device.type, enabled=False):
                _refit(layer, name, weight, world.sum_(products[name]))
        batches = [(layer(x, tokens), tokens) for x, tokens in batches]
    model.train(training)


def _refit(layer: CompressedLayer, name: str, dense: Tensor, product: Tensor) -> None:
    """Replace the kept entries of a weight [N, K]; ``product`` [K + 1, K + 1] is X.T X.

    The last row and column are of the bias, whose input is 1.
    """
    part, kept = getattr(layer, name), getattr(layer, f"{name}_mask")
    if torch.equal(part.weight, dense):  # it was 2:4 sparse before
        return
    rows, features = dense.shape
    damping = (DAMPING * product.diagonal()[:-1].mean()).clamp_min(_SMALLEST)
    wanted = dense @ product[:-1] + part.bias[:, None] * product[-1]
    # Every row keeps as many; the bias is one more.
    places = kept.nonzero()[:, 1].view(rows, -1)
    places = torch.cat([places, torch.full_like(places[:, :1], features)], dim=1)
    start = torch.cat([dense, part.bias[:, None]], dim=1).gather(1, places)
    size = places.shape[1]
    for at in torch.arange(rows, device=dense.device).split(max(1, _CELLS // size**2)):
        index = places[at]
        system = product[index[:, :, None], index[:, None, :]]
        system.diagonal(dim1=1, dim2=2).add_(damping)
        right = wanted[at].gather(1, index) + damping * start[at]
        found = torch.cholesky_solve(right[:, :, None], torch.linalg.cholesky(system))[:, :, 0]
        part.weight[at] = torch.zeros_like(dense[at]).scatter_(1, index[:, :-1], found[:, :-1])
        part.bias[at] = found[:, -1]
