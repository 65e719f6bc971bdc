#!/usr/bin/env bash
#SBATCH --job-name=sesa
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@600
#SBATCH --no-kill
#SBATCH --output=slurm-%j.out
#
# A run on the nodes of a Slurm job: a Ray head on the first node, a worker on each other one, then `ray job submit`.
# Submit it from the project's folder, which all nodes see, as they see run.root and the policy:
#
#     sbatch configs/cluster/slurm.sh --config configs/gpu/4x8_gpus.yaml run.root=/shared/runs run.name=mine
#     sbatch configs/cluster/slurm.sh --resume /shared/runs/mine                      # after its time limit, say
#     scancel --signal=TERM --batch JOBID                                             # stop it, with a checkpoint
#
# --signal: ten minutes before the time limit this script alone is told, and asks the run to end. --no-kill: a node that
# fails ends its Ray worker and not the job. Options of sbatch before the script's name win over those above.
# Exit status: that of the run; 130 when it was stopped and can be resumed, 2 for a wrong call.
#
# VENV        .venv: the environment that requirements/setup.sh made
# JOIN_S      300: seconds for all nodes to have joined
# STOP_S      540: seconds for the run to end once it is asked to; less than --signal's, or Slurm is faster
# RAY_PORT, RAY_DASHBOARD_PORT  6379, 8265: others, where nodes are shared with another Ray
# RAY_NODE_ARGS  more arguments of `ray start` on every node, such as --num-cpus=64
set -euo pipefail

readonly VENV=${VENV:-.venv} JOIN_S=${JOIN_S:-300} STOP_S=${STOP_S:-540}
readonly PORT=${RAY_PORT:-6379} DASHBOARD_PORT=${RAY_DASHBOARD_PORT:-8265}
readonly API=http://127.0.0.1:$DASHBOARD_PORT
readonly LOOK_S=${LOOK_S:-2} # between two looks at who has joined
readonly END_S=${END_S:-60}  # for Ray to end on its nodes; what is left then Slurm ends

say() { printf 'slurm.sh: %s\n' "$*"; }
fail() { # exit status, words
    printf 'slurm.sh: %s\n' "${*:2}" >&2
    exit "$1"
}

# --- the call ---
[[ -n ${SLURM_JOB_ID:-} && -n ${SLURM_JOB_NODELIST:-} ]] ||
    fail 2 'this is a script of Slurm: sbatch configs/cluster/slurm.sh --config configs/gpu/NAME.yaml'
cd "${SLURM_SUBMIT_DIR:?}"
[[ -f orchestration/run.py ]] || fail 2 "$PWD is not the project's folder: submit the script from there"
[[ -f $VENV/bin/activate ]] || fail 2 "$VENV is no environment: make it with FLAVOUR=cuda bash requirements/setup.sh"
# shellcheck source=/dev/null
source "$VENV/bin/activate"

