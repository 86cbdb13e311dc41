#!/usr/bin/env bash
# A Ray of one machine for development, apart from any other Ray on the host.
#
#   cluster/local.sh start [--cpus N]   start it, or say that it runs; N: CPUs it may use, all when not given
#   cluster/local.sh run COMMAND...     run a command that finds it, for example
#                                       cluster/local.sh run ray job submit --working-dir . -- python jobs/train.py demo
#   cluster/local.sh status             status 0 when it runs, 3 when it does not
#   cluster/local.sh stop               end it and every job on it; its logs go with it
#
# It listens on this machine only and asks each caller for a token, which `run` passes on.
# Its state is in $LUNGSEG_RAY_STATE, else $XDG_STATE_HOME/lungseg-ray, else ~/.local/state/lungseg-ray:
# another folder is another Ray.
set -euo pipefail

READY_S=120 # a first start on a cold disk reads some hundred MB of libraries
TERM_S=5    # for jobs to end by themselves; Ray's own processes would take ten, waiting for one another
KILL_S=5

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
STATE=${LUNGSEG_RAY_STATE:-${XDG_STATE_HOME:-${HOME:?"HOME is not set: set LUNGSEG_RAY_STATE to a folder"}/.local/state}/lungseg-ray}
pgid='' born='' temp='' gcs='' dashboard='' log=''

say() { printf '%s\n' "$*" >&2; }
fail() { say "cluster/local.sh: $1" && exit "${2:-1}"; }

# Puts the folder of ray first on PATH: jobs start with `#!/usr/bin/env python3` and need the Python beside it.
find_ray() {
    if [[ -x $ROOT/.venv/bin/ray ]]; then
        export PATH="$ROOT/.venv/bin:$PATH"
    elif ! command -v ray >/dev/null; then
        fail "no ray in .venv/bin or on PATH: run make demo once, or activate the environment that has it"
    fi
}

# When a process began, or nothing once it has ended: tells a process from a later one with the same id.
began() {
    local line words
    { line=$(<"/proc/$1/stat"); } 2>/dev/null || return 0
    read -ra words <<<"${line##*) }" # the name before it may hold blanks
    [[ ${words[0]} == Z ]] || printf '%s\n' "${words[19]}"
}

load() { # the recorded head; false when there is none
    [[ -r $STATE/head ]] || return 1
    # shellcheck source=/dev/null
    source "$STATE/head"
}

running() { [[ -n $pgid && -n $born && $(began "$pgid") == "$born" ]]; }

# The ids of what carries the head's mark: a variable that all it starts inherit or, where a process overwrote that with
# its title, a standard output in the head's folder.
marked() {
    {
        grep -lzsxF -- "LUNGSEG_RAY=$temp" /proc/[0-9]*/environ
        find /proc/[0-9]*/fd/1 -lname "$temp/*" 2>/dev/null
    } | cut -d/ -f3 || true
}

# Whether the session of the recorded head is still ours: the head lives or a marked process is in it. Else its id may
# be another's by now.
own_session() {
    local id
    running && return
    for id in $(marked); do
        [[ $(ps -o sid= -p "$id" | tr -d ' ') != "$pgid" ]] || return 0
    done
    return 1
}

# The ids of all living processes of the recorded head: those in its session, for Ray gives each worker a process group
# of its own, and those marked, for Ray gives each job a session of its own and can lose it there.
members() { # the session, or 0 when that is not ours
    ps -A -o pid= -o sid= -o stat= | awk -v session="$1" -v marked="$(marked | tr '\n' ' ')" '
        BEGIN { n = split(marked, ids); for (i = 1; i <= n; i++) mark[ids[i]] }
        $3 !~ /^Z/ && ($1 in mark || (session && $2 == session)) { print $1 }'
}

