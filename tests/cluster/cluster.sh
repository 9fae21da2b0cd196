#!/usr/bin/env bash
# A real SLURM cluster on this machine's loopback, for the tests: one controller and several node daemons, n1, n2, ...,
# each with one GPU that is only a name (/dev/null), without accounting. Needs root and Debian's slurm-wlm and munge.
#
#   cluster.sh start [--nodes N] [--cpus C]   start it, or whatever of it is down; returns when every node is up
#   cluster.sh stop                           end its jobs and daemons and remove all it wrote
#   cluster.sh status                         one line; exit code 0: every node is up, 1: some are not, 3: it does not run
#   cluster.sh node NAME start|stop           bring one node back, or lose it: its daemon and its jobs are killed
#
# All state is in $STATE, but for /etc/slurm/{slurm,gres}.conf: Snakemake's SLURM executor strips SLURM_CONF from
# its jobs, so the configuration has to be where SLURM looks by default. A configuration that this script
# did not write is never touched. The daemons are told from others on the machine by the log in $STATE that they hold
# open, so no pid file is ever trusted, and a machine that died with the cluster up needs no cleaning.
set -euo pipefail

readonly STATE=/tmp/emdiffuse-slurm
readonly CONF=/etc/slurm/slurm.conf GRES=/etc/slurm/gres.conf
readonly MARK="# Written by emdiffuse's tests/cluster/cluster.sh, which also removes it."
readonly START_SECONDS=60

die() {
  echo "cluster.sh: $1" >&2
  if [[ -n ${2:-} && -s $2 ]]; then
    echo "The end of $2:" >&2
    tail -n 15 "$2" >&2
  fi
  exit 1
}

# --- What runs -------------------------------------------------------------------------------------------------------

# Pids of this cluster's daemons called $1, of node $2 if given: those that hold a log of it open.
daemons() {
  local name=$1 log="$STATE/${2:-*}.log*" proc comm
  for proc in /proc/[0-9]*; do
    { read -r comm <"$proc/comm"; } 2>/dev/null || continue
    if [[ $comm == "$name" && -n $(find "$proc/fd" -lname "$log" 2>/dev/null) ]]; then echo "${proc#/proc/}"; fi
  done
}

# The given pids' children, and theirs.
descendants() {
  local pid children
  for pid in "$@"; do
    children=$(awk -v "pid=$pid" '/^Pid:/ { own = $2 } /^PPid:/ && $2 == pid { print own }' /proc/[0-9]*/status 2>/dev/null)
    # shellcheck disable=SC2086 # pids, to be split
    [[ -z $children ]] || { echo "$children" && descendants $children; }
  done
}

# Sends TERM to the given pids, and KILL to those that are still there after 5 seconds.
end() {
  local pid
  for pid in "$@"; do kill "$pid" 2>/dev/null || true; done
  for pid in "$@"; do
    for _ in {1..50}; do
      readlink "/proc/$pid/exe" >/dev/null 2>&1 || break # gone, or a zombie that nobody waits for
      sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
  done
}

is_ours() { [[ -f $1 && $(head -n 1 "$1") == "$MARK" ]]; }

nodes() { seq -f 'n%g' "$(sed -n 's/^NodeName=n\[1-\([0-9]*\)\].*/\1/p' "$CONF")"; }

# The nodes that are up. (A state with an asterisk is that of a node that does not answer.)
nodes_up() {
  sinfo --noheader --Node --partition=cpu --format='%N %T' 2>/dev/null |
    sed -nE 's/ (idle|mixed|allocated|completing)$//p'
}

# --- Start -----------------------------------------------------------------------------------------------------------