resumes='' previous=''
for argument in "$@"; do
    case $previous:$argument in
        --resume:/* | *:--resume=/*) resumes=yes ;;
        --resume:* | *:--resume=*) fail 2 "$argument: --resume wants the whole path, a job has a folder of its own" ;;
    esac
    previous=$argument
done
# A mistake in the settings is said now and not when all nodes are up.
plan=$(python orchestration/run.py --dry-run "$@") || fail 2 'the run would not start (above: why)'
[[ -n $resumes ]] || grep -q '^  root: [/~]' <<<"$plan" ||
    fail 2 'run.root is no whole path: a job has a folder of its own, say run.root=/shared/runs'

# --- the token: the same file for every process of this Ray, and for nobody else ---
steps=() token='' submitted='' asked=''
export RAY_AUTH_MODE=token
if [[ -z ${RAY_AUTH_TOKEN_PATH:-}${RAY_AUTH_TOKEN:-} ]]; then
    token=$HOME/.ray/slurm-$SLURM_JOB_ID.token # home folders are shared; else set RAY_AUTH_TOKEN_PATH
    mkdir -p "$HOME/.ray"
    (umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$token")
    export RAY_AUTH_TOKEN_PATH=$token
fi
# `ray job stop` kills what has not ended by then: of 3 seconds no run's update is.
export RAY_JOB_STOP_WAIT_TIME_S=$STOP_S
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # when Ray is ended, nobody works there any more

# --- the end, whatever it is ---
end_ray() {
    local status=$? until=$((SECONDS + END_S))
    trap '' TERM INT
    if ((${#steps[@]})); then
        # srun would give its step up on a signal; this goes to what the steps run, and not to this script.
        scancel --signal=TERM "$SLURM_JOB_ID" || true
        while ((SECONDS < until)) && kill -0 "${steps[@]}" 2>/dev/null; do sleep 1; done
        kill -KILL "${steps[@]}" 2>/dev/null || true
    fi
    [[ -z $token ]] || rm -f "$token"
    exit "$status"
}
trap end_ray EXIT

ask_to_end() {
    [[ -n $submitted ]] || fail 130 'told to end before the run began'
    asked=yes
    say "told to end: the run finishes its update and keeps a checkpoint, $STOP_S s at most (STOP_S)"
    timeout 60 ray job stop --no-wait --address "$API" "$JOB" || say 'the run could not be told'
}
trap ask_to_end TERM INT

# --- Ray ---
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
readonly HEAD=${nodes[0]} JOB=sesa-$SLURM_JOB_ID

on_node() { # node, command: a step with all that the job has of this node
    srun --nodes=1 --ntasks=1 --nodelist="$1" --cpu-bind=none "${@:2}"
}

start_ray() { # node, arguments of ray start: a step that lasts as long as Ray does there
    # shellcheck disable=SC2086 # RAY_NODE_ARGS are several words
    on_node "$1" ray start --block --disable-usage-stats --temp-dir="/tmp/ray-$SLURM_JOB_ID" "${@:2}" \
        ${RAY_NODE_ARGS:-} &
    steps+=("$!")
}

joined() { # how many nodes are alive, 0 while nobody answers
    local listed
    listed=$(timeout 30 ray list nodes --address "$API" --filter state=ALIVE --limit 10000 --format json 2>/dev/null) &&
        python -c 'import json, sys; print(len(json.load(sys.stdin)))' <<<"$listed" 2>/dev/null || echo 0
}

wait_for() { # number of nodes, who is waited for
    local there=0 until=$((SECONDS + JOIN_S))
    while there=$(joined) && ((there < $1)); do
        for step in "${steps[@]}"; do
            kill -0 "$step" 2>/dev/null || fail 1 "Ray has ended on a node while waiting for $2 (above: why)"
        done
        ((SECONDS < until)) || fail 1 "$2: $there of $1 nodes joined within $JOIN_S s (JOIN_S)"
        sleep "$LOOK_S"
    done
}

head_ip=$(on_node "$HEAD" python -c 'from ray.util import get_node_ip_address; print(get_node_ip_address())')
say "head on $HEAD ($head_ip), ${#nodes[@]} nodes in all"
start_ray "$HEAD" --head --node-ip-address="$head_ip" --port="$PORT" \
    --dashboard-host=127.0.0.1 --dashboard-port="$DASHBOARD_PORT"
wait_for 1 "the head on $HEAD"
for node in "${nodes[@]:1}"; do start_ray "$node" --address="$head_ip:$PORT"; done
wait_for "${#nodes[@]}" 'the workers'
say "${#nodes[@]} nodes have joined"

# --- the run ---
state() { timeout 60 ray job status --address "$API" "$JOB" 2>&1 || true; }

submitted=yes known=$SECONDS
ray job submit --address "$API" --submission-id "$JOB" --working-dir . -- python orchestration/run.py "$@" &
follower=$!
while true; do
    wait "$follower" && true
    kill -0 "$follower" 2>/dev/null && continue # a signal came, the run goes on
    case $(state) in
        *succeeded*) exit 0 ;;
        *'was stopped'*)
            say 'the run was stopped. Its last line above says whether it can go on, here by'
            fail 130 'sbatch configs/cluster/slurm.sh --resume /WHOLE/PATH/OF/ITS/FOLDER'
            ;;
        *failed*) fail 1 "the run failed${asked:+ when it was told to end}: its last line above says why" ;;
        *'does not exist'*) fail 1 'Ray did not take the job (above: why)' ;;
        *RUNNING* | *PENDING*) known=$SECONDS ;; # only what followed its lines has ended
    esac
    kill -0 "${steps[0]}" 2>/dev/null ||
        fail 1 "Ray's head has ended, and the run with it: see /tmp/ray-$SLURM_JOB_ID on $HEAD"
    ((SECONDS - known < JOIN_S)) || fail 1 "Ray's dashboard has not answered for $JOIN_S s (JOIN_S)"
    sleep "$LOOK_S"
    ray job logs --follow --address "$API" "$JOB" &
    follower=$!
done
