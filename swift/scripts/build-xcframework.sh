#!/usr/bin/env bash
# Builds the XCFramework of the Swift package: swift/scripts/build-xcframework.sh [build/MetalCandle.xcframework]
#
# On a Mac with Xcode and rustup. On Linux, where it is tested, with rustup: a static library needs no linker of Apple's.
#
#   TARGETS           Rust targets; all without it
#   LTO               fat; off takes half the time, for an XCFramework that is tried and not shipped
#   CARGO_TARGET_DIR  target
#   ASSEMBLE          assemble-xcframework.sh; true leaves it at the libraries
set -euo pipefail
cd "$(dirname "$0")/../.."

out=${1:-build/MetalCandle.xcframework}
target_dir=${CARGO_TARGET_DIR:-target}
# The oldest systems that candle's Metal runs on.
export MACOSX_DEPLOYMENT_TARGET=15.0 IPHONEOS_DEPLOYMENT_TARGET=18.0
options=(--release --locked --lib --features reserve --crate-type staticlib --config "profile.release.lto=\"${LTO:=fat}\"")
# All crates in one object: what nothing calls is not in it.
[ "$LTO" != fat ] || options+=(--config profile.release.codegen-units=1)

archives=() licenses=()
for target in ${TARGETS:-aarch64-apple-darwin x86_64-apple-darwin aarch64-apple-ios aarch64-apple-ios-sim x86_64-apple-ios}; do
    folder=$target_dir/$target/release
    mkdir -p "$folder"
    packaging/remapped.sh ${CARGO:-cargo} rustc "${options[@]}" --target "$target" -- --print "native-static-libs=$(cd "$folder" && pwd)/native-static-libs"
    # What an app must link is written down once: Package.swift names the frameworks.
    tr ' ' '\n' <"$folder/native-static-libs" | sed -n '/^-framework$/{n;s/^/framework /p;d;}; s/^-l/library /p' | sort -u >"$folder/system"
    diff swift/scripts/system.txt "$folder/system" || { echo "$target: needs other parts of the system than swift/scripts/system.txt says" >&2; exit 1; }
    archives+=("$target" "$folder/libmetal_candle.a")
    licenses+=(--target "$target")
done
"${ASSEMBLE:-swift/scripts/assemble-xcframework.sh}" "$out" "${archives[@]}"
# The notices of what is linked in, which an app shows beside its own.
packaging/third-party-licenses.py "${licenses[@]}" "$target_dir/THIRD-PARTY-LICENSES"
[ ! -d "$out" ] || cp "$target_dir/THIRD-PARTY-LICENSES" "$out"
