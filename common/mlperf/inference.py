# SPDX-License-Identifier: Apache-2.0
"""MLPerf Inference's rules for BERT, as numbers.

Source: loadgen/mlperf.conf of mlcommons/inference (rounds 6.0 and 6.1), and the constants of its
tools/submission/submission_checker.
"""

from __future__ import annotations

from typing import Literal

Scenario = Literal["Offline", "Server", "SingleStream", "MultiStream"]
SCENARIOS: tuple[Scenario, ...] = ("Offline", "Server", "SingleStream", "MultiStream")
Profile = Literal["official", "non-official"]
OFFICIAL = "official"

MODEL = "bert"
TEST01 = "TEST01"
"""The compliance test of BERT."""
SAMPLES = 10_833
"""Features of dev-v1.1 at 384/128/64: BERT's sample set."""
LENGTHS = {"max_seq_length": 384, "doc_stride": 128, "max_query_length": 64}
REFERENCE_F1 = 90.874
"""Percent, of the FP32 reference model, a BERT-large."""
SHARES = {"bert-99": 0.99, "bert-99.9": 0.999}
"""Benchmark -> the share of the reference's F1 that it asks for."""
TARGET_F1 = SHARES["bert-99"] * REFERENCE_F1
LARGE = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
    "intermediate_size": 4096,
}  # fmt: skip
"""The shape of BERT-large."""
SEEDS = {
    "6.0": (2085463073848966840, 2747215439041700203, 16159082839903944936),
    "0.7": (12786827339337101903, 12640797754436136668, 3135815929913719677),
}
"""Round -> seeds of sample set, sample order and schedule; 6.1 has those of 6.0."""
SEED_KEYS = ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed")
"""Their names, after ``effective_`` in LoadGen's logs."""
PERCENTILE = {"SingleStream": 90, "MultiStream": 99, "Server": 99}
"""Of the latency that counts."""
MIN_DURATION_MS = 600_000
MIN_QUERIES = {"Offline": SAMPLES, "MultiStream": 662, "SingleStream": 1024, "Server": 100}
"""Offline's are samples; of SingleStream by the submission checker, of Server LoadGen's default."""
SERVER_LATENCY_MS = 130
