# SPDX-License-Identifier: Apache-2.0
"""Packages that are imported by a vendor's name, with this folder on ``sys.path``."""
