#!/usr/bin/env bash
# Makes build/gpu-bundle.tar.gz: everything that tests/gpu/check.sh needs on a machine that has an NVIDIA driver and
# perhaps nothing else. Programs come with their libraries and their own dynamic linker, because that machine's C
# library may be older than ours.
#
#   tests/gpu/bundle.sh [build directory]     default: build/release; configured with -DSTOKER_BENCH=ON
#
# There:  tar xzf gpu-bundle.tar.gz -C /tmp && /tmp/gpu-bundle/check.sh first
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build/release}
out=build/gpu-bundle

# Always: a build directory without STOKER_BENCH has no target device_bench.
cmake --preset release -B "$build" -DSTOKER_BENCH=ON > /dev/null
programs=(stoker stoker-loader stoker-worker stoker-predictor golden_cuda_test cuda_kernels_test device_bench raw_read)
ninja -C "$build" stoker-cuda "${programs[@]}"

rm -rf "$out"
mkdir -p "$out"
for program in "${programs[@]}"; do
  path=$build/bin/$program
  cp "$path" "$out/$program.bin"
  strip "$out/$program.bin"
  ldd "$path" | awk '$3 ~ /^\// { print $3 } $1 ~ /^\// { print $1 }' >> "$out/libraries"
  # A program asks where it is to find its helpers: the answer is the directory of the linker, which is this one.
  # Behind our libraries come the places of a driver that ldconfig does not know; the toolkit's own libcuda.so.1 last.
  cat > "$out/$program" <<'WRAPPER'
#!/bin/sh
here=$(cd "$(dirname "$0")" && pwd)
path=$here:${STOKER_DRIVER_PATH:+$STOKER_DRIVER_PATH:}${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/usr/local/nvidia/lib64
path=$path:/usr/local/nvidia/lib:/usr/lib/x86_64-linux-gnu:/usr/lib64:/usr/local/cuda/compat
exec "$here/ld-linux-x86-64.so.2" --library-path "$path" --argv0 "$0" "$here/$(basename "$0").bin" "$@"
WRAPPER
  chmod +x "$out/$program"
done
# What a driver's library and compute-sanitizer's preloads need of the C library, whether or not our programs do.
for library in libdl.so.2 libpthread.so.0 librt.so.1 libm.so.6 libutil.so.1 libc.so.6; do
  ldconfig -p | awk -v l="$library" '$1 == l && /x86-64/ { print $NF; exit }' >> "$out/libraries"
done
sort -u "$out/libraries" | xargs -I{} cp -Lf {} "$out/"
rm "$out/libraries"
cp "$build/bin/libstoker-cuda.so" "$out/"
cp -r tests/golden/data "$out/golden-data"
cp tests/gpu/{check.sh,python_reference.py} tests/process/{harness,cli_rig,conversation,gpu_worker}.py "$out/"

# What it lacks would show on the other machine only.
"$out/stoker" doctor > /dev/null
(cd "$out" && python3 -B gpu_worker.py --help > /dev/null)

# One file: the folder beside a checkout's tracked files is more than some machines accept.
tar -C build --owner=0 --group=0 -I 'gzip -9' -cf "$out.tar.gz" gpu-bundle
echo "$out: $(du -sm "$out" | cut -f 1) MiB; carry $out.tar.gz ($(du -sm "$out.tar.gz" | cut -f 1) MiB) alone and there:"
echo "  tar xzf $out.tar.gz -C /tmp && /tmp/gpu-bundle/check.sh first"
