#!/usr/bin/env bash
# Runs everything that needs an NVIDIA GPU in at most eight minutes, the most important parts first.
#
#   bash benchmarks/gpu_suite.sh OUT                             all parts
#   bash benchmarks/gpu_suite.sh OUT --only smoke,bench-steps    these parts; name build, too, where sources changed
#   bash benchmarks/gpu_suite.sh --list                          the parts: name, limit in seconds, what it does
#
# It needs a checkout and the packages torch, triton, transformers, pybind11, cmake, ninja, pytest and hypothesis, but no
# network. Every part has its own time limit, and a failing part does not stop the others. After every part OUT holds
# summary.txt, logs.tar.gz and the results so far (CSV), so the suite may be killed at any time; running.log is the log
# of the part that ran then. Without a GPU, or with --device cpu, every part rehearses: the same code on small cases.
# In a copy without git, PYGEN_COMMIT names the commit for the results.
set -u
cd "$(dirname "$0")/.."

# The limits of the parts up to bench-generate fit into the whole limit together, even if the extension must be built.
PARTS=(
  "build|150|uses the prebuilt extension if it fits the sources, else builds"
  "smoke|45|every op on every GPU backend, a capture and a call of each mode, against the reference; the first fault in full"
  "bench-steps|110|one step of sample and beam_step, the figures with targets first"
  "bench-generate|120|whole calls: GPT-2 124M and Llama 1B with one row, then beams"
  "tests|110|tests/gpu, and the tests of the ops on CUDA, on eight processes"
  "memcheck|50|compute-sanitizer over each op at small shapes: memory"
  "racecheck|50|the same: races"
  "tests-triton|100|the tests of the ops on Triton, on eight processes"
  "flushed|30|single calls after a flush of the second-level cache"
  "profile|70|Nsight Compute on the three hot calls: memory throughput, issue slots, stalls; into ncu.csv"
  "bench-batch|60|64 rows that come and go: pygen's and transformers' generate_batch on Llama 1B"
  "tests-generate|60|generate() against transformers on the GPU"
  "initcheck|50|compute-sanitizer: memory that nothing wrote"
  "synccheck|50|compute-sanitizer: barriers"
)
OPS=(sample beam_step process_logits token_logprobs verify_draft reorder_cache beam_finalize)
# Logs that the summary holds whole.
SHOWN="smoke-* bench-steps bench-generate bench-batch flushed profile"
export LIMIT=${PYGEN_SUITE_SECONDS:-480} PYTHON=${PYTHON:-python3} SHORTEST=5

usage() { sed -n 's/^#   //p' "$0" >&2; exit 2; }

# ---- What each part runs. A part that cannot run here prints the reason last and returns 77. ----

build() { "$PYTHON" -m benchmarks.triton_forms "$TRITON_CACHE_DIR" && "$PYTHON" -m benchmarks.prebuilt install; }

smoke() {
  local process processes=(cuda:0/1 triton:0/3 triton:1/3 triton:2/3)
  # A rehearsal takes the CPU's kernels, and Triton's in its interpreter.
  [[ $DEVICE == cuda ]] || { processes=(cpu:0/1 triton:0/1); export TRITON_INTERPRET=1; }
  for process in "${processes[@]}"; do
    beside "smoke-${process//[:\/]/-}" "$PART_LIMIT" "$PYTHON" -m benchmarks.gpu_smoke --device "$DEVICE" \
      --backend "${process%:*}" --share "${process#*:}" --seconds $((PART_LIMIT - 4))
  done
  all_beside
}

bench_steps() {
  local size=(--quick --device cpu --threads 1)
  [[ $DEVICE == cuda ]] && size=(--table --budget 1)
  "$PYTHON" -m benchmarks.bench_gpu "${size[@]}" --quiet --results "$OUT" --seconds $((PART_LIMIT - 15))
}

