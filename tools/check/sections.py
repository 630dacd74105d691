# SPDX-License-Identifier: Apache-2.0
"""The sections in their order: the most important first, the slowest last.


Expected seconds are estimates for one H100; each includes the opening of the device (about 3 s).
"""

from __future__ import annotations

from check import anatomy, facts, parts, peer, records, runs, squad
from check.section import Section

SECTIONS = (
    Section(
        name="facts",
        summary="device, capabilities, and the digits that each precision keeps",
        expected_s=15,
        run=facts.facts,
    ),
    Section(
        name="calibrate",
        summary="best matrix product of each precision, copy bandwidth",
        expected_s=30,
        run=facts.calibrate,
    ),
    Section(
        name="contract",
        summary="pytest tests/contract, with ten-step parity",
        expected_s=70,
        run=facts.contract,
    ),
    Section(
        name="pretrain_8x96",
        summary="BERT-large, bf16, 768 = 8 x 96 a step, real lengths",
        expected_s=30,
        run=runs.bf16_768,
        calibrated=True,
    ),
    Section(
        name="anatomy",
        summary="a step's phases, the host's time, its kernels",
        expected_s=30,
        run=anatomy.anatomy,
    ),
    Section(
        name="parts",
        summary="matrix products, attention and memory-bound operations at BERT's shapes",
        expected_s=35,
        run=parts.parts,
    ),
    Section(
        name="hugging_face",
        summary="Hugging Face's model beside ours, in turns",
        expected_s=20,
        run=peer.hugging_face,
    ),
    Section(
        name="pretrain_1x96",
        summary="BERT-large, bf16, LAMB each 96 sequences",
        expected_s=20,
        run=runs.bf16_96,
        calibrated=True,
    ),
    Section(
        name="pretrain_16x26",
        summary="BERT-large, bf16, DeepSparkHub's micro-batch",
        expected_s=20,
        run=runs.bf16_416,
        calibrated=True,
    ),
    Section(
        name="squad",
        summary="SQuAD, BERT-large on one device, bf16 and TF32, with inference",
        expected_s=40,
        run=squad.squad,
        calibrated=True,
    ),
    Section(
        name="pretrain_fp16",
        summary="BERT-large, fp16 with loss scaling, 768 = 8 x 96",
        expected_s=20,
        run=runs.fp16,
        calibrated=True,
    ),
    Section(
        name="pretrain_tf32",
        summary="BERT-large, TF32, 384 = 8 x 48",
        expected_s=25,
        run=runs.tf32,
        calibrated=True,
    ),
    Section(
        name="pretrain_fp32",
        summary="BERT-large, fp32, 96 = 2 x 48",
        expected_s=25,
        run=runs.fp32,
        calibrated=True,
    ),
    Section(
        name="other_kernels",
        summary="BERT-large, bf16, 96 = 1 x 96 with every other attention kernel",
        expected_s=35,
        run=runs.other_kernels,
        calibrated=True,
    ),
    Section(
        name="inductor",
        summary="BERT-large, bf16, 96 = 1 x 96 with --compile inductor, if time is left",
        expected_s=50,
        run=runs.inductor,
        calibrated=True,
    ),
    Section(
        name="records",
        summary="bertbench validate over all records",
        expected_s=5,
        run=records.records,
        closing=True,
    ),
)
