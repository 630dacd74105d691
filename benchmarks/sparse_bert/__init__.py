# SPDX-License-Identifier: Apache-2.0
"""Sparse BERT: attention masks, searched or fixed, and what they cost and gain."""