write_configuration() {
  local count=$1 cpus=$2
  mkdir -p /etc/slurm
  cat >"$CONF" <<END
$MARK
ClusterName=emdiffuse
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
# Its own munged. cred_expire is also how long a requeued job waits before it starts again (120 seconds by default).
AuthType=auth/munge
AuthInfo=socket=$STATE/munge.socket,cred_expire=15
CredType=cred/munge
StateSaveLocation=$STATE/controller
SlurmdSpoolDir=$STATE/%n
SlurmctldPidFile=$STATE/slurmctld.pid
SlurmdPidFile=$STATE/%n.pid
SlurmctldLogFile=$STATE/slurmctld.log
SlurmdLogFile=$STATE/%n.log
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
# No control groups, so that it runs in a container too.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
# A lost node is noticed after some 20 seconds and is used again as soon as it is back.
SlurmdTimeout=15
ReturnToService=2
MessageTimeout=10
KillWait=5
OverTimeLimit=0
# Snakemake learns from squeue alone how a job ended: finished jobs have to stay in it for a while.
MinJobAge=600
SchedulerType=sched/backfill
# A job starts when it is submitted, not seconds later.
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
GresTypes=gpu
# The nodes are what is written here, whatever this machine is.
SlurmdParameters=config_overrides
NodeName=n[1-$count] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[16821-$((16820 + count))] CPUs=$cpus RealMemory=8000 Gres=gpu:1
# LLN: jobs go to the node with the least to do; otherwise two small ones would share the first.
PartitionName=cpu Nodes=ALL Default=YES LLN=YES MaxTime=INFINITE DefaultTime=60 State=UP
PartitionName=gpu Nodes=ALL LLN=YES MaxTime=INFINITE DefaultTime=60 State=UP
END
  cat >"$GRES" <<END
$MARK
NodeName=n[1-$count] Name=gpu File=/dev/null
END
}

# Starts a daemon, which goes into the background by itself, without the lock's descriptor. Its log is $STATE/$1.log.
launch() {
  local name=$1
  shift
  "$@" </dev/null >>"$STATE/$name.log" 2>&1 9>&- ||
    die "$name did not start." "$STATE/$name.log"
}

start_node() {
  [[ -z $(daemons slurmd "$1") ]] || return 0
  mkdir -p "$STATE/$1"
  launch "$1" slurmd -N "$1"
}

wait_for_nodes() {
  local name before=$SECONDS
  for name in "$@"; do
    until nodes_up | grep -qx "$name"; do
      [[ -n $(daemons slurmctld) ]] || die "the controller ended while it started." "$STATE/slurmctld.log"
      [[ -n $(daemons slurmd "$name") ]] || die "the slurmd of $name ended while it started." "$STATE/$name.log"
      ((SECONDS - before < START_SECONDS)) ||
        die "node $name is not up after $START_SECONDS seconds." "$STATE/$name.log"
      sleep 0.2
    done
  done
}

start() {
  local count='' cpus='' before=$SECONDS name
  while (($#)); do
    case $1 in
      --nodes) count=${2:-} ;;
      --cpus) cpus=${2:-} ;;
      *) die "start takes --nodes N and --cpus C, not $1." ;;
    esac
    [[ ${2:-} =~ ^[1-9][0-9]?$ ]] || die "$1 takes a number from 1 to 99."
    shift 2
  done
  if [[ -n $(daemons slurmctld) ]] && is_ours "$CONF"; then
    local has_count has_cpus
    has_count=$(nodes | wc -l)
    has_cpus=$(sed -n 's/^NodeName=.* CPUs=\([0-9]*\).*/\1/p' "$CONF")
    if [[ ${count:-$has_count} != "$has_count" || ${cpus:-$has_cpus} != "$has_cpus" ]]; then
      die "the cluster already runs with $has_count nodes of $has_cpus CPUs; stop it first to change that."
    fi
  else
    stop
    write_configuration "${count:-2}" "${cpus:-2}"
  fi

  mkdir -p "$STATE/controller"
  chmod 755 "$STATE"
  if [[ -z $(daemons munged) ]]; then
    [[ -s $STATE/munge.key ]] || (umask 077 && head -c 1024 /dev/urandom >"$STATE/munge.key")
    rm -f "$STATE"/munge.socket*
    launch munged munged --socket="$STATE/munge.socket" --key-file="$STATE/munge.key" \
      --pid-file="$STATE/munged.pid" --log-file="$STATE/munged.log" --seed-file="$STATE/munged.seed" --num-threads=2
  fi
  if [[ -z $(daemons slurmctld) ]]; then launch slurmctld slurmctld -c; fi
  for name in $(nodes); do start_node "$name"; done
  # shellcheck disable=SC2046 # names, to be split
  wait_for_nodes $(nodes)
  echo "SLURM cluster up in $((SECONDS - before)) s: $(status)"
}

