# SPDX-License-Identifier: Apache-2.0
"""2:4 structured sparsity of the encoder's weights, and INT8 quantisation-aware training."""
