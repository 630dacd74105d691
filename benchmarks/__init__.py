# SPDX-License-Identifier: Apache-2.0
"""The benchmarks: names to packages, imported only when asked for.

A benchmark's package has ``recipes.py`` (PRESETS, pure data), ``flags.py`` (``translate``, which
turns the flags of the reference scripts into ours) and ``task.py`` with

* ``prepare(settings)``: files and samples, the run's source (``hash``, ``checkpoint_hash``);
* ``build(settings, backend, world, source)``: a Task of common/training.py, which also has
  ``plan``, ``facts``, ``notes``, ``check_start``, ``quality`` and ``results`` for the runner;
* ``observers(...)``: what the benchmark writes into a record besides what every run writes, and
  ``closing(folder)``, what the user is told of it;
* ``division(settings)``: MLPerf's, or None; ``split_of(settings, world)`` for --dry_run.
"""

BENCHMARKS = ("bert_pretraining", "bert_squad")
