# SPDX-License-Identifier: Apache-2.0
"""Records and weights to and from other people's formats."""
