# SPDX-License-Identifier: Apache-2.0
"""MLPerf's log: writing, reading, checking it."""
