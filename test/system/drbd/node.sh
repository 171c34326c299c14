#!/bin/bash
# One of two guests with DRBD: node.sh a|b. Brings up its two networks and does what it is told (agent.py).
# Cards with 52:54:00:aa: the link to the other guest. Cards with 52:54:00:bb: the way to the test outside.
set -u
exec 2>&1
me=$1
number=$([ "$me" = a ] && echo 1 || echo 2)
hostname "$me"
for module in virtio_blk drbd; do modprobe $module || exit 3; done
for _ in $(seq 100); do [ -b /dev/vda ] && break; sleep .1; done
for card in /sys/class/net/eth*; do
  case $(cat "$card/address") in
    52:54:00:aa:*) ip address add 10.9.0.$number/24 dev "${card##*/}" && ip link set "${card##*/}" up ;;
    52:54:00:bb:*) ip address add 10.9.1.15/24 dev "${card##*/}" && ip link set "${card##*/}" up ;;
  esac
done
mkdir -p /etc/drbd.d /var/lib/drbd /run/drbd/lock
cp /share/drbd.conf /etc/drbd.conf
# The kernel calls DRBD's handlers from the first root file system.
printf '#!/bin/busybox sh\nexec /bin/busybox chroot /mnt/new /usr/sbin/drbdadm "$@"\n' > /proc/1/root/sbin/drbdadm
chmod +x /proc/1/root/sbin/drbdadm
exec /usr/bin/python3 /share/agent.py
