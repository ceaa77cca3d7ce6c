#!/bin/sh
# Type-checks the text that Metal gets, prelude included, with clang: tests/gpu/types.sh product T STAGE FORMAT,
# tests/gpu/types.sh attention T DIM HEADS PARTS KEYS, tests/gpu/types.sh row T, tests/gpu/types.sh batch T, or tests/gpu/types.sh FILE.metal; KERNELS: the folder.
#
# clang's OpenCL C++ mode is nearest to Metal's language: kernels, constant references, threadgroup variables in kernels alone, half,
# vectors. Generic pointers are switched off, so a pointer without an address space is a private one. Not seen: Metal's attributes, its
# own overloads, limits of registers.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cd "${KERNELS:-$here/../../src/kernels/gpu}"

off() { printf -- '-cl-ext=-__opencl_c_%s ' generic_address_space pipes device_enqueue program_scope_global_variables atomic_order_acq_rel atomic_order_seq_cst; }
check() {
    # shellcheck disable=SC2046
    "${CLANG:-clang}" -cc1 -x clcpp -cl-std=CLC++2021 $(off) -triple spir64-unknown-unknown -fdeclare-opencl-builtins \
        -finclude-default-header -fsyntax-only -Wall -Werror -Wno-unknown-attributes -Wno-unused-function -ferror-limit 0 \
        -I "$here" "$@"
}

kind=$1
case $kind in
*.metal) # other people's: the attributes that clang's grammar has no place for are taken out
    sed -E 's/<metal_[a-z_]+>/<metal_stdlib>/; s/\[\[ *(kernel|host_name\([^]]*\)) *\]\]//g; s/\[\[ *kernel, [^]]*\]\]//g' "$kind" |
        check -w -
    exit
    ;;
product) names='T STAGE FORMAT' files='activation.h format.h product.h' ;;
batch) names=T files='activation.h batch.h batch_attention.h' ;;
attention) names='T DIM HEADS PARTS KEYS' files='heads.h attention.h' ;;
row) names=T files='norm.h argmax.h convolution.h scan.h' ;;
esac
shift
{
    cat metal.h
    for name in $names; do
        echo "#define $name $1"
        shift
    done
    # shellcheck disable=SC2086
    cat params.h common.h $files
} | check -
