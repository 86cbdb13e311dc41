#!/usr/bin/env bash
# A Ray cluster on one machine for development, separate from any other Ray on the host.
#
#   cluster/local.sh start [--cpus N] [--port N] [--dashboard-port N]
#                                       start it if it does not run; default: all CPUs, free ports
#   cluster/local.sh run COMMAND...     run a command with its address and token, for example
#                                       cluster/local.sh run ray job submit --working-dir . -- python jobs/train.py demo
#   cluster/local.sh env                print both for a shell: eval "$(cluster/local.sh env)"; contains the token
#   cluster/local.sh status             exit status 0 if it runs, 3 if not
#   cluster/local.sh stop               stop it and all its jobs, and delete its logs
#
# The dashboard listens on this machine only, and callers need a token, which `run` passes on. Ray's internal processes
# listen on all addresses. They require the token too, except the metrics endpoints.
# The state folder is $LUNGSEG_RAY_STATE, else $XDG_STATE_HOME/lungseg-ray, else ~/.local/state/lungseg-ray.
# A second folder gives a second, independent cluster.
set -euo pipefail

READY_S=120 # the first start reads several hundred MB of libraries from a cold disk
TERM_S=5    # for jobs to exit; Ray's own processes wait for each other and would take ten
KILL_S=5

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
STATE=${LUNGSEG_RAY_STATE:-${XDG_STATE_HOME:-${HOME:?"HOME is not set: set LUNGSEG_RAY_STATE to a folder"}/.local/state}/lungseg-ray}
log=$STATE/ray.log
pgid='' born='' temp='' gcs='' dashboard=''

say() { printf '%s\n' "$*" >&2; }
fail() { say "cluster/local.sh: $1" && exit "${2:-1}"; }

# Put the folder of ray first on PATH: jobs start with `#!/usr/bin/env python3` and need the Python in that folder.
find_ray() {
    local ray=$ROOT/.venv/bin/ray
    if [[ ! -x $ray ]]; then
        ray=$(command -v ray) ||
            fail "ray not found in .venv/bin or on PATH: run make demo once, or activate the environment with ray"
        ray=$(readlink -f -- "$ray")
    fi
    export PATH="${ray%/*}:$PATH"
}

# Print the start time of a process, or nothing if it has ended. A reused process id has another start time.
start_time() {
    local line words
    { line=$(<"/proc/$1/stat"); } 2>/dev/null || return 0
    read -ra words <<<"${line##*) }" # the name before it may contain spaces
    [[ ${words[0]} == Z ]] || printf '%s\n' "${words[19]}"
}

# Load the record of the head; false if there is none. An incomplete record is not used: with a truncated `temp`, other
# processes that write to files would match as Ray's and be killed.
load() {
    local name value
    [[ -r $STATE/head ]] || return 1
    while IFS='=' read -r name value; do
        case $name in pgid | born | temp | gcs | dashboard) printf -v "$name" '%s' "$value" ;; esac
    done <"$STATE/head"
    [[ $pgid =~ ^[1-9][0-9]*$ && $born =~ ^[0-9]*$ && $temp =~ ^/tmp/lungseg-[A-Za-z0-9]+$ &&
        $gcs =~ ^[0-9]+$ && $dashboard =~ ^[0-9]+$ ]] && return
    say "the record $STATE/head is damaged and is ignored: a Ray that it recorded may still run"
    pgid='' born='' temp='' gcs='' dashboard=''
}

running() { [[ -n $pgid && -n $born && $(start_time "$pgid") == "$born" ]]; }

# Print the ids of processes that belong to the head: they inherit the variable LUNGSEG_RAY or, if a process overwrote
# its environment with its title, have their standard output in the head's folder.
marked() {
    {
        grep -lzsxF -- "LUNGSEG_RAY=$temp" /proc/[0-9]*/environ
        find /proc/[0-9]*/fd/1 -lname "$temp/*" 2>/dev/null
    } | cut -d/ -f3 || true
}

# Succeed if the recorded session still belongs to the head: the head runs, or a marked process is in the session.
# Otherwise another session may have the same id by now.
own_session() {
    local id
    running && return
    for id in $(marked); do
        [[ $(ps -o sid= -p "$id" | tr -d ' ') != "$pgid" ]] || return 0
    done
    return 1
}

