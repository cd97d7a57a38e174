#!/usr/bin/env bash
# boot.sh WORK INSTALL...: boots systemd as process 1 of private namespaces, over the machine's own files, and keeps it
# until this script's stdin ends. Needs root and cgroup2. WORK: an empty directory, removed at the end. INSTALL: a command
# that installs what is to be tested below $DESTDIR, before the boot.
#
# Prints "pid N", process 1 as the machine sees it, to be entered with nsenter. Everything is gone afterwards, also when
# the test was killed: processes with their process 1; mounts, files (tmpfs) and /dev/shm with the mount namespace;
# cgroup and WORK by hand.
set -euo pipefail
umask 022

# Inside the namespaces: what systemd expects of a container manager (systemd.io/CONTAINER_INTERFACE).
if [ "${1-}" = --inside ]; then
  work=$2
  shift 2
  mount -t tmpfs -o mode=755 stoker-test "$work"
  root=$work/root
  mkdir "$work/upper" "$work/work" "$root"
  DESTDIR=$work/upper "$@" > "$work/install.log" 2>&1 || { cat "$work/install.log" >&2; exit 1; }
  mount -t overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" stoker-test "$root"
  mount -t proc proc "$root/proc"
  # Settings of the kernel are not namespaced: systemd leaves alone what is read-only.
  mount --bind "$root/proc/sys" "$root/proc/sys"
  mount -o remount,bind,ro "$root/proc/sys"
  mount -t sysfs -o ro sysfs "$root/sys"
  mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
  for dir in run tmp var/log etc/systemd/system; do
    mount -t tmpfs -o mode=755 tmpfs "$root/$dir"
  done
  chmod 1777 "$root/tmp"
  mount -t tmpfs -o mode=755 tmpfs "$root/dev"
  for node in null zero full random urandom tty; do
    touch "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
  done
  mkdir "$root/dev/shm" "$root/dev/pts"
  mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
  mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
  ln -s pts/ptmx "$root/dev/ptmx"
  ln -s /proc/self/fd "$root/dev/fd"
  : > "$root/etc/fstab"
  # Nor are modules and auditing of the kernel.
  for unit in modprobe@.service systemd-modules-load.service systemd-journald-audit.socket; do
    ln -s /dev/null "$root/etc/systemd/system/$unit"
  done
  printf '[Journal]\nAudit=no\nReadKMsg=no\nStorage=volatile\n' > "$root/etc/systemd/journald.conf"
  exec chroot "$root" /usr/bin/env -i container=stoker-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --unit=basic.target < /dev/null
fi

hierarchy=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts)
cgroup=$hierarchy/stoker-test-$$
mkdir "$cgroup"
work=$1
boot=
clean() {
  # Process 1 of the namespace dies with unshare, and all others with it.
  [ -z "$boot" ] || kill -KILL "$boot" 2> /dev/null || true
  for _ in $(seq 100); do
    # Deepest first; busy until the last process has left.
    find "$cgroup" -depth -type d -exec rmdir {} + 2> /dev/null && break
    sleep 0.05
  done
  rmdir "$work"  # empty again, else a mount is left
}
trap clean EXIT
bash -c 'echo $$ > "$1/cgroup.procs"; shift; exec "$@"' - "$cgroup" \
  unshare --mount --uts --ipc --net --pid --cgroup --fork --kill-child "$0" --inside "$@" < /dev/null >&2 &
boot=$!
disown  # or bash would report that it was killed
# unshare's only child is process 1.
for _ in $(seq 600); do
  child=
  read -r child _ < "/proc/$boot/task/$boot/children" 2> /dev/null || true
  [ -z "$child" ] || break
  kill -0 "$boot"
  sleep 0.05
done
echo "pid $child"
exec 3<&0
# Ends when the test says so by dying or closing, or when systemd ends.
while kill -0 "$boot" 2> /dev/null; do
  status=0
  read -rt 1 -u 3 || status=$?
  [ $status -gt 128 ] || break
done