signal() { # name of the signal, seconds to wait for the end, session
    local end=$((SECONDS + $2)) ids first=1
    while mapfile -t ids < <(members "$3") && ((${#ids[@]})); do
        ((SECONDS < end)) || return 1
        # Once is enough to ask; what is to be killed may have started another meanwhile.
        [[ $1 == TERM && $first == 0 ]] || kill -"$1" -- "${ids[@]}" 2>/dev/null || true
        first=0
        sleep 0.2
    done
}

end_head() {
    local session=0
    if [[ -n $pgid ]]; then
        own_session && session=$pgid # asked once: the marked ones may end before the others
        signal TERM "$TERM_S" "$session" || signal KILL "$KILL_S" "$session" ||
            fail "these processes do not end: $(members "$session" | tr '\n' ' ')"
    fi
    [[ $temp == /tmp/lungseg-* ]] && rm -rf -- "$temp"
    rm -f -- "$STATE/head" "$STATE/token"
}

# Free ports below the range from which the system takes ports for outgoing connections (and Ray those of its workers),
# all held at once, so that no two are the same.
free_ports() {
    python3 - "$1" <<'PYTHON'
import random
import socket
import sys

held = []
for port in random.SystemRandom().sample(range(20000, 32000), 1000):
    probe = socket.socket()
    try:
        probe.bind(("", port))
    except OSError:
        continue
    held.append(probe)
    if len(held) == int(sys.argv[1]):
        print(*(one.getsockname()[1] for one in held))
        sys.exit(0)
sys.exit("no free ports between 20000 and 32000")
PYTHON
}

# Waits until a job has run: the job server answers some seconds before an agent takes its jobs.
await_ready() {
    python3 - "$pgid" "$READY_S" <<'PYTHON'
import os
import sys
import time

from ray.job_submission import JobStatus, JobSubmissionClient

head, limit = int(sys.argv[1]), float(sys.argv[2])
begin = told = time.monotonic()
client = job = None
why = "no answer"
while (now := time.monotonic()) < begin + limit:
    try:
        os.kill(head, 0)
    except ProcessLookupError:
        sys.exit("it ended while starting")
    if now > told + 5:
        told = now
        print(f"waiting for Ray, {now - begin:.0f} of {limit:.0f} s", file=sys.stderr)
    try:
        client = client or JobSubmissionClient()
        job = job or client.submit_job(entrypoint="true")
        status = client.get_job_status(job)
        if status == JobStatus.SUCCEEDED:
            client.delete_job(job)
            sys.exit(0)
        if status.is_terminal():
            sys.exit(f"a first job ended as {status}")
    except Exception as error:  # until it is ready, it answers in many ways that it is not
        why = str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)
    time.sleep(0.3)
sys.exit(f"not ready after {limit:.0f} s: {why}")
PYTHON
}

give_address() {
    RAY_AUTH_TOKEN=$(cat "$STATE/token")
    export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
    export RAY_ADDRESS="127.0.0.1:$gcs" RAY_API_SERVER_ADDRESS="http://127.0.0.1:$dashboard"
    unset RAY_AUTH_TOKEN_PATH
}

start() {
    local cpus=() ports token
    while (($#)); do
        [[ $1 == --cpus ]] || fail "start does not know '$1': see cluster/local.sh --help" 2
        [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || fail "--cpus takes a number of 1 or more, not '${2:-}'" 2
        cpus=(--num-cpus "$2")
        shift 2
    done
    find_ray
    (umask 077 && mkdir -p -- "$STATE") || fail "cannot make the folder $STATE"
    exec 9>"$STATE/lock" # two starts at once would both find nothing running
    flock -w "$READY_S" 9 || fail "another start in $STATE does not come to an end"
    if load; then
        running && say "Ray is running: http://127.0.0.1:$dashboard" && return
        say "the last Ray ended without being stopped: cleaning up"
        end_head
    fi
    ports=$(free_ports 9)
    read -r gcs dashboard agent agent_grpc client metrics runtime_env autoscaler monitor <<<"$ports"
    token=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
    (umask 077 && printf '%s' "$token" >"$STATE/token")
    temp=$(mktemp -d /tmp/lungseg-XXXXXX) # short: the path of a Unix socket in it may have 107 bytes
    log=$STATE/ray.log
    trap 'end_head' EXIT
    (
        give_address
        # A head given an address would look for another; the variables move the two ports that have no option.
        unset RAY_ADDRESS RAY_API_SERVER_ADDRESS
        export LUNGSEG_RAY=$temp # the mark
        export AUTOSCALER_METRIC_PORT=$autoscaler DASHBOARD_METRIC_PORT=$monitor
        exec setsid ray start --head --block --disable-usage-stats --temp-dir "$temp" "${cpus[@]}" \
            --node-ip-address 127.0.0.1 --port "$gcs" --dashboard-host 127.0.0.1 --dashboard-port "$dashboard" \
            --dashboard-agent-listen-port "$agent" --dashboard-agent-grpc-port "$agent_grpc" \
            --ray-client-server-port "$client" --metrics-export-port "$metrics" \
            --runtime-env-agent-port "$runtime_env" </dev/null >"$log" 2>&1 9>&-
    ) &
    pgid=$!
    born=$(began "$pgid")
    printf '%s=%q\n' pgid "$pgid" born "$born" temp "$temp" gcs "$gcs" dashboard "$dashboard" log "$log" >"$STATE/head"
    (give_address && await_ready) || fail "Ray did not start; $log has the reason"
    trap - EXIT
    say "Ray is ready: http://127.0.0.1:$dashboard"
}

stop() {
    load || { say "Ray is not running" && return; }
    end_head
    say "Ray is stopped"
}

status() {
    load || { say "Ray is stopped" && exit 3; }
    running || { say "Ray has ended without being stopped: cluster/local.sh start or stop cleans up" && exit 3; }
    say "Ray is running: http://127.0.0.1:$dashboard, process group $pgid, log $log"
}

run() {
    (($#)) || fail "run takes a command: see cluster/local.sh --help" 2
    { load && running; } || fail "Ray is not running: cluster/local.sh start"
    find_ray
    give_address
    exec "$@"
}

usage() { sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"; }

[[ -r /proc/self/stat ]] || fail "this needs Linux: on other systems start Ray by hand, see cluster/README.md"
case ${1:-} in
start | run) "$@" ;;
stop | status) (($# == 1)) || fail "$1 takes nothing after it" 2; "$1" ;;
-h | --help | help) usage ;;
'') fail "pass start, run, status, stop or --help" 2 ;;
*) fail "no subcommand '$1': pass start, run, status, stop or --help" 2 ;;
esac
