# SPDX-License-Identifier: Apache-2.0
"""Starting runs: launcher scripts, torchrun, subprocesses."""
