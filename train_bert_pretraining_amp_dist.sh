#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
here="$(dirname "${BASH_SOURCE[0]}")"
exec bash "$here/benchmarks/bert_pretraining/train_bert_pretraining_amp_dist.sh" "$@"
