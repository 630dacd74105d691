# SPDX-License-Identifier: Apache-2.0
"""Compare with Hugging Face's BertForPreTraining: same tokens, same optimizer, in turns."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
from bench.steps import PEER_MISSING, padded, peer_available, peer_config
from bench.timing import interleave, ratio
from torch.nn.attention import SDPBackend, sdpa_kernel

from bertbench.backends.base import Backend
from bertbench.common.optim.clip import clip_, grad_norm
from bertbench.common.optim.factory import build_optimizer
from bertbench.common.optim.lamb import parameter_groups
from check.anatomy import Subject, set_rate, subject
from check.device import Check, choose_precision, free_memory
from check.figure import NotAvailable, SectionReport

ROUNDS = 6
EVERY_SDPA = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""torch's default for the peer, whose shapes repeat: our backend may have switched one off."""


def hugging_face(check: Check, report: SectionReport) -> None:
    """Train both models on the same batches; the peer's are padded to their longest sequence.

    A batch of full length has no padding: it separates padding from kernels. Raises NotAvailable
    without transformers.
    """
    if not peer_available():
        raise NotAvailable(PEER_MISSING)
    backend = check.open()
    precision = choose_precision(check, backend, "bf16")
    micro = check.size(48, 4)
    own = subject(check, backend, precision, micro, 4)
    real = range(len(own.batches))
    own.batches.append(own.task.made_up_step(micro, 1))
    peer, peer_forward_backward = peer_calls(own, precision)
    step = own.stepper()

    def waited(call: Callable[[int], None], of: Sequence[int]) -> Callable[[], None]:
        turns = itertools.cycle(of)

        def run() -> None:
            call(next(turns))
            backend.synchronize()

        return run

    def own_forward_backward(i: int) -> None:
        own.loss(own.batches[i]).backward()
        own.task.optimizer.zero_grad(set_to_none=True)

    found = {}

    def own_step(i: int) -> None:
        step(own.batches[i])

    for what, ours, theirs, of in (
        ("step", own_step, peer, real),
        ("forward and backward", own_forward_backward, peer_forward_backward, real),
        ("step, full length", own_step, peer, range(len(real), len(own.batches))),
    ):
        turns = {"ours": waited(ours, of), "Hugging Face": waited(theirs, of)}
        found[what] = interleave(turns, ROUNDS)
        free_memory(backend)
    label = f"{precision} 1 x {micro}"
    tokens = [own.batches[i].micro_batches[0].tokens for i in real]
    report.figure(
        f"{label}: padded share of the peer's tokens",
        1 - sum(t.num_tokens for t in tokens) / sum(len(t.lengths) * t.max_length for t in tokens),
        "1",
        "1 - real tokens / (sequences x longest sequence), over the batches of real lengths",
    )
    report_rates(report, label, micro, found)


def report_rates(
    report: SectionReport, label: str, micro: int, found: Mapping[str, Mapping[str, list[float]]]
) -> None:
    """Report rates and ratios from the seconds ``found`` by timed part and model."""
    clock = f"median of {ROUNDS} turns after 1 untimed, the device synchronised at both ends"
    definitions = {
        "ours": "our model on unpadded tokens, vocabulary head at masked positions only",
        "Hugging Face": "BertForPreTraining with SDPA, autocast, padding to each batch's longest "
        "sequence and vocabulary head at every position, padding included; our LAMB and clipping",
    }
    for what, seconds in found.items():
        for who, each in seconds.items():
            report.figure(
                f"{label}: {who}, {what}",
                micro / statistics.median(each),
                "sequences/s",
                f"{definitions[who]}; sequences of a batch / seconds; {clock}",
            )
        report.figure(
            f"{label}: ours over Hugging Face, {what}",
            ratio(seconds["Hugging Face"], seconds["ours"]),
            "1",
            "median over the turns of the peer's seconds / ours",
        )


def peer_calls(own: Subject, precision: str) -> tuple[Callable[[int], None], Callable[[int], None]]:
    """Return the peer's whole step, and its forward and backward pass; both take an index."""
    from transformers import BertForPreTraining

    backend: Backend = own.backend
    model = BertForPreTraining(peer_config(own.task.recipe.model, "sdpa"))
    model.to(backend.device).train()
    optimizer = build_optimizer(
        "lamb",
        parameter_groups(model, own.task.recipe.weight_decay_rate),
        lr=1.0,
        lamb_kernel=backend.lamb_kernel("auto"),
    )
    set_rate(optimizer)
    parameters = list(model.parameters())
    inputs = [
        {name: value.to(backend.device) for name, value in padded(step.micro_batches[0]).items()}
        for step in own.batches
    ]

    def forward_backward(i: int) -> None:
        with backend.precision(precision), sdpa_kernel(EVERY_SDPA):
            loss: torch.Tensor = model(**inputs[i]).loss
        loss.backward()

    def step(i: int) -> None:
        forward_backward(i)
        clip_(parameters, grad_norm(parameters), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def without_optimizer(i: int) -> None:
        forward_backward(i)
        optimizer.zero_grad(set_to_none=True)

    return step, without_optimizer
