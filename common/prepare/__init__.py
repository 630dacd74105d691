# SPDX-License-Identifier: Apache-2.0
"""What ``bertbench data`` makes: training data from text, and MLPerf's set packed."""
