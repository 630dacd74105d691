# SPDX-License-Identifier: Apache-2.0
"""Parts of tools/trace_step.py: a CUDA device made of fake tensors, and a tally of its operations.

``process`` prepares the process and must run before torch is imported, so this package imports
nothing by itself.
"""
