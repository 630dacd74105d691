# SPDX-License-Identifier: Apache-2.0
"""The choices of a run: its opening lines, its file of settings, and a dry run with estimates."""
