# SPDX-License-Identifier: Apache-2.0
"""What a run is made of: recipes, flags, how a batch is divided."""
