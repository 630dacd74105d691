# SPDX-License-Identifier: Apache-2.0
"""The sections in their order: the most important first, the slowest last.

Expected seconds are estimates for one H100; each includes the opening of the device (about 3 s).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from check import anatomy, facts, masked, parts, peer, records, runs, squad
from check.device import Check
from check.figure import SectionReport
from check.section import Section


def _pretrain(*sizes: Any) -> Callable[[Check, SectionReport], None]:
    """Return a run of precision, micro-batches a step, their size, and steps.

    In 32 bits the micro-batch is 48: 96 of full length exceed 80 GB.
    """
    return lambda check, report: runs.pretrain(check, report, *sizes)


SECTIONS = (
    Section(name="facts", expected_s=15, run=facts.facts,
            summary="device, capabilities, and the digits that each precision keeps"),
    Section(name="calibrate", expected_s=30, run=facts.calibrate,
            summary="best matrix product of each precision, copy bandwidth"),
    Section(name="contract", expected_s=70, run=facts.contract,
            summary="pytest tests/contract, with ten-step parity"),
    Section(name="pretrain_8x96", expected_s=30, run=_pretrain("bf16", 8, 96, 14), calibrated=True,
            summary="BERT-large, bf16, 768 = 8 x 96 a step, real lengths"),
    Section(name="anatomy", expected_s=30, run=anatomy.anatomy,
            summary="a step's phases, the host's time, its kernels"),
    Section(name="parts", expected_s=35, run=parts.parts,
            summary="matrix products, attention and memory-bound operations at BERT's shapes"),
    Section(name="pretrain_fp8", expected_s=30, run=_pretrain("fp8", 8, 96, 14), calibrated=True,
            summary="BERT-large, products in 8 bits, 768 = 8 x 96"),
    Section(name="hugging_face", expected_s=20, run=peer.hugging_face,
            summary="Hugging Face's model beside ours, in turns"),
    Section(name="pretrain_1x96", expected_s=20, run=_pretrain("bf16", 1, 96, 24), calibrated=True,
            summary="BERT-large, bf16, LAMB each 96 sequences"),
    Section(name="pretrain_16x26", expected_s=20, run=_pretrain("bf16", 16, 26, 8), calibrated=True,
            summary="BERT-large, bf16, DeepSparkHub's micro-batch"),
    Section(name="squad", expected_s=40, run=squad.squad, calibrated=True,
            summary="SQuAD, BERT-large on one device, bf16 and TF32, with inference"),
    Section(name="pretrain_fp16", expected_s=20, run=_pretrain("fp16", 8, 96, 8), calibrated=True,
            summary="BERT-large, fp16 with loss scaling, 768 = 8 x 96"),
    Section(name="pretrain_tf32", expected_s=25, run=_pretrain("tf32", 8, 48, 6), calibrated=True,
            summary="BERT-large, TF32, 384 = 8 x 48"),
    Section(name="pretrain_fp32", expected_s=25, run=_pretrain("fp32", 2, 48, 6), calibrated=True,
            summary="BERT-large, fp32, 96 = 2 x 48"),
    Section(name="other_kernels", expected_s=35, run=runs.other_kernels, calibrated=True,
            summary="BERT-large, bf16, 96 = 1 x 96 with every other attention kernel"),
    Section(name="inductor", expected_s=50, run=runs.inductor, calibrated=True, only=True,
            summary="BERT-large, bf16, 96 = 1 x 96 with --compile inductor (--only inductor)"),
    Section(name="masked", expected_s=120, run=masked.masked, only=True,
            summary="masked attention: equality, times and a step at 2,048 tokens (--only masked)"),
    Section(name="records", expected_s=5, run=records.records, closing=True,
            summary="bertbench validate over all records"),
)  # fmt: skip