bench_generate() {
  local size=(--quick --device cpu --threads 1 --prompts 4)
  # Compiled engines take longer and have separate commands (README.md).
  [[ $DEVICE == cuda ]] && size=(--table --budget 3 --prompts 32)
  "$PYTHON" -m benchmarks.bench_gpu_generate "${size[@]}" --quiet --results "$OUT" --models gpt2 llama --batches 1 8 \
    --engines transformers pygen eager --seconds $((PART_LIMIT - 25))
}

# pytest_on BACKENDS PROCESSES ARGUMENTS...
pytest_on() {
  local several=()
  (($2 > 1)) && "$PYTHON" -c 'import xdist' 2>/dev/null && several=(-n "$2" --dist worksteal)
  PYGEN_TEST_BACKENDS=$1 OMP_NUM_THREADS=1 "$PYTHON" -m pytest -v --tb=short -p no:cacheprovider -o addopts= --maxfail=25 \
    "${several[@]}" "${@:3}"
}

tests() {
  if [[ $DEVICE == cuda ]]; then
    beside tests-gpu "$PART_LIMIT" pytest_on "" 4 tests/gpu
    beside tests-cuda "$PART_LIMIT" pytest_on cuda 4 tests/ops
  else
    # The tests of tests/gpu need a GPU. The rehearsal compiles them, and runs others on copies of their tensors.
    beside tests-gpu "$PART_LIMIT" "$PYTHON" -m compileall -q tests/gpu
    beside tests-copies "$PART_LIMIT" pytest_on cpu_copies 1 tests/ops/test_beam_finalize.py
  fi
  all_beside
}

tests_triton() {
  if [[ $DEVICE == cuda ]]; then
    pytest_on triton 8 tests/ops
  else
    TRITON_INTERPRET=1 pytest_on triton 1 tests/ops/test_beam_finalize.py
  fi
}

tests_generate() {
  if [[ $DEVICE == cuda ]]; then
    pytest_on "" 4 tests/generate/test_devices.py
  else
    pytest_on "" 1 tests/generate/test_devices.py -k "beams and llama"
  fi
}

bench_batch() {
  local size=(--model qwen2 --count 6 --rows 3 --threads 1)
  [[ $DEVICE == cuda ]] && size=(--model llama --count 128 --rows 64)
  "$PYTHON" -m benchmarks.bench_generate_batch --device "$DEVICE" "${size[@]}" --parts 1 --quiet
}

# sanitizer TOOL: each op in a process with its own limit, side by side. A rehearsal runs them without the tool.
sanitizer() {
  local tool=() op
  if [[ $DEVICE == cuda ]]; then
    command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not on the PATH"; return 77; }
    tool=(compute-sanitizer --tool "$1" --error-exitcode 9 --launch-timeout 60)
  fi
  for op in $OPS_LIST; do
    beside "$1-$op" $((PART_LIMIT - 5)) "${tool[@]}" "$PYTHON" -m benchmarks.gpu_small_ops --device "$DEVICE" --ops "$op" --few
  done
  all_beside
}

memcheck() { sanitizer memcheck; }
racecheck() { sanitizer racecheck; }
initcheck() { sanitizer initcheck; }
synccheck() { sanitizer synccheck; }

flushed() {
  local size=(--quick --device cpu --threads 1)
  [[ $DEVICE == cuda ]] && size=(--table)
  "$PYTHON" -m benchmarks.gpu_flushed "${size[@]}" --quiet --results "$OUT" --seconds $((PART_LIMIT - 10))
}

# Clocks stay as they are, because the machine may be another's next.
profile() {
  local sections=() name
  [[ $DEVICE == cuda ]] || { "$PYTHON" -m benchmarks.gpu_profile run --device cpu; return; }
  command -v ncu >/dev/null || { echo "ncu is not on the PATH"; return 77; }
  for name in SpeedOfLight MemoryWorkloadAnalysis SchedulerStats WarpStateStats Occupancy LaunchStats; do sections+=(--section "$name"); done
  ncu --clock-control none --profile-from-start off "${sections[@]}" --csv --page raw --log-file "$OUT/ncu.csv" \
    "$PYTHON" -m benchmarks.gpu_profile run
  "$PYTHON" -m benchmarks.gpu_profile table "$OUT/ncu.csv" || { tail -5 "$OUT/ncu.csv"; return 1; }
}

