#!/bin/bash
# Debian's kernel under emulation. The guest sees this machine's / read-only under a RAM overlay, runs SCRIPT in it as root and
# hands back its exit status. The folder SHARE (a fresh one unless set) is /share in the guest, writable.
# guest.sh [-m MEM] [-s CPUS] [-t SECONDS] [-M MACHINE] [-x "more qemu arguments"] SCRIPT [ARGUMENT ...]
# Needs Debian's qemu-system-x86, linux-image-amd64, busybox-static, cpio, kmod, xz-utils. No root, no hardware acceleration.
set -u; LAB=${LAB:-${TMPDIR:-/tmp}/holdfast-lab}; mkdir -p "$LAB"
MEM=1G CPUS=1 LIMIT=300 MACHINE=q35 MORE=
while getopts m:s:t:M:x: o; do case $o in m) MEM=$OPTARG;; s) CPUS=$OPTARG;; t) LIMIT=$OPTARG;; M) MACHINE=$OPTARG;; x) MORE=$OPTARG;; esac; done; shift $((OPTIND-1))
SHARE=${SHARE:-$(mktemp -d "$LAB/share.XXXXXX")}; V=$(ls /lib/modules | sort -V | tail -1); I=$LAB/initrd-$V.cpio
[ -f /lib/modules/$V/modules.dep ] || depmod $V
if [ ! -f "$I" ] || [ "$0" -nt "$I" ]; then   # busybox and the modules that reach the host's root
  R=$(mktemp -d); mkdir -p $R/{bin,sbin,proc,sys,dev,m,mnt/{host,up,new}}; cp "$(command -v busybox)" $R/bin/busybox; ln -s busybox $R/bin/sh
  for m in virtio_pci 9pnet_virtio 9p overlay virtio_net virtio_blk virtio_console; do
    modprobe -S $V --show-depends $m 2>/dev/null | awk '$1=="insmod"{print $2}'; done | awk '!seen[$0]++' | while read -r f; do
    b=$(basename $f .xz); case $f in *.xz) xz -dc $f > $R/m/$b;; *) cp $f $R/m/$b;; esac; echo $b >> $R/order; done
  cat > $R/init <<'EOI'
#!/bin/busybox sh
export PATH=/bin; bb=/bin/busybox
$bb mount -t proc p /proc; $bb mount -t sysfs s /sys; $bb mount -t devtmpfs d /dev
while read -r m; do $bb insmod /m/$m 2>/dev/null; done < /order
$bb mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /mnt/host || echo "no host root"
$bb mount -t tmpfs -o size=60% t /mnt/up; $bb mkdir /mnt/up/u /mnt/up/w
N=/mnt/new; $bb mount -t overlay -o lowerdir=/mnt/host,upperdir=/mnt/up/u,workdir=/mnt/up/w o $N
$bb mkdir -p $N/proc $N/sys $N/dev $N/share; $bb mount -t proc p $N/proc; $bb mount -t sysfs s $N/sys; $bb mount -t devtmpfs d $N/dev
$bb mkdir -p $N/dev/pts $N/dev/shm; $bb mount -t devpts p $N/dev/pts; for t in dev/shm tmp run; do $bb mount -t tmpfs t $N/$t; done
$bb mkdir -p $N/run/lock; $bb mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 share $N/share
$bb chroot $N /sbin/modprobe configfs; $bb mount -t configfs c $N/sys/kernel/config; $bb mount -t debugfs c $N/sys/kernel/debug
$bb ip link set lo up; $bb ip link set eth0 up && $bb ip addr add 10.0.2.15/24 dev eth0 && $bb ip route add default via 10.0.2.2
echo "guest up: $($bb uname -r), $($bb cut -d' ' -f1 /proc/uptime) s"
$bb chroot $N /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=linux LC_ALL=C.UTF-8 /bin/bash /share/.run
echo $? > $N/share/.rc; $bb sync; $bb poweroff -f
EOI
  printf '#!/bin/busybox sh\nexec /bin/busybox chroot /mnt/new /sbin/modprobe "$@"\n' > $R/sbin/modprobe   # the kernel asks for modules here
  chmod +x $R/init $R/sbin/modprobe; (cd $R && find . | cpio -o -H newc --quiet) > "$I.$$" && mv "$I.$$" "$I"; rm -rf $R
fi
cp "$1" "$SHARE/.script"; shift; rm -f "$SHARE/.rc"; { printf 'exec /bin/bash /share/.script'; [ $# -gt 0 ] && printf ' %q' "$@"; echo; } > "$SHARE/.run"
timeout $LIMIT qemu-system-x86_64 -accel tcg,thread=multi -cpu max -m $MEM -smp $CPUS -machine $MACHINE -kernel /boot/vmlinuz-$V -initrd "$I" \
  -append "console=ttyS0 panic=-1 quiet mitigations=off tsc=reliable" -nographic -no-reboot -nodefaults -serial stdio \
  -fsdev local,id=h,path=/,security_model=none,readonly=on,multidevs=remap -device virtio-9p-pci,fsdev=h,mount_tag=host \
  -fsdev local,id=o,path="$SHARE",security_model=none,multidevs=remap -device virtio-9p-pci,fsdev=o,mount_tag=share \
  -netdev user,id=n0 -device virtio-net-pci,netdev=n0,romfile= -device virtio-rng-pci $MORE </dev/null
q=$?; [ -f "$SHARE/.rc" ] && exit "$(cat "$SHARE/.rc")"; echo "no status from the guest (emulator rc=$q)" >&2; exit 125
