# SPDX-License-Identifier: Apache-2.0
"""Parts of tools/trace_step.py: a CUDA device of fake tensors, and a tally of its operations.

``process`` must run before torch is imported, so this package has no imports.
"""
