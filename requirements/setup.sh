#!/usr/bin/env bash
# Build the virtual environment .venv from the lock files; does nothing, at once, when they have not changed.
#
#     bash requirements/setup.sh [dev]
#
# dev adds what tests and lint need. FLAVOUR=cpu|cuda overrides the choice between the two locks; PYTHON names a
# Python 3.11. The project itself is not installed: it runs from its folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly STAMP=.venv/setup-stamp # the last thing written: without it .venv is not trusted and is rebuilt
readonly LOG=.venv/setup.log
readonly TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

say() { printf 'setup: %s\n' "$*"; }
die() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

# --- what is wanted ---
with_dev=${1:-}
[[ -z $with_dev || $with_dev == dev ]] || die "unknown argument '$1': call it with 'dev' or with nothing"

read_stamp() { # have_run, have_dev: the two lines of the stamp, empty if absent
    have_run='' have_dev=''
    if [[ -f $STAMP && -x .venv/bin/python ]]; then
        { read -r have_run && read -r have_dev; } <"$STAMP" || true
    fi
}

choose_flavour() {
    if [[ -n ${FLAVOUR:-} ]]; then
        [[ $FLAVOUR == cpu || $FLAVOUR == cuda ]] || die "FLAVOUR is '$FLAVOUR': it can be cpu or cuda"
        flavour=$FLAVOUR
    elif [[ -n $have_run ]]; then
        # What was chosen stays: nvidia-smi can take seconds, and a login node must not undo what GPU nodes use.
        flavour=${have_run%% *}
    elif command -v nvidia-smi >/dev/null && [[ $(nvidia-smi -L 2>/dev/null || true) == *'GPU '* ]]; then
        flavour=cuda
    else
        flavour=cpu
    fi
}

fingerprint() {
    local sum
    sum=$(grep -hv '^#' "$@" | sha256sum) # a reworded comment is no reason to build anew
    printf '%s' "${sum%% *}"
}

is_current() { [[ $have_run == "$want_run" && (-z $with_dev || $have_dev == "$want_dev") ]]; }

read_stamp
choose_flavour
locks=("requirements/$flavour.txt" requirements/build.txt)
[[ $flavour == cuda ]] || locks+=(requirements/torch-cpu.txt)
# The folder is part of it: a virtual environment that was moved or copied does not work.
want_run="$flavour $(fingerprint "${locks[@]}") $PWD"
want_dev="dev $(fingerprint requirements/dev.txt)"
is_current && exit 0

# --- one set-up at a time: a second caller waits here, then finds everything done ---
if command -v flock >/dev/null; then
    exec 9<requirements
    flock --nonblock 9 || { say 'waiting for the set-up that is already running here' && flock 9; }
    read_stamp
    is_current && exit 0
fi

# --- Python ---
is_python_311() {
    command -v "$1" >/dev/null && "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null
}

[[ $OSTYPE == linux-gnu* && $HOSTTYPE == x86_64 ]] ||
    die "the pinned packages are for Linux on x86-64, this is $OSTYPE on $HOSTTYPE"
unset PYTHONHOME PYTHONPATH # of another installation, they would be imported into ours
python=''
for candidate in "${PYTHON:-python3.11}" python3; do
    is_python_311 "$candidate" && python=$candidate && break
done
[[ -n $python ]] ||
    die 'Python 3.11 is missing: install it (packages python3.11, python3.11-venv) or name it: PYTHON=/path/to/it'
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    die "$python lacks the module venv or ensurepip: install the package python3.11-venv"

# --- install ---
trap 'exit 130' INT # pip ends an interrupt with an ordinary failure: without this the next step would begin
# pip warns about every folder and index that lacks a package: its words go to a log, whose end is shown if it fails,
# without those warnings and without addresses (they can name internal mirrors, or carry a password).
show_log() {
    grep -v 'is ignored: it is' "$LOG" |
        sed -E "s#[a-z+]+://[^ ,)'\"]+#(address)#g; s#host='[^']*'#host=(hidden)#g" | tail -n 15 >&2 || true
}

pip_install() {
    # --no-deps: the locks are complete, and leave out on purpose what some packages ask for (see cpu.txt).
    # PIP_CONSTRAINT also holds inside the isolated build of a source package (newer pips read the second name there).
    # --use-pep517: older pips would run setup.py in .venv itself, with whatever is there.
    # PIP_USER=0: some systems default to installing into the home folder, which a virtual environment refuses.
    PIP_CONSTRAINT=requirements/build.txt PIP_BUILD_CONSTRAINT=requirements/build.txt PIP_USER=0 \
        .venv/bin/python -m pip install -q --disable-pip-version-check --no-input --use-pep517 --no-deps "$@" \
        >>"$LOG" 2>&1
}

install_or_die() { # what it is, then pip's arguments
    local what=$1
    shift
    pip_install "$@" || {
        show_log
        die "installing $what failed (above: pip's last lines); once that is mended, the same command starts again"
    }
}

install_torch_cpu() {
    pip_install -r requirements/torch-cpu.txt && return
    say "no CPU build of torch where pip looks by default: trying PyTorch's own index"
    install_or_die 'torch (CPU build)' --extra-index-url "$TORCH_CPU_INDEX" -r requirements/torch-cpu.txt
}

if [[ $have_run == "$want_run" && -z $have_dev ]]; then
    rm -f "$STAMP"
else
    # From scratch: an upgrade in place would leave behind what a lock no longer names, and what an interrupted pip
    # left half-written.
    # venv --clear would empty what it points to, which others may work with.
    [[ ! -L .venv ]] || die ".venv is a link: what it leads to is not rebuilt through it; remove the link"
    say "creating .venv ($flavour lock, a few minutes and gigabytes the first time)"
    rm -f "$STAMP"
    "$python" -m venv --clear .venv >&2 || die "$python could not create .venv (above: why)"
    # torch first: of all packages it is the one that can be unavailable.
    [[ $flavour == cuda ]] || install_torch_cpu
    install_or_die "requirements/$flavour.txt" --require-hashes -r "requirements/$flavour.txt"
fi
if [[ -n $with_dev ]]; then
    say 'adding what tests and lint need'
    install_or_die requirements/dev.txt --require-hashes -r requirements/dev.txt
fi

{
    printf '%s\n' "$want_run"
    [[ -z $with_dev ]] || printf '%s\n' "$want_dev"
} >"$STAMP.new"
mv "$STAMP.new" "$STAMP"
say "done in $SECONDS s"