# Print the ids of all running processes of the head: those in its session (each worker has its own process group), and
# the marked ones (each job has its own session, and can outlive Ray there).
members() { # the session, or 0 if it does not belong to the head
    ps -A -o pid= -o sid= -o stat= | awk -v session="$1" -v marked="$(marked | tr '\n' ' ')" '
        BEGIN { n = split(marked, ids); for (i = 1; i <= n; i++) mark[ids[i]] }
        $3 !~ /^Z/ && ($1 in mark || (session && $2 == session)) { print $1 }'
}

signal() { # signal name, seconds to wait for the exit, session
    local end=$((SECONDS + $2)) ids first=1
    while mapfile -t ids < <(members "$3") && ((${#ids[@]})); do
        ((SECONDS < end)) || return 1
        # TERM is sent once; KILL is repeated, because a process may have started another one.
        [[ $1 == TERM && $first == 0 ]] || kill -"$1" -- "${ids[@]}" 2>/dev/null || true
        first=0
        sleep 0.2
    done
}

end_head() {
    local session=0
    if [[ -n $pgid ]]; then
        own_session && session=$pgid # checked once: the marked processes may end before the others
        signal TERM "$TERM_S" "$session" || signal KILL "$KILL_S" "$session" ||
            fail "these processes do not exit: $(members "$session" | tr '\n' ' ')"
    fi
    [[ $temp == /tmp/lungseg-* ]] && rm -rf -- "$temp"
    rm -f -- "$STATE/head" "$STATE/token"
}

# Print free ports below the ephemeral range, which the system uses for outgoing connections and Ray for its workers.
# All are held at once, so that no two are equal. The requested ports must be free too.
free_ports() { # number of ports, requested ports
    python3 - "$@" <<'PYTHON'
import itertools
import random
import socket
import sys

held = []


def hold(port: int) -> bool:
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was released a moment ago is free
    try:
        probe.bind(("", port))
        probe.listen()
    except OSError:
        return False
    held.append(probe)
    return True


for requested in map(int, sys.argv[2:]):
    if not hold(requested):
        sys.exit(f"cluster/local.sh: port {requested} is in use: pass another port, or none to use a free one")
candidates = random.SystemRandom().sample(range(20000, 32000), 1000)
ports = list(itertools.islice(filter(hold, candidates), int(sys.argv[1])))
if len(ports) < int(sys.argv[1]):
    sys.exit("cluster/local.sh: not enough free ports between 20000 and 32000: stop other servers")
print(*ports)
PYTHON
}

# Wait until the job server and the agent that starts its jobs respond. The server responds some seconds earlier.
await_ready() {
    python3 - "$pgid" "$READY_S" "$RAY_API_SERVER_ADDRESS/api/version" \
        "http://127.0.0.1:$agent/api/local_raylet_healthz" <<'PYTHON'
import os
import sys
import time
import urllib.request

head, limit, urls = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
begin = last_message = time.monotonic()
token = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
why = "no response"
while urls and (now := time.monotonic()) < begin + limit:
    try:
        os.kill(head, 0)
    except ProcessLookupError:
        sys.exit("Ray exited during its start")
    if now > last_message + 5:
        last_message = now
        print(f"waiting for Ray, {now - begin:.0f} of {limit:.0f} s", file=sys.stderr)
    try:
        direct.open(urllib.request.Request(urls[0], headers=token), timeout=5).close()
        del urls[0]
    except OSError as error:
        why = f"{urls[0]}: {error}"
        time.sleep(0.3)
if urls:
    sys.exit(f"Ray is not ready after {limit:.0f} s: {why}")
PYTHON
}

give_address() {
    RAY_AUTH_TOKEN=$(cat "$STATE/token")
    export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
    export RAY_ADDRESS="127.0.0.1:$gcs" RAY_API_SERVER_ADDRESS="http://127.0.0.1:$dashboard"
    unset RAY_AUTH_TOKEN_PATH
}

start() {
    local cpus=() port='' dashboard_port='' ports token options="$*"
    while (($#)); do
        [[ $1 =~ ^--(cpus|port|dashboard-port)$ ]] || fail "start has no option '$1': see cluster/local.sh --help" 2
        [[ ${2:-} =~ ^[1-9][0-9]{0,4}$ && ($1 == --cpus || $2 -lt 65536) ]] ||
            fail "$1 takes a number of 1 or more, not '${2:-}'" 2
        case $1 in
        --cpus) cpus=(--num-cpus "$2") ;;
        --port) port=$2 ;;
        --dashboard-port) dashboard_port=$2 ;;
        esac
        shift 2
    done
    find_ray
    (umask 077 && mkdir -p -- "$STATE") || fail "cannot create the folder $STATE"
    exec 9>"$STATE/lock" # otherwise two starts at once would both start Ray
    flock -w "$READY_S" 9 || fail "another start in $STATE did not finish within $READY_S s: wait, or end it"
    if load; then
        running && say "Ray is running already: http://127.0.0.1:$dashboard${options:+; stop it to apply $options}" &&
            return
        say "the last Ray ended without cluster/local.sh stop: cleaning up"
        end_head
    fi
    # shellcheck disable=SC2086 # an empty port must not become an argument
    ports=$(free_ports 9 $port $dashboard_port)
    read -r gcs dashboard agent agent_grpc client metrics runtime_env autoscaler monitor <<<"$ports"
    gcs=${port:-$gcs} dashboard=${dashboard_port:-$dashboard}
    token=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
    (umask 077 && printf '%s' "$token" >"$STATE/token")
    # A short path, because Unix socket paths are limited to 107 bytes. Ray gets a subfolder, because it opens its own
    # folder to all users.
    temp=$(mktemp -d /tmp/lungseg-XXXXXX)
    trap 'end_head' EXIT
    (
        give_address
        # With an address, a head would try to join another cluster. AUTOSCALER_METRIC_PORT and DASHBOARD_METRIC_PORT
        # set the two ports that have no command-line option.
        unset RAY_ADDRESS RAY_API_SERVER_ADDRESS
        export LUNGSEG_RAY=$temp # marks the processes of this head
        export AUTOSCALER_METRIC_PORT=$autoscaler DASHBOARD_METRIC_PORT=$monitor
        exec setsid ray start --head --block --disable-usage-stats --temp-dir "$temp/r" "${cpus[@]}" \
            --node-ip-address 127.0.0.1 --port "$gcs" --dashboard-host 127.0.0.1 --dashboard-port "$dashboard" \
            --dashboard-agent-listen-port "$agent" --dashboard-agent-grpc-port "$agent_grpc" \
            --ray-client-server-port "$client" --metrics-export-port "$metrics" \
            --runtime-env-agent-port "$runtime_env" </dev/null >"$log" 2>&1 9>&-
    ) &
    pgid=$!
    disown # otherwise the shell reports when the head is killed
    born=$(start_time "$pgid")
    printf '%s=%s\n' pgid "$pgid" born "$born" temp "$temp" gcs "$gcs" dashboard "$dashboard" >"$STATE/head.new"
    mv -- "$STATE/head.new" "$STATE/head" # atomic: complete or not at all
    (give_address && await_ready) || fail "Ray did not start: see the line above and $log"
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
    running || { say "Ray ended without cluster/local.sh stop: run start or stop to clean up" && exit 3; }
    say "Ray is running: http://127.0.0.1:$dashboard, process group $pgid, log $log"
}

run() {
    (($#)) || fail "run needs a command: see cluster/local.sh --help" 2
    { load && running; } || fail "Ray is not running: run cluster/local.sh start"
    find_ray
    give_address
    exec "$@"
}

env_lines() {
    local name
    { load && running; } || fail "Ray is not running: run cluster/local.sh start"
    find_ray
    give_address
    for name in PATH RAY_ADDRESS RAY_API_SERVER_ADDRESS RAY_AUTH_MODE RAY_AUTH_TOKEN; do
        printf 'export %s=%q\n' "$name" "${!name}"
    done
    echo 'unset RAY_AUTH_TOKEN_PATH'
}

usage() { sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"; }

[[ -r /proc/self/stat ]] || fail "this script needs Linux: on other systems run the jobs directly, each starts its own Ray"
case ${1:-} in
start | run) "$@" ;;
env) (($# == 1)) || fail "env takes no arguments" 2; env_lines ;;
stop | status) (($# == 1)) || fail "$1 takes no arguments" 2; "$1" ;;
-h | --help | help) usage ;;
'') fail "pass start, run, env, status, stop or --help" 2 ;;
*) fail "unknown subcommand '$1': pass start, run, env, status, stop or --help" 2 ;;
esac
