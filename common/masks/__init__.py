# SPDX-License-Identifier: Apache-2.0
"""Sparse attention: patterns, masks of whole models, and their search."""
