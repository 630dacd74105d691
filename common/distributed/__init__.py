# SPDX-License-Identifier: Apache-2.0
"""The processes of one run: meet, reduce and gather, and notice when one is gone."""
