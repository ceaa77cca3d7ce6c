#!/bin/sh
# Runs a command that compiles, cargo or what calls it, so that no path of this machine stands in the result, neither in Rust code nor
# in the C of dependencies: packaging/remapped.sh COMMAND [ARGUMENT …]
#
# For what is released. The Makefile, CMakeLists.txt and build-xcframework.sh all call it: cargo, asked with other flags, would compile
# everything anew.
set -eu
cd_root() { cd "$(dirname "$0")/.."; }
root=$(cd_root && pwd -P)
folder=${CARGO_HOME:-$HOME/.cargo}

with() { # flags, what they need: not twice where they have it already
    case " $1 " in *" $2 "*) printf '%s' "$1" ;; *) printf '%s' "${1:+$1 }$2" ;; esac
}

rust="--remap-path-prefix=$folder=cargo --remap-path-prefix=$root=metal-candle"
# What build scripts write is compiled from there; a `target` within the repository has a name already.
case ${CARGO_TARGET_DIR:-} in "$root"/* | "$(cd_root && pwd)"/*) ;; /*) rust="$rust --remap-path-prefix=$CARGO_TARGET_DIR=target" ;; esac
RUSTFLAGS=$(with "${RUSTFLAGS:-}" "$rust")
HOST_CFLAGS=$(with "${HOST_CFLAGS:-}" "-ffile-prefix-map=$folder=cargo")
TARGET_CFLAGS=$(with "${TARGET_CFLAGS:-}" "-ffile-prefix-map=$folder=cargo")
export RUSTFLAGS HOST_CFLAGS TARGET_CFLAGS
exec "$@"
