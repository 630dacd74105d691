# SPDX-License-Identifier: Apache-2.0
"""What benchmarks and backends share."""
