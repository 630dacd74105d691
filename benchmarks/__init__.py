# SPDX-License-Identifier: Apache-2.0
"""The benchmarks: names to packages, imported only when asked for.

A benchmark's package has ``recipes.py`` (PRESETS, pure data), ``flags.py`` (``translate``, which
turns the flags of the reference scripts into ours) and ``task.py`` (``build``).
"""

BENCHMARKS = ("bert_pretraining", "bert_squad")
