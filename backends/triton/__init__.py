# SPDX-License-Identifier: Apache-2.0
"""Kernels in Triton for every backend whose torch has it; no backend of its own."""
