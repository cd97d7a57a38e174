#!/usr/bin/env bash
# Installs what is needed (Debian 12), builds, and answers a prompt through the real stack.
#   ./run.sh                              the small model in models/demo continues a function
#   ./run.sh MODEL_DIR "prompt" [...]     a published checkpoint directory, unconverted
#   ./run.sh "text" [...]                 the small model continues this text
#   ./run.sh --build-only                 leaves the binaries in build/release/bin/
# Everything else is handed to `stoker run` (-n, --temperature, --json, ...; `stoker run --help`).
# stdout is the answer and nothing else.
set -euo pipefail
cd_root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bin=$cd_root/build/release/bin
demo_prompt='import os
import sys


def read_file(path):
    """Read the file and return its lines."""
'

# Quiet unless it fails: then the whole output, on stderr.
quietly() {
  local log status=0
  log=$(mktemp)
  "$@" > "$log" 2>&1 < /dev/null || status=$?
  [ $status -eq 0 ] || cat "$log" >&2
  rm -f "$log"
  return $status
}

build() {
  "$cd_root/tools/install-deps.sh"
  [ -x "$bin/stoker" ] || echo "run.sh: building (a few minutes the first time) ..." >&2
  (
    cd "$cd_root"
    if [ ! -f build/release/build.ninja ]; then
      # The same as in test.sh, so that neither has to build again after the other. Warnings are errors
      # with the compiler this is developed with; another compiler's new warnings are not the user's problem.
      local werror=OFF
      [ "$(c++ -dumpversion)" != 12 ] || werror=ON
      quietly cmake --preset release -DSTOKER_WERROR=$werror
    fi
    quietly cmake --build --preset release
  )
}

if [ "${1-}" = --build-only ]; then
  [ $# -eq 1 ] || { echo "run.sh: --build-only stands alone" >&2; exit 2; }
  build
  exit
fi

build
if [ $# -gt 0 ] && [ -d "$1" ]; then
  exec "$bin/stoker" run "$@"
fi
case "${1-}" in
  /* | ./* | ../*)
    echo "run.sh: $1 is not a directory" >&2
    exit 2
    ;;
esac

# The demo model completes text; it does not follow instructions. So the prompt goes in as it is.
demo=$cd_root/models/demo
if [ $# -eq 0 ] || [ "${1#-}" != "$1" ]; then
  # Options only: the default prompt, shown because the answer goes on where it ends.
  printf '%s' "$demo_prompt" >&2
  exec "$bin/stoker" run "$demo" "$demo_prompt" --raw --max-tokens 96 "$@" < /dev/null
fi
exec "$bin/stoker" run "$demo" --raw "$@"
