#!/usr/bin/env bash
# Evaluate on several GPUs, or CPU processes: tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of tools/test.py …]
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT, as in MMSegmentation.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" --nproc_per_node="$3" \
    "$(dirname "$0")/test.py" "$1" "$2" --launcher pytorch "${@:4}"
