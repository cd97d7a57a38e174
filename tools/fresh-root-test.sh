#!/usr/bin/env bash
# The README's two commands in a fresh Debian 12 root: debootstrap, clone of the last commit, ./run.sh,
# ./test.sh --quick. Needs root, debootstrap and a Debian mirror; about 4 GB in $TMPDIR (default /var/tmp).
# Exit code 0: both worked; 77: cannot be tried here (reason in build/fresh-root.reason); else it failed.
#   DEBIAN_MIRROR=URL   where packages come from (default: this machine's first Debian source)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
mkdir -p build
log=$PWD/build/fresh-root.log
: > "$log"

cannot() {
  echo "$1" | tee build/fresh-root.reason
  exit 77
}

[ "$(id -u)" -eq 0 ] || cannot "not root"
command -v debootstrap > /dev/null || cannot "no debootstrap (tools/install-deps.sh --tests)"
unshare --mount --pid --fork true 2> /dev/null || cannot "no permission for a mount namespace"

default_mirror() {
  sed -nE 's/^(URIs:|deb) *(\[[^]]*\] *)?(https?:[^ ]*debian\/?)( .*)?$/\3/p' \
    /etc/apt/sources.list /etc/apt/sources.list.d/* 2> /dev/null | head -1
}
mirror=${DEBIAN_MIRROR:-$(default_mirror)}
mirror=${mirror:-http://deb.debian.org/debian}

root=$(mktemp -d "${TMPDIR:-/var/tmp}/stoker-fresh-root.XXXXXX")
trap 'rm -rf --one-file-system "$root"' EXIT
echo "debootstrap bookworm into $root"
debootstrap --variant=minbase --include=ca-certificates bookworm "$root" "$mirror" >> "$log" 2>&1 || {
  tail -3 "$log"
  cannot "debootstrap failed (build/fresh-root.log; is the mirror reachable?)"
}
cp /etc/resolv.conf "$root/etc/resolv.conf" 2> /dev/null
proxy=$(apt-config shell p Acquire::http::Proxy 2> /dev/null | sed -nE "s/^p='(.*)'$/\1/p")
[ -z "$proxy" ] || echo "Acquire::http::Proxy \"$proxy\";" > "$root/etc/apt/apt.conf.d/99host-proxy"
git -c safe.directory='*' clone -q --no-hardlinks "$PWD" "$root/stoker" || exit 1

# Everything mounted in here vanishes with the namespace, whatever happens.
cat > "$root/inside.sh" << 'EOF'
set -e
cd /stoker
echo "--- ./run.sh"
./run.sh > /answer
test -s /answer
echo "answer: $(head -c 200 /answer)"
echo "--- ./test.sh --quick"
./test.sh --quick
EOF
# shellcheck disable=SC2016  # $1 belongs to the inner shell
unshare --mount --pid --fork --kill-child bash -c '
  set -e
  mount -t proc proc "$1/proc"
  mount --rbind /dev "$1/dev"
  mount -t tmpfs -o size=60% tmpfs "$1/dev/shm"
  mount -t tmpfs tmpfs "$1/run"
  exec chroot "$1" /usr/bin/env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 bash /inside.sh
' bash "$root" 2>&1 | tee -a "$log"
status=${PIPESTATUS[0]}
[ "$status" -eq 0 ] || cp -r "$root/stoker/build/"*.log build/ 2> /dev/null
exit "$status"
