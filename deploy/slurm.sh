#!/usr/bin/env bash
# A job on the machines of a SLURM allocation:
#
#   sbatch --nodes=4 deploy/slurm.sh label --checkpoint /data/checkpoint --images /data/images --output /data/labels \
#       --label.use_gpu true --label.max_workers 16
#   sbatch --nodes=2 deploy/slurm.sh train --config jobs/configs/mask_rcnn_r50_fpn.yaml \
#       --data.train.images /data/train --data.train.annotations /data/train.json \
#       --data.val.images /data/val --data.val.annotations /data/val.json \
#       --output /data/runs/r50 --train.use_gpu true --train.num_workers 8
#
# Give it from the repository's folder, which all machines see, with .venv made by `make setup`. --output lies where all
# machines can write. Preempted, or when its first machine is lost, the job is queued again and goes on where it was. At
# the end of its time the same command takes it up.
#SBATCH --job-name=maskrcnn
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
set -euo pipefail

job=${1:?which job: sbatch deploy/slurm.sh label --checkpoint ... (or train, verify, evaluate)}
shift
cd "${SLURM_SUBMIT_DIR:?this is for sbatch}"
export PATH="$PWD/.venv/bin:$PATH"

# Others have accounts on these machines: who does not know the token cannot use the cluster.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

# This script runs on the first machine, which is the head and works as well. (`ray symmetric-run` would do all this, but
# gives up when a machine is half a minute late, and reports success when the head does not start.) HEAD_IP is to be set
# where the first of its addresses is not in the network of the others.
head_ip=${HEAD_IP:-$(hostname -I | cut -d' ' -f1)}
port=${RAY_PORT:-6379}
cpus=${SLURM_CPUS_ON_NODE:-$(nproc)}
ulimit -Sn hard
ray start --head --node-ip-address="$head_ip" --port="$port" --num-cpus="$cpus" --include-dashboard=false --block &
head=$!
trap 'kill $(jobs -p) 2>/dev/null' EXIT # not `ray stop`, which ends what other jobs of the user run here
until (: >"/dev/tcp/$head_ip/$port") 2>/dev/null; do
    kill -0 "$head" 2>/dev/null || { echo "error: Ray's head has not started on $head_ip:$port" >&2; exit 1; }
    sleep 1
done

# The others join while the job starts, and one that is lost must not end those that are left.
others=$((${SLURM_JOB_NUM_NODES:-1} - 1))
if [[ $others -gt 0 ]]; then
    srun --nodes="$others" --ntasks="$others" --exclude="$(hostname)" --cpus-per-task="$cpus" --cpu-bind=none \
        --kill-on-bad-exit=0 ray start --address="$head_ip:$port" --num-cpus="$cpus" --block &
fi

# At the end of the time limit SLURM sends SIGTERM to this script, which the job has to get: training then saves.
python -m "jobs.$job" "$@" --cluster.address "$head_ip:$port" &
running=$!
trap 'kill -TERM "$running" 2>/dev/null' TERM
code=0
wait "$running" || code=$?
if kill -0 "$running" 2>/dev/null; then # a signal has ended the waiting, not the job
    code=0
    wait "$running" || code=$?
fi
exit "$code"
