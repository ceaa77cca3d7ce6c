#!/usr/bin/env bash
# The C++ header by every compiler and standard, against the shared library, and against the archive under AddressSanitizer; that it
# covers the C header; the example. `make test` builds the library first.
set -u
cd "$(dirname "$0")/../.."
. tests/steps.sh

: "${OUT:=target/debug}" "${BUILD:=build/dev}" "${CXX:=c++}"
warnings="-Wall -Wextra -Wpedantic -Wshadow -Werror"
shared="-L$OUT -lmetal_candle -Wl,-rpath,$(cd "$OUT" && pwd)"
mkdir -p "$BUILD/tests"

# Handles are move-only, so that nobody retains one; an error's code is that of its call.
left_out='mc_error_code mc_lora_retain mc_model_retain'
# The names of ABI 1, each of a function that is called.
left_out="$left_out $(sed -n 's/^pub unsafe extern "C" fn \(mc_[a-z_]*\).*/\1/p' src/ffi/abi1.rs | tr '\n' ' ')"

every_function_is_called() {
    local name
    for name in $(cat abi/symbols.txt); do
        grep -qw "$name" include/metal_candle.hpp || grep -qw "$name" <<<"$left_out" || { echo "$name is called nowhere"; return 1; }
    done
}
step "every function of the C header is in the C++ one" every_function_is_called

tests() { # compiler, standard, name, flags and libraries …
    local compiler=$1 standard=$2 name=$BUILD/tests/cpp-$3
    shift 3
    # shellcheck disable=SC2086
    $compiler -std=$standard -O1 -g $warnings -Iinclude tests/cpp/metal_candle.cpp -o "$name" "$@" -pthread && "$name"
}

for compiler in g++ clang++; do
    have $compiler "the C++ header by $compiler" || continue
    # shellcheck disable=SC2086
    for standard in c++17 c++20; do step "C++ tests, $standard by $compiler" tests $compiler $standard $compiler-$standard $shared; done
done

if printf 'int main() {}' | $CXX -fsanitize=address,undefined -x c++ - -o "$BUILD/tests/probe" 2>/dev/null; then
    # shellcheck disable=SC2046
    step "C++ tests, sanitized" tests "$CXX" c++17 sanitized -fsanitize=address,undefined "$OUT/libmetal_candle.a" $(cat "$OUT/native-static-libs")
else
    skip "sanitized C++ tests" "$CXX has no AddressSanitizer"
fi

example() {
    local output
    # shellcheck disable=SC2086
    $CXX -std=c++17 -O1 $warnings -Iinclude examples/cpp/tour.cpp -o "$BUILD/tour" $shared && output=$("$BUILD/tour" 2>&1) || return
    grep -qF 'Appends an element to the back of a collection.' <<<"$output" && grep -qF '… cancelled' <<<"$output" &&
        [ "$(grep -E '^0\.[0-9]+  ' <<<"$output" | head -n 1 | cut -d' ' -f3-)" = 'add an element to a vector' ] &&
        grep -q 'step 20 of 20' <<<"$output"
}
step "example: tour" example

readme() { # the lines that the README shows, as a program
    # shellcheck disable=SC2086
    {
        printf '#include <metal_candle.hpp>\n#include <iostream>\nint main() {\n'
        sed -n '/^```cpp$/,/^```$/p' README.md | grep -v '^```'
        printf '}\n'
    } >"$BUILD/tests/readme.cpp" && $CXX -std=c++17 $warnings -Iinclude "$BUILD/tests/readme.cpp" -o "$BUILD/tests/readme" $shared &&
        [ "$("$BUILD/tests/readme")" = 'Appends an element to the back of a collection.' ]
}
step "the README's lines" readme

end "tests/cpp"
