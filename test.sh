#!/usr/bin/env bash
# Builds and runs the tests. The last line is "N passed, M failed, K skipped"; why something was skipped
# is said above it. Exit code 0 only if nothing failed.
#   ./test.sh              release build, all tests; then asan+ubsan and tsan
#   ./test.sh --quick      release build, all tests
#   ./test.sh --asan       only the unit, conformance, simulation and process tests under asan+ubsan
#   ./test.sh --tsan       the same under tsan
#   ./test.sh --fuzz [S]   each fuzz target for S seconds (default 60); needs clang
#   ./test.sh --oracle     against Hugging Face transformers and tokenizers, in a venv made on the spot
#   ./test.sh --chroot     a fresh debootstrap root: ./run.sh and ./test.sh --quick in it; needs root
#   ./test.sh --all        everything above
# --jobs N: compilers and tests at once (default: 2, at most one per CPU). --filter REGEX: only ctest
# names that match. docs/testing.md says what each part shows.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1

passed=0 failed=0 skipped=0
skip_reasons=() failures=()
jobs=$(nproc) filter=. fuzz_seconds=60
[ "$jobs" -le 2 ] || jobs=2
suites=()

usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2
  exit 2
}

while [ $# -gt 0 ]; do
  case $1 in
    --quick) suites+=(release) ;;
    --asan | --tsan | --oracle | --chroot) suites+=("${1#--}") ;;
    --fuzz)
      suites+=(fuzz)
      if [[ "${2-}" =~ ^[0-9]+$ ]]; then
        fuzz_seconds=$2
        shift
      fi
      ;;
    --all) suites=(release asan tsan fuzz oracle chroot) ;;
    --jobs | --filter)
      [ $# -ge 2 ] || usage
      if [ "$1" = --jobs ]; then jobs=$2; else filter=$2; fi
      shift
      ;;
    *) usage ;;
  esac
  shift
done
[ ${#suites[@]} -gt 0 ] || suites=(release asan tsan)

say() { printf '== %s\n' "$*"; }
fail() {
  failed=$((failed + 1))
  failures+=("$1")
}
skip() {
  skipped=$((skipped + 1))
  skip_reasons+=("$1")
}

# Warnings are errors in the release build (see run.sh); sanitizers make gcc 12 warn about code that is right.
configure_and_build() {
  local preset=$1 target=${2:-all} werror=OFF log
  [ "$preset $(c++ -dumpversion)" != "release 12" ] || werror=ON
  say "$preset: build"
  mkdir -p build
  log=build/$preset-build.log
  if cmake --preset "$preset" -DSTOKER_WERROR=$werror > "$log" 2>&1 &&
    cmake --build --preset "$preset" --target "$target" -- -j "$jobs" >> "$log" 2>&1; then
    return 0
  fi
  grep -E 'error|FAILED|CMake Error|warning:' "$log" | head -40
  tail -5 "$log"
  fail "$preset: build (all of it: $log)"
  return 1
}

# run_ctest PRESET LABELS: adds to the totals what ctest's own report says.
run_ctest() {
  local preset=$1 labels=$2 report=build/$1-tests.xml counts
  say "$preset: tests"
  rm -f "$report"
  ctest --test-dir "build/$preset" -R "$filter" -L "$labels" -j "$jobs" --output-on-failure \
    --output-junit "$PWD/$report" 2>&1 | grep --line-buffered -vE '^ +Start |^Internal ctest|^$'
  if ! counts=$(python3 tests/tidy/summary.py "$preset" "$report"); then
    fail "$preset: ctest made no report"
    return
  fi
  # One line per result: "passed N", "failed name", "skipped name: reason".
  while read -r kind rest; do
    case $kind in
      passed) passed=$((passed + rest)) ;;
      failed) fail "$rest" ;;
      skipped) skip "$rest" ;;
    esac
  done <<< "$counts"
}

suite_release() {
  configure_and_build release || return
  run_ctest release .
  suite_gpu
}

