#!/usr/bin/env bash
# Installs the Debian 12 packages that building needs (cmake/dependencies.cmake), and nothing if they are there.
#   tools/install-deps.sh           to build and run
#   tools/install-deps.sh --tests   also what the optional test runs use (clang for fuzzing and tidy, shellcheck, venv)
#   tools/install-deps.sh --check   installs nothing; exit code 1 and the list if something is missing
set -euo pipefail

build_packages=(
  g++ cmake ninja-build pkg-config python3
  libboost1.81-dev libboost-context1.81-dev libspdlog-dev libfmt-dev nlohmann-json3-dev libexpected-dev libcli11-dev
  protobuf-compiler libprotobuf-dev libzmq3-dev cppzmq-dev liburing-dev libxxhash-dev libssl-dev
  libpcre2-dev libutf8proc-dev libhwy-dev libtomlplusplus-dev libedit-dev libsystemd-dev prometheus-cpp-dev catch2
)
nice_to_have=(ccache)
test_packages=(clang-14 clang libclang-rt-14-dev clang-tidy clang-format shellcheck python3-venv debootstrap libbenchmark-dev)

usage() {
  echo "usage: $0 [--tests] [--check]" >&2
  exit 2
}

check_only=no
packages=("${build_packages[@]}")
for argument in "$@"; do
  case $argument in
    --tests) packages+=("${test_packages[@]}") ;;
    --check) check_only=yes ;;
    *) usage ;;
  esac
done

if ! command -v dpkg-query > /dev/null; then
  echo "install-deps: this system has no dpkg. On another distribution install the equivalents of:" >&2
  echo "  ${packages[*]}" >&2
  echo "and run cmake by hand: cmake --preset release && cmake --build --preset release" >&2
  exit 1
fi

is_installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2> /dev/null)" = installed ]; }

missing=()
for package in "${packages[@]}"; do
  is_installed "$package" || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$check_only" = yes ]; then
  echo "missing: ${missing[*]}" >&2
  exit 1
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if command -v sudo > /dev/null; then
    as_root=(sudo)
  else
    echo "install-deps: not root and no sudo. As root, run:" >&2
    echo "  apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
fi

for package in "${nice_to_have[@]}"; do
  is_installed "$package" || missing+=("$package")
done

echo "install-deps: installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q "$@" > "$log" 2>&1; }
# Package lists may be absent (a fresh root) or old: fetched after the first failure.
install() { apt install -y --no-install-recommends "${missing[@]}"; }
if ! install && ! { apt update && install; }; then
  cat "$log" >&2
  echo "install-deps: apt-get failed (see above). Stoker is built on Debian 12 (bookworm) packages." >&2
  exit 1
fi
