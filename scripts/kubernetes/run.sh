#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A pod's command: the launcher script and the flags of the ConfigMap, resumed where the job has
# checkpoints. Records of one job share a folder, so that a pod that comes back finds them.
set -euo pipefail
cd "$(dirname -- "${BASH_SOURCE[0]}")/../.."
: "${SCRIPT:?set SCRIPT in the ConfigMap: a launcher script}" "${OUTPUT:?set OUTPUT: the folder of the records}"
read -ra flags <<< "${FLAGS:-}"
if compgen -G "$OUTPUT/*/*/*/checkpoints/step_*" > /dev/null; then
    flags+=(--resume last)
fi
exec bash "$SCRIPT" ${flags[@]+"${flags[@]}"} --output_dir "$OUTPUT"
