# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's pretraining in two phases (DeepLearningExamples), which SparseBERT copies."""