# ---- How parts run. ----

# limited SECONDS FUNCTION_OR_COMMAND...: an interrupt at the limit, so that Python says where it was; then the kill. It
# takes the place of a background shell, so that a signal to that process reaches the command.
limited() {
  local seconds=$1 shell=()
  shift
  [[ $(type -t "$1") == function ]] && shell=(bash -c '"$@"' bash)
  exec timeout "${GROUP[@]}" --signal=INT --kill-after=5 "$seconds" "${shell[@]}" "$@"
}

# verdict CODE SECONDS LIMIT LOG: one line about a command that has ended.
verdict() {
  local last
  last=$(grep -v '^[[:space:]]*$' "$4" | tail -1 | tr -s ' ' | cut -c 1-160)
  case $1 in
    0) echo "ok in $2 s: $last" ;;
    77) echo "not run: $last" ;;
    124 | 137) echo "STOPPED at its limit of $3 s: $last" ;;
    *) echo "FAILED with status $1 in $2 s: $last" ;;
  esac
}

# beside NAME SECONDS COMMAND...: inside a part, starts a command in the background, which writes to a separate log.
beside() {
  # Only the group of the part gets its signals, so the commands stay in it.
  GROUP=(--foreground)
  limited "$2" "${@:3}" >"$LOGS/$1.log" 2>&1 &
  BESIDE+=("$1 $! $2")
}

# all_beside: waits for all of them, prints a line about each, and the end of the log of one that failed.
all_beside() {
  local entry name pid limit code worst=0
  for entry in "${BESIDE[@]}"; do
    read -r name pid limit <<<"$entry"
    wait "$pid"
    code=$?
    ((code == 0)) || { worst=1; tail -40 "$LOGS/$name.log"; }
    VERDICTS+=("$name: $(verdict "$code" "$SECONDS" "$limit" "$LOGS/$name.log")")
    echo "${VERDICTS[-1]}"
  done
  ((worst == 0)) && echo "all ${#BESIDE[@]} ok" || printf '%s\n' "${VERDICTS[@]}" | grep -v ': ok' | paste -sd ';'
  return "$worst"
}

note() {
  NAMES+=("$1")
  RESULTS+=("$2")
  echo "== $1: $2"
  save
}

parts_so_far() {
  echo "pygen on ${GPU:-a CPU: a rehearsal, no figures of a GPU}; $((SECONDS - STARTED)) s of $LIMIT s"
  for i in "${!NAMES[@]}"; do printf '%-16s %s\n' "${NAMES[$i]}" "${RESULTS[$i]}"; done
  [[ -z $RUNNING ]] || printf '%-16s running; its log is running.log\n' "$RUNNING"
}

# Writes what is known so far.
save() {
  {
    parts_so_far
    echo
    cat "$LOGS/machine.log"
    for log in $SHOWN; do
      for log in "$LOGS"/$log.log; do
        [[ ! -e $log ]] || { printf '\n== %s\n' "$(basename "$log" .log)"; cat "$log"; }
      done
    done
  } >"$OUT/summary.part"
  mv "$OUT/summary.part" "$OUT/summary.txt"
  tar -czf "$OUT/logs.part" -C "$LOGS" .
  mv "$OUT/logs.part" "$OUT/logs.tar.gz"
}

# part NAME SECONDS: runs a part under its limit and the whole limit.
part() {
  local began=$SECONDS left=$((LIMIT - (SECONDS - STARTED))) code
  if ((left < SHORTEST)); then
    note "$1" "not run: no time left"
    return
  fi
  export PART_LIMIT=$(($2 < left ? $2 : left))
  RUNNING=$1
  save
  limited "$PART_LIMIT" "${1//-/_}" >"$OUT/running.log" 2>&1 &
  CHILD=$!
  wait "$CHILD"
  code=$?
  RUNNING=""
  mv "$OUT/running.log" "$LOGS/$1.log"
  note "$1" "$(verdict "$code" $((SECONDS - began)) "$PART_LIMIT" "$LOGS/$1.log")"
}

