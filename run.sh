#!/usr/bin/env bash
# Installs what is needed (Debian 12), builds, and answers a prompt through the real stack.
#   ./run.sh                              a small model made on the spot, a default prompt
#   ./run.sh MODEL_DIR "prompt" [...]     a published checkpoint directory, unconverted
#   ./run.sh "prompt" [...]               the small model, this prompt
#   ./run.sh --build-only                 leaves the binaries in build/release/bin/
# Everything else is handed to `stoker run` (-n, --temperature, --json, ...; `stoker run --help`).
# stdout is the answer and nothing else.
set -euo pipefail
cd_root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bin=$cd_root/build/release/bin
demo_prompt="Write a function that adds two numbers."

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

# The small model: random weights in the exact published format, so the answer is noise, but all of the
# machinery that makes it is the real one.
make_demo_model() {
  [ -f "$demo/config.json" ] && return
  echo "run.sh: making the small demo model ..." >&2
  mkdir -p "$(dirname "$demo")"
  quietly "$bin/stoker" synth --out "$demo" --preset tiny --vocab 4224 --eos 4096,4098 --force \
    --tokenizer "$cd_root/tests/unit/text/data"
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

demo=$cd_root/models/demo
[ -f "$demo/config.json" ] || demo=$cd_root/models/.made/demo
make_demo_model
if [ $# -eq 0 ] || [ "${1#-}" != "$1" ]; then
  # Options only: the default prompt, and an end (random weights seldom say the end token).
  exec "$bin/stoker" run "$demo" "$demo_prompt" --max-tokens 64 "$@" < /dev/null
fi
exec "$bin/stoker" run "$demo" "$@"
