# SPDX-License-Identifier: Apache-2.0
"""The loop and what belongs to it: task, evaluation, checkpoints, progress, events."""