stopped() {
  kill -TERM "$CHILD" 2>/dev/null
  wait "$CHILD"
  [[ -e $OUT/running.log ]] && mv "$OUT/running.log" "$LOGS/$RUNNING.log"
  local name=$RUNNING
  RUNNING=""
  note "${name:-suite}" "STOPPED from outside"
  exit 1
}

# ---- The command line. ----

# A function, so that bash has read the whole file before it runs anything, and the file may change meanwhile.
main() {
  OUT="" ONLY="" DEVICE=""
  while (($#)); do
    case $1 in
      --list) printf '%s\n' "${PARTS[@]}" | tr '|' '\t'; exit 0 ;;
      --only) ONLY=,${2:?--only needs names},; shift ;;
      --device) DEVICE=${2:?--device needs cpu or cuda}; shift ;;
      -*) usage ;;
      *) OUT=$1 ;;
    esac
    shift
  done
  [[ -n $OUT ]] || usage
  for name in ${ONLY//,/ }; do
    printf '%s\n' "${PARTS[@]}" | grep -q "^$name|" || { echo "no part $name; --list prints the parts" >&2; exit 2; }
  done

  mkdir -p "$OUT"
  OUT=$(cd "$OUT" && pwd)
  LOGS=$(mktemp -d)
  STARTED=$SECONDS NAMES=() RESULTS=() RUNNING="" CHILD="" GROUP=() BESIDE=() VERDICTS=()
  export OUT LOGS OPS_LIST="${OPS[*]}" PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" TRITON_CACHE_DIR="$PWD/build/gpu-suite/triton"
  while read -r _ _ name; do export -f "${name?}"; done < <(declare -F)
  trap stopped TERM INT

  timeout 120 "$PYTHON" -m benchmarks.machine >"$LOGS/machine.log" 2>&1
  GPU=$(sed -n 's/^gpu: //p' "$LOGS/machine.log")
  [[ $DEVICE == cpu ]] && GPU=""
  # A machine with a GPU should not spend its minutes on a rehearsal.
  if [[ -z $GPU && $DEVICE != cpu ]] && { [[ $DEVICE == cuda ]] || nvidia-smi -L 2>/dev/null | grep -q ^GPU; }; then
    cat "$LOGS/machine.log"
    echo "torch finds no CUDA device; --device cpu rehearses" >&2
    exit 2
  fi
  FACTOR=1
  if [[ -n $GPU ]]; then
    export DEVICE=cuda PYGEN_CUDA_ARCHS=${PYGEN_CUDA_ARCHS:-$(sed -n 's/^capability: //p' "$LOGS/machine.log")}
  else
    # A small machine that does other work, too, takes longer, and a rehearsal has time.
    export DEVICE=cpu
    FACTOR=20
  fi
  [[ -z ${PYGEN_SUITE_SECONDS:-} ]] && LIMIT=$((LIMIT * FACTOR))

  for line in "${PARTS[@]}"; do
    IFS='|' read -r name seconds _ <<<"$line"
    [[ -z $ONLY || $ONLY == *",$name,"* ]] && part "$name" $((seconds * FACTOR))
  done

  for csv in "$OUT"/*.csv; do
    [[ -e $csv ]] && "$PYTHON" -m benchmarks.report "$csv" >"${csv%.csv}.json" 2>>"$LOGS/report.log"
  done
  save
  cat "$OUT/summary.txt"
  # Once more, because only the end of a long output may come back.
  printf '\n== in short\n'
  parts_so_far
  rm -rf "$LOGS"
  ! printf '%s\n' "${RESULTS[@]}" | grep -q '^\(FAILED\|STOPPED\)'
}

main "$@"
exit
