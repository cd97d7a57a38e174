#!/usr/bin/env bash
# Runs on the machine with the GPU, inside the bundle of tests/gpu/bundle.sh:
#   check.sh [SECONDS] first     the kernels' tests, goldens, the worker as a process, what each kernel reaches, decode
#   check.sh [SECONDS] second    compute-sanitizer, decode with an 8 GiB card's budget, the Python reference
#   check.sh [SECONDS] PART...   some of: kernel-tests goldens worker device-bench decode-vram decode-pool-third memcheck
#                                racecheck decode-pool-third-ahead decode-pool-all python-reference
# No part is begun that could not end within SECONDS (540); which ones is said. Everything is appended to $OUT/log.txt and
# $OUT/bench.jsonl (default ./out), at most 12 lines per part are shown. Exit code: 0 all passed, 1 not, 2 usage.
# As root it enlarges /dev/shm. The model (STOKER_MODEL, default /tmp/stoker-gpu-model, 20 GB) is kept for the next call.
#
# Without a card, to try this script: libstoker-emulation.so beside it, STOKER_TEST_DEVICE=emulation STOKER_PRESET=tiny.
set -uo pipefail
cd "$(dirname "$0")" || exit 1
usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' check.sh >&2
  exit 2
}
first=(kernel-tests goldens worker device-bench decode-vram decode-pool-third)
second=(memcheck racecheck decode-pool-third decode-pool-third-ahead decode-pool-all python-reference)
given=540
[[ ${1:-} =~ ^[0-9]+$ ]] && given=$1 && shift
parts=()
for word in "$@"; do
  case $word in
    first) parts+=("${first[@]}") ;;
    second) parts+=("${second[@]}") ;;
    *)
      [[ " ${first[*]} ${second[*]} " == *" $word "* ]] || usage
      parts+=("$word")
      ;;
  esac
