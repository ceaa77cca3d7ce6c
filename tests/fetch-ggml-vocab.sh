#!/bin/sh
# Brings llama.cpp's vocabularies, ggml-vocab-*.gguf with the texts and ids of its tests, out of the source of llama-cpp-python on
# PyPI (77 MB) to target/ggml-vocab, once, and prints that folder. Needs python3 with pip. pip refuses a file with another hash.
set -eu
cd "$(dirname "$0")/.."

folder=$PWD/target/ggml-vocab
if [ ! -d "$folder" ]; then
    mkdir -p target
    partial=$(mktemp -d target/ggml-vocab.XXXXXX)
    trap 'rm -rf "$partial"' EXIT
    # pip asks the source for its metadata, with the tools to build it, and builds nothing.
    python3 -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest "$partial" --requirement /dev/stdin >&2 <<END
llama-cpp-python==0.3.36 --hash=sha256:832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
END
    mkdir "$partial/vocabularies"
    python3 - "$partial" <<END
import pathlib, sys, tarfile
partial = pathlib.Path(sys.argv[1])
with tarfile.open(next(partial.glob("*.tar.gz"))) as source:
    for member in source:
        name = pathlib.PurePosixPath(member.name).name
        if member.isfile() and name.startswith("ggml-vocab-") and "/models/" in member.name:
            (partial / "vocabularies" / name).write_bytes(source.extractfile(member).read())
END
    mv "$partial/vocabularies" "$folder"
fi
echo "$folder"
