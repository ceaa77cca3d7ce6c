#!/usr/bin/env bash
# The documentation as one site of files, in build/docs: the header and the guides by Doxygen, the Rust library by rustdoc, and, where
# Swift is there, its package by DocC. `make docs` calls it. DOC_FEATURES are cargo's.
set -euo pipefail
cd "$(dirname "$0")/../.."

site=build/docs
: "${OUT:=target/release}" "${BUILD:=build/release}"
command -v doxygen >/dev/null || { echo "docs: doxygen is missing" >&2; exit 1; }

# Why there is no Swift package: SwiftPM builds it for its documentation, and links it.
lacks=
if ! command -v swift >/dev/null; then
    lacks="swift is missing"
elif [ "$(uname -s)" = Darwin ]; then
    [ -e build/MetalCandle.xcframework ] || lacks="there is no build/MetalCandle.xcframework"
else
    [ -e "$OUT/libmetal_candle.so" ] || lacks="there is no $OUT/libmetal_candle.so"
    LIBRARY_PATH=$(cd "$OUT" 2>/dev/null && pwd || true) && export LIBRARY_PATH
fi
sections=swift
[ -z "$lacks" ] || { echo "docs: without the Swift package: $lacks"; sections=; }

rm -rf "$site"
mkdir -p "$site" "$BUILD"
VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1) SITE=$site SECTIONS=$sections doxygen packaging/docs/Doxyfile

target=${CARGO_TARGET_DIR:-target}
rm -rf "$target/doc"
RUSTDOCFLAGS="-D warnings" ${CARGO:-cargo} doc --quiet --lib --no-deps ${DOC_FEATURES:+--features "$DOC_FEATURES"}
cp -R "$target/doc" "$site/rust"
echo '<!doctype html><title>metal_candle</title><meta http-equiv="refresh" content="0; url=metal_candle/index.html">' >"$site/rust/index.html"

# Pages of DocC know where they are: below DOCS_BASE, where the site is not at the top of its host.
[ -n "$lacks" ] || swift/scripts/documentation.sh "$BUILD/swift/package" "$site/swift" --transform-for-static-hosting \
    --hosting-base-path "${DOCS_BASE:+$DOCS_BASE/}swift"
echo "docs: $site/index.html"
