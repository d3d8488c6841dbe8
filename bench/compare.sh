#!/usr/bin/env bash
# Speed of marlin beside llama.cpp's, on the same files, in one run.
set -euo pipefail
shopt -s inherit_errexit

readonly package=llama-cpp-python version=0.3.36
readonly sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
readonly model=SmolLM2-135M-Instruct

usage() {
  cat <<'USAGE'
Usage: bench/compare.sh [OPTIONS]

Builds llama.cpp from the source distribution of the PyPI package llama-cpp-python, once for this
processor and once without AVX-512; makes the quantised files from marlin's default model; runs marlin and
the peers alternately on every file; prints medians and ratios as a Markdown table.

What is there already is used again, and an interrupted run goes on where it stopped. Progress goes to
standard error, the table to standard output.

Options:
      --cache DIR      where source, builds, models and results are kept [default: target/compare]
      --rounds N       how often every side runs on every file [default: 5]
      --types "T …"    quantisations [default: "Q4_0 Q4_1 Q8_0 Q4_K_M"]
  -p, --prompt N       tokens of the prompt [default: 512]
  -n, --decode N       tokens to decode [default: 128]
  -t, --threads N      threads of every side [default: 2]
      --no-avx2        leave out the comparison without AVX-512
      --prepare        build and make the files, but measure nothing
      --fresh          forget the results of earlier runs
  -h, --help           this text

Environment, to use what exists instead of building it:
  MARLIN               marlin's program [built here with cargo]
  LLAMA_BIN            folder with llama-bench (and llama-quantize, if files must be made)
  LLAMA_AVX2_BIN       folder with a llama-bench built without AVX-512
  MODELS               folder with SmolLM2-135M-Instruct.TYPE.gguf
  IK_LLAMA_BENCH       llama-bench of ik_llama.cpp; takes part only when given
  IK_LLAMA_ARGS        its further arguments, such as "-rtr 1 -fa 1"
  JOBS                 parallel compilations [default: one per core]

Needs bash 4.4, python3 with pip, and to build llama.cpp cmake and a C++ compiler. For numbers worth keeping, nothing
else may run on the machine.
USAGE
}

say() { printf '== %s\n' "$*" >&2; }
die() { printf 'compare.sh: %s\n' "$*" >&2; exit 1; }
wrong() { printf 'compare.sh: %s (see --help)\n' "$*" >&2; exit 2; }
needs() { command -v "$1" >/dev/null || die "$1 is not installed; it is needed to $2"; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=$root/target/compare
types="Q4_0 Q4_1 Q8_0 Q4_K_M"
avx2=yes prepare_only= measure=()
while (($#)); do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --no-avx2) avx2= ;;
    --prepare) prepare_only=yes ;;
    --fresh) measure+=(--fresh) ;;
    --cache | --types | --rounds | -p | --prompt | -n | --decode | -t | --threads)
      (($# > 1)) || wrong "$1 needs a value"
      case $1 in
        --cache) cache=$2 ;;
        --types) types=$2 ;;
        -p | --prompt) measure+=(--prompt "$2") ;;
        -n | --decode) measure+=(--decode "$2") ;;
        -t | --threads) measure+=(--threads "$2") ;;
        --rounds) measure+=(--rounds "$2") ;;
      esac
      shift ;;
    *) wrong "unknown argument '$1'" ;;
  esac
  shift
done
[[ $(uname -m) == x86_64 ]] || avx2=
[[ -n $types ]] || wrong "--types names nothing"
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
jobs=${JOBS:-$(getconf _NPROCESSORS_ONLN)}
needs python3 "run the measurements"

