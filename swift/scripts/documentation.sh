#!/usr/bin/env bash
# The Swift package's documentation by DocC: swift/scripts/documentation.sh SCRATCH OUTPUT [OPTION of docc …]
#
# SCRATCH is where SwiftPM builds; SCRATCH/graphs/MetalCandle.symbols.json then lists the public symbols. Needs what a build needs.
set -euo pipefail
cd "$(dirname "$0")/../.."
scratch=$1 output=$2
shift 2

docc() { # on a Mac Xcode's, elsewhere beside the compiler, where it is not on the PATH
    if [ "$(uname -s)" = Darwin ]; then xcrun --find docc; return; fi
    command -v docc || find "$(dirname "$(dirname "$(readlink -f "$(command -v swift)")")")" /usr/libexec/swift/bin -name docc 2>/dev/null | head -n 1
}

# As tests/swift/run.sh links.
linker=
[ "$(uname -s)" = Darwin ] || linker="-Xlinker --allow-shlib-undefined"
# shellcheck disable=SC2086
swift package --scratch-path "$scratch" $linker dump-symbol-graph --minimum-access-level public
# Of this module alone: the folder has those of what it depends on as well.
mkdir -p "$scratch/graphs"
cp "$(find "$scratch/" -name MetalCandle.symbols.json -not -path '*/graphs/*' | head -n 1)" "$scratch/graphs"
"$(docc)" convert swift/Sources/MetalCandle/MetalCandle.docc --additional-symbol-graph-dir "$scratch/graphs" --output-path "$output" \
    --fallback-bundle-identifier metal-candle --fallback-display-name MetalCandle --warnings-as-errors "$@"
