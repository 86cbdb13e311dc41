#!/usr/bin/env bash
# A Ray of one machine for development, apart from any other Ray on the host.
#
#   cluster/local.sh start [--cpus N] [--port N] [--dashboard-port N]
#                                       start it, or say that it runs; all CPUs and free ports when not given
#   cluster/local.sh run COMMAND...     run a command that finds it, for example
#                                       cluster/local.sh run ray job submit --working-dir . -- python jobs/train.py demo
#   cluster/local.sh env                the same as lines for a shell: eval "$(cluster/local.sh env)"; they hold the token
#   cluster/local.sh status             status 0 when it runs, 3 when it does not
#   cluster/local.sh stop               end it and every job on it; its logs go with it
#
# Its dashboard listens on this machine only, and each caller needs a token, which `run` passes on. Ray's own processes
# listen on all addresses; they ask for the token too, all but those that give out metrics.
# Its state is in $LUNGSEG_RAY_STATE, else $XDG_STATE_HOME/lungseg-ray, else ~/.local/state/lungseg-ray:
# another folder is another Ray.
set -euo pipefail

READY_S=120 # a first start on a cold disk reads some hundred MB of libraries
TERM_S=5    # for jobs to end by themselves; Ray's own processes would take ten, waiting for one another
KILL_S=5

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
STATE=${LUNGSEG_RAY_STATE:-${XDG_STATE_HOME:-${HOME:?"HOME is not set: set LUNGSEG_RAY_STATE to a folder"}/.local/state}/lungseg-ray}
log=$STATE/ray.log
pgid='' born='' temp='' gcs='' dashboard=''

say() { printf '%s\n' "$*" >&2; }
fail() { say "cluster/local.sh: $1" && exit "${2:-1}"; }

# Puts the folder of ray first on PATH: jobs start with `#!/usr/bin/env python3` and need the Python beside it.
find_ray() {
    local ray=$ROOT/.venv/bin/ray
    if [[ ! -x $ray ]]; then
        ray=$(command -v ray) ||
            fail "no ray in .venv/bin or on PATH: run make demo once, or activate the environment that has it"
        ray=$(readlink -f -- "$ray")
    fi
    export PATH="${ray%/*}:$PATH"
}

# When a process began, or nothing once it has ended: tells a process from a later one with the same id.
began() {
    local line words
    { line=$(<"/proc/$1/stat"); } 2>/dev/null || return 0
    read -ra words <<<"${line##*) }" # the name before it may hold blanks
    [[ ${words[0]} == Z ]] || printf '%s\n' "${words[19]}"
}

# The recorded head; false when there is none. A record that is not whole names nobody: with a part of `temp` every
# process that writes to a file would pass for one of Ray's, and be ended.
load() {
    local name value
    [[ -r $STATE/head ]] || return 1
    while IFS='=' read -r name value; do
        case $name in pgid | born | temp | gcs | dashboard) printf -v "$name" '%s' "$value" ;; esac
    done <"$STATE/head"
    [[ $pgid =~ ^[1-9][0-9]*$ && $born =~ ^[0-9]*$ && $temp =~ ^/tmp/lungseg-[A-Za-z0-9]+$ &&
        $gcs =~ ^[0-9]+$ && $dashboard =~ ^[0-9]+$ ]] && return
    say "the record $STATE/head is damaged: a Ray that it named is left alone"
    pgid='' born='' temp='' gcs='' dashboard=''
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
# all held at once, so that no two are the same. Those asked for must be free as well.
free_ports() { # how many, ports asked for
    python3 - "$@" <<'PYTHON'
import itertools
import random
import socket
import sys

held = []


def hold(port: int) -> bool:
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port given up a moment ago is free
    try:
        probe.bind(("", port))
        probe.listen()
    except OSError:
        return False
    held.append(probe)
    return True


for asked in map(int, sys.argv[2:]):
    if not hold(asked):
        sys.exit(f"cluster/local.sh: port {asked} is taken: pass another, or none for a free one")
some = random.SystemRandom().sample(range(20000, 32000), 1000)
wanted = list(itertools.islice(filter(hold, some), int(sys.argv[1])))
if len(wanted) < int(sys.argv[1]):
    sys.exit("cluster/local.sh: no free ports between 20000 and 32000")
print(*wanted)
PYTHON
}