done
((${#parts[@]})) || usage

out=${OUT:-$PWD/out} log=${OUT:-$PWD/out}/log.txt
mkdir -p "$out"
touch "$log"
device=${STOKER_TEST_DEVICE:-cuda} preset=${STOKER_PRESET:-bench} model=${STOKER_MODEL:-/tmp/stoker-gpu-model}
export STOKER_TEST_DEVICE=$device STOKER_GOLDEN_DATA=$PWD/golden-data
export PATH=$PATH:/sbin:/usr/sbin:/usr/local/cuda/bin:/usr/local/nvidia/bin
results=() failed=0 synth=0

say() { echo "$*" | tee -a "$log"; }
result() {
  results+=("$1: $2")
  say "== $1: $2"
  [[ $2 == ok* || $2 == skipped* ]] || failed=1
}

# part NAME LIMIT COMMAND...
part() {
  local name=$1 limit=$2 began=$SECONDS from rc word
  shift 2
  if ((SECONDS + limit + 10 > given)); then
    result "$name" "NOT RUN: it may take $limit s, $((given - SECONDS)) of $given s are left"
    return 1
  fi
  say "== $name"
  from=$(stat -c %s "$log")
  timeout -k 10 "$limit" "$@" >> "$log" 2>&1 < /dev/null
  rc=$?
  word="FAILED with exit code $rc"
  ((rc != 0)) || word=ok
  ((rc != 124 && !(rc == 137 && SECONDS - began >= limit))) || word=TIMEOUT
  tail -c +$((from + 1)) "$log" | tail -n 10 | cut -c 1-240
  result "$name" "$word after $((SECONDS - began)) s"
  return "$rc"
}

mib() { awk -v k="$1:" '$1 == k { print int($2 / 1024) }' /proc/meminfo; }
shm_mib() { df -m --output=avail /dev/shm | tail -n 1; }

facts() {
  echo "kernel $(uname -r), $(nproc) CPUs, $(ldd --version 2>&1 | head -n 1), user $(id -u)"
  echo "libcuda.so.1 found in: ${STOKER_DRIVER_PATH:-nothing but perhaps the usual folders}"
  timeout 15 nvidia-smi --query-gpu=name,driver_version,memory.used,memory.total --format=csv,noheader
  free -g | head -n 2
  df -h /dev/shm /tmp
  grep ' /dev/shm ' /proc/mounts | tail -n 1
}

# What one wants to know of a machine on which the programs see no device.
why_no_device() {
  ls -d /dev/nvidia*
  find -L /usr/local/nvidia /usr/local/cuda/compat -maxdepth 2 | head -n 40
  ldconfig -p | grep -E 'libcuda|libnvidia-ml'
  echo "LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}"
  timeout 15 nvidia-smi | head -n 12
  # What this system's linker and ours make of the driver, and where ours looked.
  LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}:${STOKER_DRIVER_PATH:-} timeout 30 python3 -c \
    'import ctypes; print("cuInit by python3:", ctypes.CDLL("libcuda.so.1").cuInit(0))' 2>&1 | tail -n 1
  [ -z "${STOKER_DRIVER_PATH:-}" ] ||
    ./ld-linux-x86-64.so.2 --library-path "$PWD" --list "$STOKER_DRIVER_PATH/libcuda.so.1"
  LD_DEBUG=libs timeout 30 ./stoker doctor 2>&1 | grep -E 'trying.*/libcuda\.so\.1|error' |
    grep -v -e hwcaps -e /tls/ -e /x86_64/ | head -n 12
}

# Wherever an image keeps the driver. Not the toolkit's own libcuda.so.1: it fails beside a driver that is as new.
find_driver() {
  local found
  found=$({
    ldconfig -p | awk '$1 == "libcuda.so.1" && /x86-64/ { print $NF }'
    ls /usr/local/nvidia/lib64/libcuda.so.1 /usr/local/nvidia/lib/libcuda.so.1
  } 2> /dev/null | grep -v -e /compat/ -e /stubs/ | head -n 1)
  [ -n "$found" ] || found=$(timeout 15 find /usr /opt /run -name libcuda.so.1 2> /dev/null |
    grep -v -e /compat/ -e /stubs/ -e /i386 | head -n 1)
  [ -z "$found" ] || export STOKER_DRIVER_PATH=${found%/*}
}

# A pool of 18 GB is populated in seconds with huge pages; with small ones that takes much longer.
enlarge_shm() {
  [ "$(id -u)" = 0 ] || return 0
  mount -o remount,size=100g,huge=advise /dev/shm || mount -o remount,size=100g /dev/shm || true
}

# Some machines show little memory until it is used, and the loader asks what there is. With STOKER_MEMORY_GIB, what the
# machine is said to have, it is used once, by a process that the kernel would end first.
use_memory() {
  (($(mib MemAvailable) < 26 << 10 && ${STOKER_MEMORY_GIB:-0} > 32)) || return 0
  timeout 20 python3 - 28 <<'PYTHON'
import mmap, sys
open("/proc/self/oom_score_adj", "w").write("1000")
size = int(sys.argv[1])
memory = mmap.mmap(-1, size << 30)
for gib in range(size):
    memory.madvise(23, gib << 30, 1 << 30)  # MADV_POPULATE_WRITE
PYTHON
  say "available memory, after it was used once: $(mib MemAvailable) MiB"
}

# As many experts of 3 MiB as memory and /dev/shm hold beside weights and processes, at most $1.
fitting() {
  local room
  room=$((($(mib MemAvailable) < $(shm_mib) ? $(mib MemAvailable) : $(shm_mib)) - 6144))
  room=$((room > 0 ? room / 3 : 0))
  echo $((room < $1 ? room : $1))
}

# Pools that the killed left: new since we began, and nobody holds their lock (who is ending may hold it for a moment).
remove_pools() {
  local control
  for control in /dev/shm/stoker.*.control; do
    [[ ! -e $control || " ${pools_before[*]} " == *" $control "* ]] && continue
    flock -w 10 "$control" rm -f "${control%.control}".*
  done
}

# The model is written while the checks run; who needs it waits.
begin_model() {
  [[ -e $model.done || $synth != 0 ]] && return
  nice timeout -k 10 200 ./stoker synth --out "$model" --preset "$preset" --force > "$out/.synth" 2>&1 < /dev/null &
  synth=$!
}
model_ended() {
  local rc
  wait "$synth"
  rc=$?
  synth=0
  tail -n 5 "$out/.synth" | tee -a "$log"
  rm -f "$out/.synth"
  ((rc == 0)) && touch "$model.done"
}
have_model() {
  local began=$SECONDS
  [ ! -e "$model.done" ] || return 0
  ((synth != 0)) || return 1
  while kill -0 "$synth" 2> /dev/null; do
    ((SECONDS < given - 50)) || return 1
    sleep 0.2
  done
  say "== waited $((SECONDS - began)) s for the model"
  model_ended
}

# decode NAME LIMIT SLOTS WARM-UP [OPTION...]: one repetition; --warm-up 1024 fills a pool that holds everything.
decode() {
  local name=$1 slots
  have_model || { result "$name" "NOT RUN: no model"; return; }
  slots=$(fitting "$3")
  ((slots == $3)) || say "memory or /dev/shm hold $slots experts, not $3"
  ((slots >= 256)) || { result "$name" "NOT RUN: too little memory"; return; }
  part "$name" "$2" ./stoker bench "$model" --device "$device" -p 0 -n 128 -r 1 --raw-seconds 0.1 --state warm \
    --warm-up "$4" --pool-slots "$slots" "${@:5}" --history "$out/.row"
  [ ! -e "$out/.row" ] || sed "s/^{/{\"part\":\"$name\",/" "$out/.row" >> "$out/bench.jsonl"
  rm -f "$out/.row"
  remove_pools
}

# Every kind of kernel, few launches: a sanitizer slows them down tens of times. Commas separate the cases.
sanitizer() {
  local cases='rms_norm*,silu_mul*,matmul: the shapes*,top_k*,combine*,experts: the shape of decoding,'
  cases+='convolution*,delta rule*,attention*'
  command -v compute-sanitizer > /dev/null || { result "$1" "skipped: no compute-sanitizer here"; return; }
  part "$1" 80 compute-sanitizer --tool "$1" --print-limit 20 --error-exitcode 9 --target-processes all \
    sh ./cuda_kernels_test -d yes "$cases"
}

has_module() { python3 -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)"; }
python_reference() {
  have_model || { result python-reference "NOT RUN: no model"; return; }
  local module
  for module in torch transformers; do
    has_module "$module" || { result python-reference "skipped: python3 has no $module"; return; }
  done
  # Belongs beside the figure.
  for module in fla causal_conv1d; do
    has_module "$module" || say "without $module: transformers takes its slow path for the linear attention"
  done
  part python-reference 120 python3 python_reference.py "$model" --warm 64 --tokens 24 --repeats 2
}

# In a folder of its own that is kept until the logs of its processes were looked at.
worker() {
  local work
  work=$(mktemp -d)
  TMPDIR=$work part "$1" 90 python3 -u gpu_worker.py --bin "$PWD" --keep ||
    tail -n 40 "$work"/*/run-*/test.log >> "$log" 2>&1
  rm -rf "$work"
  remove_pools
}

run() {
  case $1 in
    kernel-tests) part "$1" 60 ./cuda_kernels_test -d yes ;;
    goldens) part "$1" 70 ./golden_cuda_test -d yes ;;
    worker) worker "$1" ;;
    device-bench)
      # Nothing is written beside what is timed.
      ((synth == 0)) || have_model
      local small=()
      [ "$device" = cuda ] || small=(--kind "$device" --small)
      part "$1" 50 ./device_bench "${small[@]}"
      ;;
    memcheck | racecheck) sanitizer "$1" ;;
    decode-vram) decode "$1" 110 6144 1024 ;;
    decode-pool-third) decode "$1" 60 2048 96 --vram 8GiB ;;
    # Is --copy-ahead worth it? On by default only if this is faster.
    decode-pool-third-ahead) STOKER_WORKER_COPY_AHEAD=true decode "$1" 60 2048 96 --vram 8GiB ;;
    decode-pool-all) decode "$1" 110 6144 1024 --vram 8GiB ;;
    python-reference) python_reference ;;
  esac
}

pools_before=(/dev/shm/stoker.*.control)
say "== check.sh $given: ${parts[*]}, $(date -u +%FT%TZ)"
find_driver
enlarge_shm >> "$log" 2>&1
facts 2>&1 | tee -a "$log" | head -n 12 | cut -c 1-240
from=$(stat -c %s "$log")
part doctor 40 ./stoker doctor
# Nothing below means anything without a device.
if [ "$device" = cuda ] && ! tail -c +$((from + 1)) "$log" | grep -Eq '^ +OK +device 0'; then
  why_no_device 2>&1 | tee -a "$log" | cut -c 1-240
  say "== no device: nothing else was run"
  exit 1
fi
use_memory
[[ " ${parts[*]} " != *" decode-"* && " ${parts[*]} " != *" python-"* ]] || begin_model
for name in "${parts[@]}"; do run "$name"; done
if ((synth != 0)); then
  kill "$synth" 2> /dev/null
  model_ended
fi
say "== $SECONDS s of $given:"
for line in "${results[@]}"; do say "   $line"; done
exit "$failed"
