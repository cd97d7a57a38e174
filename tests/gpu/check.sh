#!/usr/bin/env bash
# Runs on the machine with the GPU, inside the bundle of tests/gpu/bundle.sh. Each part takes less than ten minutes:
#   check.sh checks     kernels and goldens on the device, the worker as a process, compute-sanitizer
#   check.sh kernels    what each kernel reaches: bytes, GB/s, percent of the device's copy bandwidth
#   check.sh decode     a synthetic model of the real shapes with an 8 GiB card's budget
# Without a word all three. What they say is kept in $OUT (default: ./out); the exit code is that of the checks.
set -uo pipefail
cd "$(dirname "$0")" || exit 1
out=${OUT:-$PWD/out}
mkdir -p "$out"
failed=0
# Containers and cloud images keep the driver's libraries where ldconfig does not look.
driver_path() {
  local folder known path=${LD_LIBRARY_PATH:-}
  known=$(ldconfig -p 2> /dev/null | awk '$1 == "libcuda.so.1" && /x86-64/ { print $NF; exit }')
  for folder in ${path//:/ } ${known:+"$(dirname "$known")"} /usr/local/nvidia/lib64 \
    /usr/lib/x86_64-linux-gnu /usr/lib64 /usr/local/cuda/compat; do
    [ -e "$folder/libcuda.so.1" ] && echo "$folder" && return
  done
  return 1
}
STOKER_DRIVER_PATH=$(driver_path) || {
  echo "check.sh: no libcuda.so.1 here (ldconfig, LD_LIBRARY_PATH, the usual folders): no NVIDIA driver, or a" \
    "container without it" >&2
  exit 1
}
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

checks() {
  nvidia-smi > "$out/nvidia-smi.txt" 2>&1 || true
  part doctor 30 ./stoker doctor
  part kernel-tests 100 ./cuda_kernels_test || failed=1
  part goldens 120 ./golden_cuda_test || failed=1
  part worker 120 python3 gpu_worker.py --bin . || failed=1
  if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck; do
      part "$tool" 100 compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all \
        ./cuda_kernels_test || failed=1
    done
  else
    echo "== memcheck, racecheck: skipped, no compute-sanitizer on this machine"
  fi
}

kernels() { part device-bench 300 ./device_bench || failed=1; }

# As many layers as disk and memory hold: the 12 of the bench preset are 20 GB.
decode() {
  local model=${STOKER_MODEL:-/tmp/stoker-gpu-model} common=(--device cuda -p 0 -n 128 -r 3 --state warm)
  [ -d "$model" ] || part synth 150 ./stoker synth --out "$model" --preset bench || failed=1
  part decode-pool-third 140 ./stoker bench "$model" "${common[@]}" --vram 8GiB --pool-slots 2048 || failed=1
  # Is --copy-ahead worth it? On by default only if this is faster.
  part decode-pool-third-ahead 140 env STOKER_WORKER_COPY_AHEAD=true \
    ./stoker bench "$model" "${common[@]}" --vram 8GiB --pool-slots 2048 || failed=1
  part decode-pool-all 140 ./stoker bench "$model" "${common[@]}" --vram 8GiB --pool-slots 6144 || failed=1
  part decode-vram 140 ./stoker bench "$model" "${common[@]}" --pool-slots 6144 || failed=1
}

[ $# -gt 0 ] || set -- checks kernels decode
for word in "$@"; do
  case $word in
    checks) checks ;;
    kernels) kernels ;;
    decode) decode ;;
    *)
      sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2
      exit 2
      ;;
  esac
done
exit "$failed"
