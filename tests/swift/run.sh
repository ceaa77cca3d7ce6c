#!/usr/bin/env bash
# The Swift package: its tests, the terminal program, the sample's view models, the documentation, and a package that depends on
# this one by a git tag and compiles every snippet of README.md, the articles and the documentation comments.
# Needs Swift 6.0, git and python3; on Linux the archive of `make PROFILE=dev library`, on a Mac the XCFramework.
set -u
cd "$(dirname "$0")/../.."
. tests/steps.sh

: "${OUT:=target/debug}" "${BUILD:=build/dev}"
: "${ARCHIVE:=$OUT/libmetal_candle.a}"
mkdir -p "$BUILD/swift/native"
scratch=$(cd "$BUILD/swift" && pwd)
stage=$(mktemp -d)
trap 'rm -rf "$log" "$stage"' EXIT

if [ "$(uname -s)" = Darwin ]; then
    framework=${METAL_CANDLE_XCFRAMEWORK:-build/MetalCandle.xcframework}
    if [ ! -e "$framework" ]; then
        skip "the Swift package" "there is no $framework"
        end "tests/swift"
        exit
    fi
else
    # Alone in its folder: beside a shared library the linker would take that one.
    ln -sf "$(cd "$(dirname "$ARCHIVE")" && pwd)/$(basename "$ARCHIVE")" "$scratch/native/libmetal_candle.a"
    export LIBRARY_PATH=$scratch/native
fi
flags="-j 2 -Xswiftc -warnings-as-errors"

build() { # folder, scratch
    # SwiftPM does not see that the archive is another one; what was linked with it is linked again.
    find "$2"/*/debug -maxdepth 1 \( -name '*.xctest' -o -name mc-chat \) -exec rm -rf {} + 2>/dev/null
    # shellcheck disable=SC2086
    swift build --build-tests --package-path "$1" --scratch-path "$2" $flags
}

# Its output's last line says how many tests there were; without one, nothing ran.
tests() { # folder, scratch
    swift test --skip-build --package-path "$1" --scratch-path "$2" 2>&1 | tee "$stage/tests"
    [ "${PIPESTATUS[0]}" = 0 ] && grep -q 'Test run with [1-9][0-9]* tests passed' "$stage/tests"
}

rules() { # what reviewers would else look for: one file says what is safe to send, nothing keeps apps from depending on a version, and
    # apps link the frameworks that the library needs
    [ "$(grep -rlE '@unchecked Sendable|nonisolated\(unsafe\)|@preconcurrency' swift --include='*.swift')" = swift/Sources/MetalCandle/Handle.swift ] &&
        ! grep -rn 'unsafeFlags' Package.swift swift --include='*.swift' &&
        [ "$(sed -n 's/.*= \[\(.*\)\]\.map { \.linkedFramework.*/\1/p' Package.swift | tr -d '", ')" = "$(sed -n 's/^framework //p' swift/scripts/system.txt | tr -d '\n')" ]
}

question='What does `Vec::push` do?'
answer='Appends an element to the back of a collection.'
chat() { "$(swift build --scratch-path "$scratch/package" --show-bin-path)/mc-chat" "$@"; }

one_shot() { [ "$(chat -p "$question")" = "$answer" ]; }
conversation() { [ "$(printf '%s\n%s\n' "$question" "$question" | chat --temperature 0 models/tiny-coder | head -n 1)" = "$answer" ]; }
usage() { chat --warp 9; [ $? = 2 ]; }
tool() { # which the small model was never shown: it has to be called, and then an answer follows
    chat --tools required --answer-format hermes --temperature 0 --max-tokens 64 -p "$question" >"$stage/answer" 2>"$stage/calls" || return 1
    cat "$stage/calls" "$stage/answer"
    tr -d ' \n' <"$stage/calls" | grep -qxE '\[clock\{"zone":"(utc|local)"\}:[0-9]{4}(-[0-9]{2}){2}T.*\]' && grep -q . "$stage/answer" &&
        ! chat --tools some -p "$question"
}
missing_model() { chat nowhere 2>&1 | grep -q '^mc-chat: .*nowhere: No such file'; }

documented() { # every public symbol, and every link
    swift/scripts/documentation.sh "$scratch/package" "$stage/documentation" &&
        python3 tests/swift/documented.py "$scratch/package/graphs/MetalCandle.symbols.json"
}

installed() { # what `make install` puts where a package finds it by PKG_CONFIG_PATH
    mkdir -p "$1/lib/pkgconfig" && cp -R include "$1" && cp "$scratch/native/libmetal_candle.a" "$1/lib" &&
        sed -e "s|@PREFIX@|$1|g" -e "s|@LIBDIR@|$1/lib|g" -e 's|@VERSION@|1.2.3|g' -e 's|@LIBS_PRIVATE@||g' packaging/metal-candle.pc.in >"$1/lib/pkgconfig/metal-candle.pc"
}

consumer() { # depends on a tag of this package, as apps do; on a Mac the XCFramework is in it
    local package=$stage/metal-candle user=(-c user.name=nobody -c user.email=nobody -c commit.gpgsign=false -c init.defaultBranch=main)
    mkdir -p "$package/build" && cp -R Package.swift swift include "$package" || return 1
    if [ "$(uname -s)" = Darwin ]; then
        cp -R "$framework" "$package/build/MetalCandle.xcframework" || return 1
    else
        installed "$stage/prefix" && local -x LIBRARY_PATH='' PKG_CONFIG_PATH=$stage/prefix/lib/pkgconfig || return 1
    fi
    git -C "$package" "${user[@]}" init -q &&
        git -C "$package" add -A && git -C "$package" "${user[@]}" commit -qm 'as it is' && git -C "$package" tag 1.2.3 &&
        python3 tests/swift/consumer.py "$stage/consumer" "$package" &&
        env -u METAL_CANDLE_XCFRAMEWORK swift run --package-path "$stage/consumer" -j 2 readme | tee "$stage/readme" &&
        grep -qF "$answer" "$stage/readme"
}

step "rules" rules
step "swift build" build . "$scratch/package" && step "swift test" tests . "$scratch/package" && grep '^.* Test run with' "$stage/tests"
for program in one_shot conversation tool usage missing_model; do step "mc-chat: $program" $program; done
step "the sample builds" build swift/Examples/Chat "$scratch/sample" && step "the sample's tests" tests swift/Examples/Chat "$scratch/sample" &&
    grep '^.* Test run with' "$stage/tests"
[ "$(uname -s)" = Darwin ] || step "the sample's views parse" swiftc -frontend -parse swift/Examples/Chat/Sources/Chat/*.swift
if have python3 "documentation and snippets"; then
    step "documentation" documented
    if have git "a package that depends on this one"; then step "a package that depends on a tag" consumer; fi
fi

end "tests/swift"
