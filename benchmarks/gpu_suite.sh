#!/usr/bin/env bash
# Runs everything that needs an NVIDIA GPU in at most nine minutes: build, tests, sanitizer, benchmarks.
#
#   bash benchmarks/gpu_suite.sh OUT
#
# It needs a checkout and the packages torch, triton, transformers, pybind11, cmake, ninja, pytest and hypothesis, but no
# network. Every part has its own time limit, and a failing part does not stop the others. OUT receives summary.txt, the
# results (CSV, JSON, plot) and logs.tar.gz. Without a GPU it runs the parts for the CPU and lists what it skipped.
set -u
cd "$(dirname "$0")/.."
OUT=${1:?usage: bash benchmarks/gpu_suite.sh OUT}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
LOGS=$(mktemp -d)
PYTHON=${PYTHON:-python3}
STARTED=$SECONDS
LIMIT=${PYGEN_SUITE_SECONDS:-525}
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" TRITON_CACHE_DIR="$LOGS/triton"
declare -a NAMES=() RESULTS=()

note() {
  NAMES+=("$1")
  RESULTS+=("$2")
  echo "== $1: $2"
}

left() { echo $((LIMIT - (SECONDS - STARTED))); }

# part NAME SECONDS COMMAND...: runs the command under its limit and the total limit, with output to a separate log.
part() {
  local name=$1 limit=$2 began=$SECONDS left code
  left=$(left)
  shift 2
  if ((left < 5)); then
    note "$name" "not run: no time left"
    return 1
  fi
  timeout --kill-after=5 "$((limit < left ? limit : left))" "$@" >"$LOGS/$name.log" 2>&1
  code=$?
  local last
  last=$(grep -v '^[[:space:]]*$' "$LOGS/$name.log" | tail -1 | cut -c 1-160)
  case $code in
    0) note "$name" "ok in $((SECONDS - began)) s: $last" ;;
    124 | 137) note "$name" "STOPPED at its limit of $limit s: $last" ;;
    *) note "$name" "FAILED with status $code in $((SECONDS - began)) s: $last" ;;
  esac
  return "$code"
}

pytest_on() {
  env PYGEN_TEST_BACKENDS="$1" "$PYTHON" -m pytest -q -p no:cacheprovider -o addopts= --maxfail=25 "${@:2}"
}
export -f pytest_on
export PYTHON

GPU=$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")' 2>/dev/null)
if [[ -n $GPU ]]; then
  CAPABILITY=$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
  export PYGEN_CUDA_ARCHS=${PYGEN_CUDA_ARCHS:-$CAPABILITY}
fi

part prebuilt 240 "$PYTHON" -m benchmarks.prebuilt install
part device 30 "$PYTHON" -c '
import json, torch, pygen
from pygen import _C
from benchmarks.machine import machine_block
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
print(json.dumps(machine_block(device), indent=1), _C.build_info(), pygen.available_backends(), sep="\n")'

if [[ -n $GPU ]]; then
  part tests-gpu 130 "$PYTHON" -m pytest -q -p no:cacheprovider -o addopts= tests/gpu
  part tests-cuda 110 bash -c 'pytest_on cuda tests/ops'
  part bench-steps 110 "$PYTHON" -m benchmarks.bench_gpu --table --budget 1.5 --quiet --results "$OUT"
  part tests-triton 100 bash -c 'pytest_on triton tests/ops'
  part tests-generate 60 "$PYTHON" -m pytest -q -p no:cacheprovider -o addopts= tests/generate/test_devices.py
  # The remaining time minus the share of compute-sanitizer. Compiled engines take longer and have separate commands (README.md).
  budget=$(($(left) - 100))
  ((budget < 60)) && budget=$(left)
  part bench-generate "$budget" "$PYTHON" -m benchmarks.bench_gpu_generate --table --quiet --results "$OUT" \
    --engines transformers pygen eager --budget 3 --seconds $((budget - 25))
  if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck initcheck synccheck; do
      part "sanitizer-$tool" 45 compute-sanitizer --tool "$tool" --error-exitcode 9 --launch-timeout 60 \
        "$PYTHON" -m benchmarks.gpu_small_ops
    done
  else
    note sanitizer "not run: compute-sanitizer is not on the PATH"
  fi
else
  note gpu "not run: torch finds no CUDA device, so neither tests nor figures of a GPU"
  part rehearse-steps 60 "$PYTHON" -m benchmarks.bench_gpu --quick --device cpu --quiet
  part rehearse-generate 120 "$PYTHON" -m benchmarks.bench_gpu_generate --quick --device cpu --threads 1 --quiet
  part rehearse-small-ops 60 "$PYTHON" -m benchmarks.gpu_small_ops --device cpu
fi

for csv in "$OUT"/*.csv; do
  [[ -e $csv ]] && "$PYTHON" -m benchmarks.report "$csv" >"${csv%.csv}.json" 2>>"$LOGS/report.log"
done
tar -czf "$OUT/logs.tar.gz" -C "$LOGS" --exclude=triton .
{
  echo "GPU: ${GPU:-none}; commit $(git rev-parse --short=10 HEAD 2>/dev/null || echo unknown); $((SECONDS - STARTED)) s"
  for i in "${!NAMES[@]}"; do printf '%-22s %s\n' "${NAMES[$i]}" "${RESULTS[$i]}"; done
  for log in bench-steps bench-generate; do
    [[ -e $LOGS/$log.log ]] && cat "$LOGS/$log.log"
  done
} >"$OUT/summary.txt"
cat "$OUT/summary.txt"
rm -rf "$LOGS"
printf '%s\n' "${RESULTS[@]}" | grep -q '^\(FAILED\|STOPPED\)' && exit 1 || exit 0
