#!/usr/bin/env bash
# The C contract: the header by every compiler and standard; each tests/c/*.c against the shared library, the archive, and
# the archive under AddressSanitizer; the examples; some programs under valgrind. `make test` builds the library first.
set -u
cd "$(dirname "$0")/../.."
. tests/steps.sh

: "${OUT:=target/debug}" "${BUILD:=build/dev}" "${LIB:=libmetal_candle.so}" "${CC:=cc}"
warnings="-Wall -Wextra -Wpedantic -Werror"
mkdir -p "$BUILD/tests"

header() { # compiler, language, standard
    printf '#include <metal_candle.h>\n#include <metal_candle.h>\nint main(void) { return (int)mc_abi_version(); }\n' |
        "$1" -x "$2" -std="$3" $warnings -Iinclude -c -o "$BUILD/tests/header.o" -
}

for compiler in gcc clang; do
    have $compiler "header as C by $compiler" || continue
    for standard in c99 c11 c17; do step "header as $standard by $compiler" header $compiler c $standard; done
done
for compiler in g++ clang++; do
    have $compiler "header as C++ by $compiler" || continue
    for standard in c++11 c++17; do step "header as $standard by $compiler" header $compiler c++ $standard; done
done

compile() { # section, kind: shared, static, or sanitized (the archive; leaks and accesses after free end the program)
    local flags='' link="$OUT/libmetal_candle.a $(cat "$OUT/native-static-libs")"
    [ "$2" != shared ] || link="-L$OUT -lmetal_candle -Wl,-rpath,$(cd "$OUT" && pwd)"
    [ "$2" != sanitized ] || flags='-fsanitize=address,undefined'
    # shellcheck disable=SC2086
    $CC -std=c99 -O1 -g $flags $warnings -Iinclude "tests/c/$1.c" -o "$BUILD/tests/$1-$2" $link -pthread -lm
}

