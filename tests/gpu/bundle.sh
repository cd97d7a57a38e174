#!/usr/bin/env bash
# Makes build/gpu-bundle: everything that tests/gpu/check.sh needs on a machine that has an NVIDIA driver and perhaps
# nothing else. Programs come with their libraries and their own dynamic linker, because that machine's C library may
# be older than ours.
#
#   tests/gpu/bundle.sh [build directory]     default: build/release, which is configured if it is not there
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build/release}
out=build/gpu-bundle

[ -f "$build/build.ninja" ] || cmake --preset release -DSTOKER_BENCH=ON > /dev/null
programs=(stoker stoker-loader stoker-worker stoker-predictor golden_cuda_test cuda_kernels_test device_bench raw_read)
ninja -C "$build" stoker-cuda "${programs[@]}"

rm -rf "$out"
mkdir -p "$out"
for program in "${programs[@]}"; do
  path=$(find "$build" -type f -name "$program" -perm -u+x | head -n 1)
  cp "$path" "$out/$program.bin"
  strip "$out/$program.bin"
  ldd "$path" | awk '$3 ~ /^\// { print $3 } $1 ~ /^\// { print $1 }' >> "$out/libraries"
  # A program asks where it is to find its helpers: the answer is the directory of the linker, which is this one.
  cat > "$out/$program" <<'WRAPPER'
#!/bin/sh
here=$(cd "$(dirname "$0")" && pwd)
driver=${STOKER_DRIVER_PATH:-${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/usr/local/nvidia/lib64:/usr/lib/x86_64-linux-gnu:/usr/lib64:/usr/local/cuda/compat}
exec "$here/ld-linux-x86-64.so.2" --library-path "$here:$driver" \
  --argv0 "$0" "$here/$(basename "$0").bin" "$@"
WRAPPER
  chmod +x "$out/$program"
done
# What a driver's library needs of the C library, whether or not our programs do.
for library in libdl.so.2 libpthread.so.0 librt.so.1 libm.so.6 libc.so.6; do
  ldconfig -p | awk -v l="$library" '$1 == l && /x86-64/ { print $NF; exit }' >> "$out/libraries"
done
sort -u "$out/libraries" | xargs -I{} cp -Lf {} "$out/"
rm "$out/libraries"
cp "$build/bin/libstoker-cuda.so" "$out/"
cp -r tests/golden/data "$out/golden-data"
cp tests/gpu/check.sh tests/process/harness.py tests/process/cli_rig.py tests/process/gpu_worker.py "$out/"
du -sh "$out"
