#!/usr/bin/env bash
# Train on several GPUs, or CPU processes: tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py …]
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT, as in MMSegmentation.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" --nproc_per_node="$2" \
    "$(dirname "$0")/train.py" "$1" --launcher pytorch "${@:3}"
