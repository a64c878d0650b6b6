#!/usr/bin/env bash
# Bring up a one-node Slurm on loopback, preempt a run on it, show it go on, stop everything.
#   scripts/slurm_one_node.sh [FOLDER]     as root; prints the transcript in docs/slurm.md
# Needs Debian's slurm-wlm and munge, and resexp with its slurm extra: RESEXP=... names the command.
# About five minutes, of which Slurm holds the requeued job for two.
set -euo pipefail
folder=${1:-$(mktemp -d)}
resexp=${RESEXP:-resexp}
for needed in munged slurmctld slurmd sbatch; do
    command -v "$needed" >/dev/null || { echo "no $needed: apt-get install slurm-wlm munge" >&2; exit 2; }
done
mkdir -p "$folder/slurm/state" "$folder/slurm/spool" "$folder/bin"
cd "$folder"
host=$(hostname)
export SLURM_CONF=$PWD/slurm/slurm.conf PATH=$PWD/bin:$PATH OMP_NUM_THREADS=1

# Everything that is started here is stopped at the end, by its own process id.
started=()
stop_all() {
    trap - EXIT
    for process in "${started[@]}"; do kill "$process" 2>/dev/null || true; done
    wait
}
trap stop_all EXIT
start() {
    local log=$1
    shift
    "$@" >"slurm/$log.log" 2>&1 &
    started+=($!)
}

dd if=/dev/urandom of=slurm/munge.key bs=1024 count=1 status=none
chmod 600 slurm/munge.key
cat >slurm/slurm.conf <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$PWD/slurm/munge.socket
StateSaveLocation=$PWD/slurm/state
SlurmdSpoolDir=$PWD/slurm/spool
SlurmctldPidFile=$PWD/slurm/slurmctld.pid
SlurmdPidFile=$PWD/slurm/slurmd.pid
SlurmctldPort=16817
SlurmdPort=16818
SlurmctldParameters=preempt_send_user_signal
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# Preempted by a partition of a higher tier: a minute's grace, announced by the job's own signal.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=node NodeHostname=$host NodeAddr=127.0.0.1 CPUs=1 State=UNKNOWN
PartitionName=low Nodes=node Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=60
PartitionName=high Nodes=node MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
CONF
# sacct reads the accounting database, a server more. This says the same of the jobs that are known.
cat >bin/sacct <<'SACCT'
#!/bin/sh
echo "JobID|State|NodeList"
scontrol show job --oneliner | sed -n 's/.*ArrayJobId=\([0-9]*\) ArrayTaskId=\([0-9]*\) .*JobState=\([A-Z]*\) .*/\1_\2|\3|/p'
SACCT
chmod +x bin/sacct

# What is shown names no machine and no folder of it.
generic() { sed -u -e "s|$PWD|.|g" -e "s|\b$host\b|node|g"; }
patience=30
say() { printf '\n$ %s\n' "$*"; }
show() {
    say "$*"
    "$@" 2>&1 | generic
}
wait_for() {
    local what=$1 count=0
    shift
    until "$@" >/dev/null 2>&1; do
        count=$((count + 1))
        [ "$count" -le "$patience" ] || { echo "waited $patience s for $what" >&2; tail -n 20 slurm/*.log run.out >&2; exit 1; }
        sleep 1
    done
}

start munged munged --foreground --key-file "$PWD/slurm/munge.key" --socket "$PWD/slurm/munge.socket" \
    --pid-file "$PWD/slurm/munged.pid" --log-file "$PWD/slurm/munged.log" --seed-file "$PWD/slurm/munge.seed"
wait_for munge test -S slurm/munge.socket
start slurmctld slurmctld -D -c
wait_for slurmctld scontrol ping
start slurmd slurmd -D -c
wait_for "an idle node" sh -c 'sinfo --noheader --format %T | grep -q idle'
show sinfo --version
show sinfo --format "%P %T %c"

# Saved once an hour: what the run goes on from, the signal had it save.
run=(depth=8 steps=3000 eval_every=300 batch_size=32 checkpoint_every=3600)
away=(launch=slurm launch.partition=low launch.gpus=0)
directory=results/digits/plain-8-s0,batch_size=32,eval_every=300,steps=3000
say resexp run "${run[@]}" "${away[@]}"
$resexp run "${run[@]}" "${away[@]}" >run.out 2>&1 &
command=$!
patience=300
started+=("$command")
wait_for "two rows" sh -c "test \$(wc -l <'$directory/metrics.csv') -gt 2"
show squeue --format "%.8i %.9P %.8T %.4M"

say sbatch --partition=high --wrap "sleep 10"
sbatch --partition=high --output=/dev/null --wrap "sleep 10"
wait_for "the interruption" grep -q '"status": "interrupted"' "$directory/run.json"
show grep '"status"' "$directory/run.json"
wait_for "the other job to start" sh -c 'squeue --noheader --partition=high --states=R | grep -q .'
show squeue --format "%.8i %.9P %.8T %.4M"
wait_for "the run to go on" grep -q '"status": "running"' "$directory/run.json"
show squeue --format "%.8i %.9P %.8T %.4M"
code=0
wait "$command" || code=$?
show cat run.out
echo "exit code $code"
show cat results/.slurm/*/*_log.out

say resexp run "${run[@]}" threads=1 results=whole
$resexp run "${run[@]}" threads=1 results=whole 2>/dev/null
say "diff of the two metrics.csv without their columns of time"
without_time() { cut -d, -f1-9 "$1"; }
diff <(without_time "$directory/metrics.csv") <(without_time "whole${directory#results}/metrics.csv") \
    && echo "equal: $(wc -l <"$directory/metrics.csv") lines"
exit "$code"
