#!/usr/bin/env bash
# Runs on the machine with the GPU, inside the bundle of tests/gpu/bundle.sh: checks first, figures after. Less than ten
# minutes. Everything it says goes to $OUT (default: ./out) as well; the exit code is that of the checks.
set -uo pipefail
cd "$(dirname "$0")" || exit 1
out=${OUT:-$PWD/out}
mkdir -p "$out"
failed=0
STOKER_DRIVER_PATH=$(dirname "$(ldconfig -p | awk '$1 == "libcuda.so.1" { print $NF; exit }')")
export STOKER_DRIVER_PATH STOKER_TEST_DEVICE=cuda STOKER_GOLDEN_DATA="$PWD/golden-data"

part() {
  local name=$1 limit=$2
  shift 2
  echo "== $name"
  timeout "$limit" "$@" > "$out/$name.txt" 2>&1
  local rc=$?
  tail -n 40 "$out/$name.txt"
  echo "== $name: exit $rc"
  return "$rc"
}

nvidia-smi > "$out/nvidia-smi.txt" 2>&1 || true
part kernels 120 ./cuda_kernels_test || failed=1
part goldens 150 ./golden_cuda_test || failed=1
if command -v compute-sanitizer > /dev/null; then
  part memcheck 90 compute-sanitizer --tool memcheck --error-exitcode 9 --target-processes all ./cuda_kernels_test || failed=1
  part racecheck 90 compute-sanitizer --tool racecheck --error-exitcode 9 --target-processes all ./cuda_kernels_test || failed=1
else
  echo "== memcheck, racecheck: skipped, no compute-sanitizer on this machine"
fi
part device-bench 120 ./device_bench || failed=1

# Decode with an 8 GiB card's budget. Layers as the machine's memory allows; planted routing.
model=${STOKER_MODEL:-/tmp/stoker-gpu-model}
[ -d "$model" ] || part synth 120 ./stoker synth --out "$model" --preset bench || failed=1
for row in "pool-third --pool-slots 2048" "pool-all --pool-slots 6144"; do
  # shellcheck disable=SC2086  # the words of a row
  set -- $row
  name=$1
  shift
  part "decode-$name" 120 ./stoker bench "$model" --device cuda --vram 8GiB "$@" -p 0 -n 128 -r 3 || failed=1
done
part decode-vram 120 ./stoker bench "$model" --device cuda --pool-slots 6144 -p 0 -n 128 -r 3 || failed=1
exit "$failed"