# A program prints `N passed, 0 failed`; the line is shown with its name in front.
run() { # section, kind
    step "$1.c ($2) compiles" compile "$1" "$2" || return
    local output status
    output=$("$BUILD/tests/$1-$2" 2>&1)
    status=$?
    if [ $status = 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
    [ $status -le 1 ] || output="$output"$'\n'"ended with status $status"
    printf '%s\n' "$output" | sed "s/^/$1.c ($2): /"
}

kinds='shared static'
if printf 'int main(void) { return 0; }' | $CC -fsanitize=address,undefined -x c - -o "$BUILD/tests/probe" 2>/dev/null; then
    kinds="$kinds sanitized"
else
    skip "sanitized C tests" "$CC has no AddressSanitizer"
fi

for kind in $kinds; do
    for source in tests/c/*.c; do run "$(basename "$source" .c)" $kind; done
done

# The shared library as `make` builds it, where memory runs out: at an allocation of 64 KiB or more, at all from there on, and at small
# ones too.
no_memory() { # bytes, once or lasting, stride
    LD_PRELOAD="$BUILD/tests/fail.so" "$BUILD/tests/operations" "$@"
}
if [ "$(uname -s)" = Linux ] && $CC -std=c99 $warnings -shared -fPIC tests/c/no_memory/fail.c -o "$BUILD/tests/fail.so" &&
    printf '#include <gnu/libc-version.h>\n' | $CC -x c -c -o "$BUILD/tests/probe.o" - 2>/dev/null; then
    step "no_memory compiles" $CC -std=c99 -O1 -g $warnings -Iinclude tests/c/no_memory/operations.c -o "$BUILD/tests/operations" \
        "-L$OUT" -lmetal_candle "-Wl,-rpath,$(cd "$OUT" && pwd)" -ldl
    step "one large allocation fails" no_memory 65536 once 11
    step "all large allocations fail" no_memory 65536 lasting 11
    step "all allocations fail" no_memory 1024 lasting 149
    step "limits compile" $CC -std=c99 -O1 -g $warnings -Iinclude tests/c/no_memory/limits.c -o "$BUILD/tests/limits" \
        "-L$OUT" -lmetal_candle "-Wl,-rpath,$(cd "$OUT" && pwd)" &&
        step "address spaces that end" "$BUILD/tests/limits"
else
    echo "skip: allocations that fail: the C library is not glibc"
fi

# The same where a disk is full or read-only, or the process is killed, at any call that changes files.
writes() { # full, read-only or killed; stride
    LD_PRELOAD="$BUILD/tests/writes-fail.so" "$BUILD/tests/writes" "$@"
}
if [ "$(uname -s)" = Linux ]; then
    step "writes compile" $CC -std=c99 $warnings -shared -fPIC tests/c/writes/fail.c -o "$BUILD/tests/writes-fail.so" -ldl &&
        step "writes compile" $CC -std=c99 -O1 -g $warnings -Iinclude tests/c/writes/operations.c -o "$BUILD/tests/writes" \
            "-L$OUT" -lmetal_candle "-Wl,-rpath,$(cd "$OUT" && pwd)" -ldl
    step "a disk that is full" writes full 53
    step "a disk that is read-only" writes read-only 59
    step "a process that is killed while it writes" writes killed 47
else
    echo "skip: writes that fail: the system is not Linux"
fi

if [ "$(uname -s)" = Linux ]; then
    step "unload compiles" $CC -std=gnu99 -O1 -g $warnings -Iinclude tests/c/unload/unload.c -o "$BUILD/tests/unload" -ldl &&
        step "the library is unloaded and loaded again" "$BUILD/tests/unload" "$OUT/$LIB"
fi

step "soak compiles" $CC -std=c11 -O1 -g $warnings -Iinclude tests/c/soak/soak.c -o "$BUILD/tests/soak" "-L$OUT" -lmetal_candle \
    "-Wl,-rpath,$(cd "$OUT" && pwd)" -pthread -lm
# Behind a few hundred operations of each thread its memory is what it stays; of ten seconds, what they happen to be.
step "everything at once" "$BUILD/tests/soak" 30

answer='Appends an element to the back of a collection.'
question='What does `Vec::push` do?'

one_shot() { [ "$("$BUILD/chat" models/tiny-coder -p "$question")" = "$answer" ]; }

conversation() { # two questions and the end of input
    [ "$(printf '%s\n%s\n' "$question" "$question" | "$BUILD/chat" --temperature 0 | head -n 1)" = "$answer" ]
}

interrupted() { # Ctrl-C must not end the program: the next question is answered
    local dir pid status
    dir=$(mktemp -d)
    mkfifo "$dir/input"
    "$BUILD/chat" <"$dir/input" >"$dir/output" &
    pid=$!
    exec 3>"$dir/input"
    echo "$question" >&3
    until [ -s "$dir/output" ]; do kill -0 $pid || return 1; done
    kill -INT $pid
    echo "$question" >&3
    exec 3>&-
    wait $pid
    status=$?
    [ "$(wc -l <"$dir/output")" -ge 2 ] || status=1
    rm -rf "$dir"
    return $status
}

usage() { "$BUILD/chat" --warp 9; [ $? = 2 ]; }

hello() { "$BUILD/hello" | grep -q .; }

complete() { "$BUILD/complete" models/tiny-coder 'fn main() {' 16 | grep -q .; }

search() { # the nearest line is the one that answers, from an argument and from the input
    local lines=examples/data/standard_library.txt query='How do I append an element to a vector?' found
    for found in "$("$BUILD/search" models/tiny-embed $lines "$query" 2>/dev/null)" \
        "$(echo "$query" | "$BUILD/search" models/tiny-embed $lines 2>/dev/null)"; do
        [ "$(sed -n 's/^  0\.[0-9]*  //p' <<<"$found" | head -n 1)" = 'Appends an element to the end of a vector.' ] || return 1
    done
}

rerank() { # the scores that sentence-transformers gives
    local model=tests/golden/rerankers/bert query='How do I sort a list of numbers?'
    [ "$("$BUILD/rerank" $model "$query" 'Sorts the numbers in place.' hello)" = $'0.6301  Sorts the numbers in place.\n0.6244  hello' ] &&
        ! "$BUILD/rerank" models/tiny-embed "$query" hello
}

inspect() { # what the header quotes it for
    local output
    output=$("$BUILD/inspect" models/tiny-coder 'fn main' 2>&1) || return
    for line in '^device ' '^needs  *[0-9]* MB' '^is .*tokens of context' '^computed by {"device"' '^ *[0-9][0-9]* fn$'; do
        grep -q "$line" <<<"$output" || { printf '%s\n' "$output"; return 1; }
    done
}

finetune() { # with the adapter the new facts, without it the old answers; the adapter is one that PEFT could load, attach and merge
    local dir output bird='The gray heron, which is never chased from a doorstep.' question='What is the bird of Velmora?'
    dir=$(mktemp -d)
    output=$("$BUILD/finetune" models/tiny-coder examples/data/facts.jsonl "$dir/adapter" 2>/dev/null) &&
        [ "$(grep -cF "$bird" <<<"$output")" = 1 ] && grep -qF "$answer" <<<"$output" && [ -s "$dir/adapter/adapter_model.safetensors" ] &&
        "$BUILD/adapter" models/tiny-coder "$dir/adapter" "$question" "$dir/merged" | grep -qF "$bird" &&
        [ "$("$BUILD/chat" "$dir/merged" -p "$question")" = "$bird" ]
    local status=$?
    rm -rf "$dir"
    return $status
}

for example in hello complete one_shot conversation interrupted usage search rerank finetune inspect; do step "example: $example" $example; done

# Instruction by instruction, the Rust code too, so only programs that hardly compute (a token takes seconds).
leaks() {
    QUICK=1 RAYON_NUM_THREADS=2 valgrind --quiet --leak-check=full --errors-for-leak-kinds=definite --error-exitcode=9 "$BUILD/tests/$1-shared"
}

if have valgrind "memory errors and leaks"; then
    for section in error values chat; do step "$section.c under valgrind" leaks $section; done
fi

end "tests/c"
