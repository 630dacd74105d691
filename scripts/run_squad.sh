#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SQuAD with the positional parameters of NVIDIA's script of this name; --help lists them.
here="$(dirname "${BASH_SOURCE[0]}")"
exec bash "$here/../benchmarks/bert_squad/launch.sh" --positional "$@"
