#!/bin/sh
# Two machines of a Ray cluster on one: two network namespaces with a cable between them, each with a node of its own.
#
#   sudo ./two_machines.sh start          # needs the command ip and Ray: pip install 'sasrec[ray]'
#   sudo ./two_machines.sh run sasrec train LOG --output RUN --on ray --workers 2
#   sudo ./two_machines.sh lose           # the second machine is gone
#   sudo ./two_machines.sh stop
#
# CPUS is how many CPUs each machine tells Ray it has (default: 1).
set -eu

first=ray-first
second=ray-second
address=10.77.32
cpus=${CPUS:-1}
token=${TMPDIR:-/tmp}/ray-two-machines.token # without which Ray lets nobody in

inside() {
  name=$1
  shift
  # What gloo and Ray take for this machine's address, and nothing sent to Ray's makers.
  ip netns exec "$name" env GLOO_SOCKET_IFNAME=cable RAY_USAGE_STATS_ENABLED=0 \
    RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$token" "$@"
}

node() {
  name=$1
  shift
  inside "$name" ray start --num-cpus "$cpus" --object-store-memory 200000000 --disable-usage-stats "$@" >/dev/null
}

processes_of() {
  ip netns pids "$1" 2>/dev/null || true
}

lose() {
  for process in $(processes_of "$1"); do
    kill -9 "$process" 2>/dev/null || true
  done
}

start() {
  (umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$token")
  for name in $first $second; do
    ip netns add "$name"
  done
  ip link add cable netns $first type veth peer name cable netns $second
  ip -n $first addr add $address.1/24 dev cable
  ip -n $second addr add $address.2/24 dev cable
  for name in $first $second; do
    ip -n "$name" link set lo up
    ip -n "$name" link set cable up
  done
  node $first --head --node-ip-address $address.1 --port 6379 --include-dashboard false
  node $second --node-ip-address $address.2 --address $address.1:6379
}

stop() {
  for name in $second $first; do
    lose "$name"
    ip netns del "$name" 2>/dev/null || true
  done
  rm -f "$token"
}

case ${1:-} in
  start) start ;;
  run)
    shift
    inside $first env RAY_ADDRESS=$address.1:6379 "$@"
    ;;
  lose) lose $second ;;
  stop) stop ;;
  *)
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