# Waits until the job server and the agent that starts its jobs answer: the server alone is some seconds early.
await_ready() {
    python3 - "$pgid" "$READY_S" "$RAY_API_SERVER_ADDRESS/api/version" \
        "http://127.0.0.1:$agent/api/local_raylet_healthz" <<'PYTHON'
import os
import sys
import time
import urllib.request

head, limit, waiting = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
begin = reported = time.monotonic()
token = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
why = "no answer"
while waiting and (now := time.monotonic()) < begin + limit:
    try:
        os.kill(head, 0)
    except ProcessLookupError:
        sys.exit("it ended while starting")
    if now > reported + 5:
        reported = now
        print(f"waiting for Ray, {now - begin:.0f} of {limit:.0f} s", file=sys.stderr)
    try:
        direct.open(urllib.request.Request(waiting[0], headers=token), timeout=5).close()
        del waiting[0]
    except OSError as error:
        why = f"{waiting[0]}: {error}"
        time.sleep(0.3)
if waiting:
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
    local cpus=() port='' dashboard_port='' ports token given="$*"
    while (($#)); do
        [[ $1 =~ ^--(cpus|port|dashboard-port)$ ]] || fail "start does not know '$1': see cluster/local.sh --help" 2
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
    (umask 077 && mkdir -p -- "$STATE") || fail "cannot make the folder $STATE"
    exec 9>"$STATE/lock" # two starts at once would both find nothing running
    flock -w "$READY_S" 9 || fail "another start in $STATE does not come to an end"
    if load; then
        running && say "Ray is running: http://127.0.0.1:$dashboard${given:+, as it was started: stop it first for $given}" &&
            return
        say "the last Ray ended without being stopped: cleaning up"
        end_head
    fi
    # shellcheck disable=SC2086 # a port that was not asked for is no word
    ports=$(free_ports 9 $port $dashboard_port)
    read -r gcs dashboard agent agent_grpc client metrics runtime_env autoscaler monitor <<<"$ports"
    gcs=${port:-$gcs} dashboard=${dashboard_port:-$dashboard}
    token=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
    (umask 077 && printf '%s' "$token" >"$STATE/token")
    # Short: the path of a Unix socket in it may have 107 bytes. Ray gets a folder in it: its own it opens to all users.
    temp=$(mktemp -d /tmp/lungseg-XXXXXX)
    trap 'end_head' EXIT
    (
        give_address
        # A head given an address would look for another; the variables move the two ports that have no option.
        unset RAY_ADDRESS RAY_API_SERVER_ADDRESS
        export LUNGSEG_RAY=$temp # the mark
        export AUTOSCALER_METRIC_PORT=$autoscaler DASHBOARD_METRIC_PORT=$monitor
        exec setsid ray start --head --block --disable-usage-stats --temp-dir "$temp/r" "${cpus[@]}" \
            --node-ip-address 127.0.0.1 --port "$gcs" --dashboard-host 127.0.0.1 --dashboard-port "$dashboard" \
            --dashboard-agent-listen-port "$agent" --dashboard-agent-grpc-port "$agent_grpc" \
            --ray-client-server-port "$client" --metrics-export-port "$metrics" \
            --runtime-env-agent-port "$runtime_env" </dev/null >"$log" 2>&1 9>&-
    ) &
    pgid=$!
    disown # that it was killed is said by who notices, not by the shell
    born=$(began "$pgid")
    printf '%s=%s\n' pgid "$pgid" born "$born" temp "$temp" gcs "$gcs" dashboard "$dashboard" >"$STATE/head.new"
    mv -- "$STATE/head.new" "$STATE/head" # whole or not at all
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

env_lines() {
    local name
    { load && running; } || fail "Ray is not running: cluster/local.sh start"
    find_ray
    give_address
    for name in PATH RAY_ADDRESS RAY_API_SERVER_ADDRESS RAY_AUTH_MODE RAY_AUTH_TOKEN; do
        printf 'export %s=%q\n' "$name" "${!name}"
    done
    echo 'unset RAY_AUTH_TOKEN_PATH'
}

usage() { sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"; }

[[ -r /proc/self/stat ]] || fail "this needs Linux: on other systems run the jobs without it: each starts a Ray of its own"
case ${1:-} in
start | run) "$@" ;;
env) (($# == 1)) || fail "env takes nothing after it" 2; env_lines ;;
stop | status) (($# == 1)) || fail "$1 takes nothing after it" 2; "$1" ;;
-h | --help | help) usage ;;
'') fail "pass start, run, env, status, stop or --help" 2 ;;
*) fail "no subcommand '$1': pass start, run, env, status, stop or --help" 2 ;;
esac