# --- Stop ------------------------------------------------------------------------------------------------------------

# Without a word where there is nothing to stop.
stop() {
  local steps state file
  if [[ -n $(daemons slurmctld) ]]; then
    for state in PENDING SUSPENDED RUNNING; do
      timeout 10 scancel --state="$state" 2>/dev/null || true
    done
    for _ in {1..70}; do # KillWait, and a little
      [[ -n $(daemons slurmstepd) ]] || break
      sleep 0.1
    done
  fi
  steps=$(daemons slurmstepd)
  # shellcheck disable=SC2046,SC2086 # pids, to be split
  {
    end $(daemons slurmctld) $(daemons slurmd)
    end $(descendants $steps) $steps
    end $(daemons munged)
  }
  for file in "$CONF" "$GRES"; do
    if is_ours "$file"; then rm -f "$file"; fi
  done
  rm -rf "$STATE"
}

# What a node does that loses its power: its daemon and all that its jobs run are gone at once.
#
# Whoever watches over the jobs is stopped first: it would otherwise see them die, and report them as failed before it
# is killed itself, which on a busy machine may take a while.
lose_node() {
  local daemon steps jobs
  daemon=$(daemons slurmd "$1")
  steps=$(daemons slurmstepd "$1")
  # shellcheck disable=SC2086 # pids, to be split
  {
    jobs=$(descendants $daemon $steps)
    kill -STOP $daemon $steps 2>/dev/null || true
    kill -KILL $steps $daemon $jobs 2>/dev/null || true
  }
}

# --- Status ----------------------------------------------------------------------------------------------------------

status() {
  [[ -n $(daemons slurmctld) ]] || { echo "no cluster of emdiffuse runs; start it with $0 start" && return 3; }
  local up all
  up=$(nodes_up | wc -l)
  all=$(nodes | wc -l)
  echo "$up of $all nodes up ($(sinfo --noheader --Node --partition=cpu --format='%N %T %c CPUs %G' | sed 's/(.*//' | paste -sd ';' | sed 's/;/; /g'))"
  [[ $up == "$all" ]]
}

# --- The command -----------------------------------------------------------------------------------------------------

usage() {
  sed -n '/^#   cluster.sh/s/^#   //p' "$0"
}

main() {
  local verb=${1:-} name
  shift || true
  case $verb in
    start | stop | status | node) ;;
    *) usage >&2 && exit 2 ;;
  esac
  # The caller's own cluster, if any, is not meant.
  for name in $(compgen -e | grep -E '^(SLURM|SBATCH|SRUN|SINFO|SQUEUE|SCANCEL)_' || true); do unset "$name"; done
  PATH=$PATH:/usr/sbin:/sbin
  if [[ $verb == status ]]; then
    status
    return
  fi

  for name in munged slurmctld slurmd sinfo sbatch; do
    command -v "$name" >/dev/null || die "$name is missing: apt-get install slurm-wlm munge."
  done
  [[ $EUID == 0 ]] || die "only root can run a cluster."
  for name in "$CONF" "$GRES"; do
    if [[ -e $name ]] && ! is_ours "$name"; then
      die "$name is not of this script; a machine with a SLURM configuration of its own is left alone."
    fi
  done
  exec 9<"$0" # one start or stop at a time
  flock --wait 120 9 || die "another $0 has been at work for two minutes."
  case $verb in
    start) start "$@" ;;
    stop) stop ;;
    node)
      [[ -n $(daemons slurmctld) ]] || die "no cluster runs."
      grep -qx "${1:-}" <<<"$(nodes)" || die "the nodes are $(nodes | paste -sd ' '), not ${1:-nothing}."
      case ${2:-} in
        start) start_node "$1" && wait_for_nodes "$1" ;;
        stop) lose_node "$1" ;;
        *) die "a node can start or stop." ;;
      esac
      ;;
  esac
}

main "$@"