# The peer's source: downloaded once, checked by pip against the hash, unpacked under its final name only
# when it is complete.
source_tree() {
  local tree=$cache/llama.cpp archive=$cache/download/${package//-/_}-$version.tar.gz
  if [[ ! -d $tree ]]; then
    if [[ ! -f $archive ]]; then
      say "downloading the source of $package $version"
      mkdir -p "$cache/download"
      printf '%s==%s --hash=sha256:%s\n' "$package" "$version" "$sha256" >"$cache/download/requirement"
      python3 -m pip download --quiet --no-deps --no-binary :all: --require-hashes \
        --requirement "$cache/download/requirement" --dest "$cache/download" >&2 \
        || die "pip could not download $package $version; set LLAMA_BIN to an existing build instead"
    fi
    say "unpacking $archive"
    rm -rf "$tree.part" && mkdir "$tree.part"
    tar -xzf "$archive" -C "$tree.part" --strip-components=3 \
      "${package//-/_}-$version/vendor/llama.cpp" || die "$archive has no vendor/llama.cpp"
    mv "$tree.part" "$tree"
  fi
  printf '%s\n' "$tree"
}

# build NAME TARGETS… -- CMAKE-OPTIONS…: prints the folder of the programs.
build() {
  local name=$1 tree targets=() wanted
  shift
  while [[ $1 != -- ]]; do targets+=("$1"); shift; done
  shift
  local folder=$cache/$name
  for wanted in "${targets[@]}"; do
    [[ -x $folder/bin/$wanted ]] && continue
    needs cmake "build llama.cpp"
    tree=$(source_tree)
    say "building llama.cpp in $folder (log: $folder.log)"
    {
      cmake -S "$tree" -B "$folder" -DCMAKE_BUILD_TYPE=Release -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF \
        -DLLAMA_BUILD_MTMD=OFF -DLLAMA_BUILD_UI=OFF "$@" &&
        cmake --build "$folder" --parallel "$jobs" --target "${targets[@]}"
    } >"$folder.log" 2>&1 || die "building llama.cpp failed; the end of $folder.log:
$(tail -n 15 "$folder.log")"
    break
  done
  printf '%s\n' "$folder/bin"
}

if [[ -n ${MARLIN:-} ]]; then
  marlin=$MARLIN
else
  say "building marlin"
  (cd "$root" && cargo build --release --quiet) >&2 || die "cargo build --release failed"
  marlin=${CARGO_TARGET_DIR:-$root/target}/release/marlin
fi
[[ -x $marlin ]] || die "no program at MARLIN=$marlin"

# Whoever brings all files needs no llama-quantize.
models=${MODELS:-$cache/models}
missing=()
for type in $types; do
  [[ -f $models/$model.$type.gguf ]] || missing+=("$type")
done
if ((${#missing[@]})) && [[ -n ${MODELS:-} ]]; then
  die "MODELS=$MODELS has no $model.${missing[0]}.gguf"
fi

# llama.cpp's code for AMX ends with an illegal instruction (seen with 0.3.36, GCC 12, on an Emerald Rapids
# Xeon): where there is AMX, it gets everything else that the processor has.
native=(-DGGML_NATIVE=ON)
if grep -qs amx_int8 /proc/cpuinfo; then
  native=(-DGGML_NATIVE=OFF)
  for feature in AVX AVX2 FMA F16C BMI2 AVX512 AVX512_VBMI AVX512_VNNI AVX512_BF16; do
    native+=("-DGGML_$feature=ON")
  done
fi
llama=${LLAMA_BIN:-$(build build-native llama-bench llama-quantize -- "${native[@]}")}
[[ -x $llama/llama-bench ]] || die "no llama-bench in LLAMA_BIN=$llama"
# Commands, split again by the shell's rules.
quoted() { printf '%q' "$1"; }
sides=(--side "marlin=$(quoted "$marlin")" --side "llama.cpp=$(quoted "$llama/llama-bench")")
if [[ -n ${IK_LLAMA_BENCH:-} ]]; then
  [[ -x $IK_LLAMA_BENCH ]] || die "no program at IK_LLAMA_BENCH=$IK_LLAMA_BENCH"
  sides+=(--side "ik_llama.cpp=$(quoted "$IK_LLAMA_BENCH") ${IK_LLAMA_ARGS:-}")
fi
if [[ -n $avx2 ]]; then
  without=${LLAMA_AVX2_BIN:-$(build build-avx2 llama-bench -- -DGGML_NATIVE=OFF -DGGML_AVX512=OFF \
    -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON)}
  [[ -x $without/llama-bench ]] || die "no llama-bench in LLAMA_AVX2_BIN=$without"
  sides+=(--side "avx2:marlin=env MARLIN_CPU=avx2 $(quoted "$marlin")"
    --side "avx2:llama.cpp=$(quoted "$without/llama-bench")")
fi

# quantise FROM TO TYPE
quantise() {
  [[ -f $2 ]] && return
  say "making $2"
  "$llama/llama-quantize" --allow-requantize "$1" "$2.part" "$3" "$jobs" >"$2.log" 2>&1 ||
    die "llama-quantize failed; the end of $2.log:
$(tail -n 5 "$2.log")"
  mv "$2.part" "$2" && rm "$2.log"
}

if ((${#missing[@]})); then
  [[ -x $llama/llama-quantize ]] || die "no llama-quantize in LLAMA_BIN=$llama, and no MODELS"
  mkdir -p "$models"
  # The default model is Q4_1, so every other file is made of its values, by way of F16.
  original=$("$marlin" pull) || die "marlin could not fetch its default model"
  half=$models/$model.F16.gguf
  quantise "$original" "$half" F16
  for type in "${missing[@]}"; do
    if [[ $type == Q4_1 ]]; then
      cp "$original" "$models/$model.Q4_1.gguf.part"
      mv "$models/$model.Q4_1.gguf.part" "$models/$model.Q4_1.gguf"
    else
      quantise "$half" "$models/$model.$type.gguf" "$type"
    fi
  done
fi
[[ -z $prepare_only ]] || { say "prepared in $cache"; exit 0; }

files=()
for type in $types; do files+=("$models/$model.$type.gguf"); done
exec python3 "$root/bench/alternate.py" --results "$cache/results" "${measure[@]}" "${sides[@]}" "${files[@]}"