# The tests that take a device, once more on a real one. Without it they ran on the emulation, as part of the above.
suite_gpu() {
  if [ ! -e build/release/bin/libstoker-cuda.so ]; then
    skip "CUDA module: not built (no nvcc; build/release-build.log says where it looked)"
  elif [ ! -e /dev/nvidia0 ]; then
    skip "GPU: there is none; the CUDA module was built, its kernels ran on the emulated device only"
  else
    local before=$filter
    filter='cuda_kernels|golden_cuda|gpu_worker'
    STOKER_TEST_DEVICE=cuda run_ctest release .
    filter=$before
  fi
}
suite_asan() {
  export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1
  export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
  configure_and_build asan && STOKER_TEST_SANITIZER=asan run_ctest asan 'unit|conformance|sim|process'
}
suite_tsan() {
  export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:suppressions=$PWD/tests/tsan.supp
  configure_and_build tsan && STOKER_TEST_SANITIZER=tsan run_ctest tsan 'unit|conformance|sim|process'
}

suite_fuzz() {
  if ! command -v clang++ > /dev/null; then
    skip "fuzz: no clang++ (tools/install-deps.sh --tests)"
    return
  fi
  configure_and_build fuzz fuzz_targets || return
  local target name corpus
  for target in build/fuzz/bin/fuzz_*; do
    name=$(basename "$target")
    [[ "$name" =~ $filter ]] || continue
    corpus=build/fuzz/corpus/$name
    mkdir -p "$corpus"
    local seeds=()
    [ -d "tests/fuzz/seeds/$name" ] && seeds=("tests/fuzz/seeds/$name")
    say "$name: $fuzz_seconds s"
    if "$target" -max_total_time="$fuzz_seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
      -artifact_prefix="build/fuzz/$name-" "$corpus" "${seeds[@]}" > "build/fuzz/$name.log" 2>&1; then
      grep -E 'stat::number_of_executed_units' "build/fuzz/$name.log"
      passed=$((passed + 1))
    else
      tail -30 "build/fuzz/$name.log"
      fail "$name (input: build/fuzz/$name-*)"
    fi
  done
}

# Python with the oracles: $STOKER_ORACLE_PYTHON if set, else a venv under build/.
oracle_python() {
  if [ -n "${STOKER_ORACLE_PYTHON-}" ]; then
    echo "$STOKER_ORACLE_PYTHON"
    return
  fi
  local venv=build/oracle-venv
  if [ ! -f $venv/ready ]; then
    { python3 -m venv $venv && $venv/bin/pip install -q -r tools/oracle/requirements.txt && touch $venv/ready; } \
      > build/oracle-venv.log 2>&1 || return 1
  fi
  echo "$PWD/$venv/bin/python"
}

suite_oracle() {
  configure_and_build release || return
  local python
  if ! python=$(oracle_python); then
    tail -3 build/oracle-venv.log
    skip "oracle: cannot make the venv (build/oracle-venv.log; needs python3-venv and a package index)"
    return
  fi
  local driver=build/release/bin/text_driver data=tests/unit/text/data
  run_script "$python" tools/text/check_tokenizer.py $driver $data/tokenizer.json
  run_script "$python" tools/text/check_template.py $driver $data/chat_template.jinja
  run_script "$python" tools/oracle/live.py --bin build/release/bin
}

run_script() {
  say "${*:2}"
  if "$@"; then
    passed=$((passed + 1))
  else
    fail "$2"
  fi
}

suite_chroot() {
  configure_and_build release > /dev/null || return
  say "chroot: a fresh Debian 12 root"
  tools/fresh-root-test.sh
  case $? in
    0) passed=$((passed + 1)) ;;
    77) skip "chroot: $(cat build/fresh-root.reason)" ;;
    *) fail "chroot (build/fresh-root.log)" ;;
  esac
}

tools/install-deps.sh || exit 1
for suite in "${suites[@]}"; do
  "suite_$suite"
done

if [ ${#skip_reasons[@]} -gt 0 ]; then
  say "skipped"
  printf '%s\n' "${skip_reasons[@]}" | sort -u
fi
if [ ${#failures[@]} -gt 0 ]; then
  say "failed"
  printf '%s\n' "${failures[@]}"
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
