# What a guest can be told; agent.py reads this before every script.

# A device of so many MiB, all zero, of which DRBD is to know that both sides are equal.
fresh() {
  quiet
  drbdadm down r0 2> /dev/null
  dd if=/dev/zero of=/dev/vda bs=1M count="$1" oflag=direct status=none
  yes yes | drbdadm create-md --force r0 > /dev/null 2>&1
  drbdadm up r0
}

# Clients reach /dev/drbd0 past the page cache: what they read comes from DRBD each time.
export_device() {
  qemu-nbd --persistent --shared=8 --format=raw --cache=none --aio=threads --port=10809 /dev/drbd0 \
    > /run/export.log 2>&1 < /dev/null &
}

promote() { drbdadm primary r0 && export_device; }

# Automatic promotion, as a cluster manager does it that has no quorum: this node becomes primary when as far as it can
# see there has been no primary for so many seconds. Time in which it stood still does not count. With `both`: as soon as
# its copy is up to date.
promoter() {
  (
    since=$EPOCHSECONDS looked=$EPOCHSECONDS
    while sleep .2; do
      [ $((EPOCHSECONDS - looked)) -le 3 ] || since=$EPOCHSECONDS
      looked=$EPOCHSECONDS
      case $(drbdadm role r0) in
        Primary/*) since=$looked; pidof qemu-nbd > /dev/null || { export_device; sleep 1; } ;;
        */Primary) since=$looked; [ "${2-}" = both ] && [[ $(drbdadm dstate r0) = UpToDate/* ]] && promote ;;
        *) [ $((looked - since)) -lt "$1" ] || promote || since=$EPOCHSECONDS ;;
      esac
    done
  ) > /run/promoter.log 2>&1 < /dev/null &
  echo $! > /run/promoter.pid
}

# The promoter and the export end, and nobody uses the device any more.
quiet() {
  [ -f /run/promoter.pid ] && kill "$(cat /run/promoter.pid)" && rm /run/promoter.pid
  for _ in $(seq 100); do pidof qemu-nbd > /dev/null || break; kill $(pidof qemu-nbd); sleep .1; done
} 2> /dev/null

# After a split brain: this node's changes since then are given up.
give_up() {
  quiet
  drbdadm disconnect r0
  for _ in $(seq 50); do drbdadm secondary r0 && break; sleep .2; done
  drbdadm connect --discard-my-data r0
}
