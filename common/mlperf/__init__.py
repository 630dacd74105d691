# SPDX-License-Identifier: Apache-2.0
"""MLPerf's log: write, read and check it."""
