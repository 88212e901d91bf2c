#!/usr/bin/env bash
# Runs stages on several processes, one stage after the other, and tells DVC that each result is there:
#
#   launch/torchrun.sh features               # one process per GPU of this machine
#   NPROC=2 launch/torchrun.sh latents        # two processes
#   launch/torchrun.sh diffusion sample       # the same again after a kill: finished stages are skipped, the killed one continues
#
# It works in the current folder, which holds params.yaml and dvc.yaml: the project's folder, or that of another graph, such as
# presets/released-xl (../../launch/torchrun.sh sample reference evaluate).
#
# On several machines that share this folder, give the same command on each. NODE counts them from 0, and RENDEZVOUS is an address of
# machine 0:
#
#   NODES=2 NODE=0 RENDEZVOUS=machine0:29400 launch/torchrun.sh diffusion
set -euo pipefail
scripts=$(realpath "$(dirname "$0")/../stages")

nodes=${NODES:-1} node=${NODE:-0}
processes=${NPROC:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}
if [ "$nodes" -gt 1 ]; then
    is_host=$([ "$node" = 0 ] && echo 1 || echo 0)
    meeting=(--rdzv-backend c10d --rdzv-endpoint "$RENDEZVOUS" --rdzv-id sfd --rdzv-conf "is_host=$is_host")
else
    meeting=(--standalone)
fi
# After SIGTERM, or when one process has died, the other processes are killed after this many seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-50}

child=
stop() {
    if [ "$child" ]; then
        kill -TERM "$child" || true
        wait "$child" || true # for the checkpoint
    fi
    exit 143
}
trap stop TERM INT
if [ "$node" = 0 ]; then dvc repro --quiet scan; fi # have the images, the model to start from or the code changed?
for stage in "$@"; do
    # On several machines no stage is skipped: they look at different moments, and might not agree.
    if [ "$nodes" = 1 ] && dvc status --quiet "$stage"; then
        echo "$stage: nothing has changed since its result was made"
        continue
    fi
    # In the background, because bash acts on a signal only while it waits.
    torchrun "${meeting[@]}" --nnodes "$nodes" --nproc-per-node "$processes" "$scripts/$stage.py" &
    child=$!
    wait "$child"
    child=
    if [ "$node" = 0 ]; then dvc commit --force --quiet "$stage"; fi
done
