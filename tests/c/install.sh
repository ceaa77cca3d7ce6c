#!/usr/bin/env bash
# Installs into a temporary prefix and builds a program as a user would: through pkg-config and through CMake, shared and static.
set -u
cd "$(dirname "$0")/../.."
. tests/steps.sh

: "${CC:=cc}" "${PROFILE:=dev}" "${OUT:=target/debug}" "${LIB:=libmetal_candle.so}"
stage=$(mktemp -d)
trap 'rm -rf "$log" "$stage"' EXIT
prefix=$stage/prefix
answer='Appends an element to the back of a collection.'

# Without the flags of a `make -j` above: its job server is not handed to this script.
make_quietly() { MAKEFLAGS='' make PROFILE="$PROFILE" FEATURES="${FEATURES:-}" PREFIX="$prefix" "$@"; }

answers() { [ "$(LD_LIBRARY_PATH=${2:-} DYLD_LIBRARY_PATH=${2:-} "$1" models/tiny-coder -p 'What does `Vec::push` do?')" = "$answer" ]; }

pkg() { PKG_CONFIG_PATH=$prefix/lib/pkgconfig pkg-config "$@" metal-candle; }

by_pkg_config_shared() {
    # shellcheck disable=SC2046
    $CC examples/c/chat.c -o "$stage/pc-shared" $(pkg --cflags --libs) && answers "$stage/pc-shared" "$prefix/lib"
}

by_pkg_config_static() {
    # The archive by its name: a linker prefers the shared library beside it.
    # shellcheck disable=SC2046
    $CC examples/c/chat.c -o "$stage/pc-static" $(pkg --cflags) $(pkg --static --libs | sed "s|-lmetal_candle|$prefix/lib/libmetal_candle.a|") &&
        answers "$stage/pc-static"
}

by_cmake() {
    mkdir -p "$stage/cmake"
    cat >"$stage/cmake/CMakeLists.txt" <<CMAKE
cmake_minimum_required(VERSION 3.15)
project(consumer C)
find_package(metal-candle $(pkg_version) REQUIRED)
foreach(kind shared static)
  add_executable(chat-\${kind} $PWD/examples/c/chat.c)
  target_link_libraries(chat-\${kind} PRIVATE metal-candle::\${kind})
endforeach()
CMAKE
    cmake -S "$stage/cmake" -B "$stage/cmake/build" -DCMAKE_PREFIX_PATH="$prefix" && cmake --build "$stage/cmake/build" &&
        answers "$stage/cmake/build/chat-shared" && answers "$stage/cmake/build/chat-static"
}

symbols_are_the_headers() { # of an archive
    [ "$(uname -s)" != Linux ] || diff <(sort abi/symbols.txt) <(nm -g --defined-only "$1" 2>/dev/null | awk 'NF == 3 {print $3}' | sort)
}

no_paths() { # of this machine in what is released
    local file
    [ "$PROFILE" != dev ] || return 0
    for file in "$@"; do
        ! grep -aqF -e "${CARGO_HOME:-$HOME/.cargo}/" -e "$PWD/" "$file" || { echo "$file holds paths of this machine"; return 1; }
    done
}

# As a part of another project, built by cargo where this test's library was built.
by_fetch_content() {
    mkdir -p "$stage/fetch"
    cat >"$stage/fetch/CMakeLists.txt" <<CMAKE
cmake_minimum_required(VERSION 3.18)
project(consumer C)
include(FetchContent)
FetchContent_Declare(metal-candle SOURCE_DIR $PWD)
FetchContent_MakeAvailable(metal-candle)
add_executable(chat $PWD/examples/c/chat.c)
target_link_libraries(chat PRIVATE metal-candle::metal-candle)
CMAKE
    local shared archive
    touch "$stage/before"
    for shared in ON OFF; do
        cmake -S "$stage/fetch" -B "$stage/fetch/$shared" -DBUILD_SHARED_LIBS=$shared -DMETAL_CANDLE_PROFILE="$PROFILE" \
            -DMETAL_CANDLE_TARGET_DIR="$(cd "$OUT/.." && pwd)" -DCARGO="$(command -v "${CARGO:-cargo}")" && cmake --build "$stage/fetch/$shared" && answers "$stage/fetch/$shared/chat" || return
    done
    # Asked as the Makefile asks, cargo had nothing to do but to list the sources anew, where it was told another name of the folder.
    [ -z "$(find "$OUT/" -maxdepth 1 -type f -name 'libmetal_candle.*' ! -name '*.d' -newer "$stage/before")" ] || { echo "cargo compiled it anew"; return 1; }
    archive=$(find "$stage/fetch/OFF" -name libmetal_candle.a)
    symbols_are_the_headers "$archive" && no_paths "$archive" "$OUT/$LIB" || return
    # The name by which programs look for it is made here as well, where no `make library` ran before.
    [ -n "$(find "$OUT/" -maxdepth 1 -type l -name 'libmetal_candle*' -newer "$stage/before")" ]
}

# Two archives with a standard library each.
beside_another_rust_library() {
    echo '#[no_mangle] pub extern "C" fn seven() -> i32 { let v: Vec<i32> = (0..4).collect(); v.iter().sum::<i32>() + 1 }' >"$stage/other.rs"
    rustc --crate-type staticlib --edition 2021 "$stage/other.rs" -o "$stage/libother.a" &&
        printf '#include <metal_candle.h>\nint seven(void);\nint main(void) { return seven() + (int)mc_live_objects() == 7 ? 0 : 1; }\n' >"$stage/two.c" &&
        $CC "$stage/two.c" -o "$stage/two" -I"$prefix/include" "$prefix/lib/libmetal_candle.a" "$stage/libother.a" \
            $(pkg --static --libs-only-l --libs-only-other | sed 's|-lmetal_candle||') && "$stage/two"
}

newer_is_refused_by_cmake() {
    sed -i.bak 's/find_package(metal-candle [^ ]*/find_package(metal-candle 999.0/' "$stage/cmake/CMakeLists.txt"
    ! cmake -S "$stage/cmake" -B "$stage/cmake/refused" -DCMAKE_PREFIX_PATH="$prefix"
}

pkg_version() { sed -n 's/^Version: //p' "$prefix/lib/pkgconfig/metal-candle.pc"; }

nothing_is_left() { make_quietly uninstall && [ -z "$(find "$prefix" ! -type d)" ]; }

# What make is told reaches cargo; to compile it would prove no more.
cargo_is_told() {
    local features lto
    features=$(MAKEFLAGS='' make -n PROFILE=release FEATURES='cuda, selftest' library) && lto=$(MAKEFLAGS='' make -n PROFILE=release LTO=fat library) &&
        grep -q -- '--features reserve,cuda,selftest ' <<<"$features" && ! grep -q lto <<<"$features" &&
        grep -qF -- "--config 'profile.release.lto=\"fat\"' --config profile.release.codegen-units=1" <<<"$lto"
}

# Where systems keep the libraries of several processors apart: all find each other, below the prefix wherever that is moved to.
libdir() {
    local multi=$stage/multi moved=$stage/moved
    make_quietly install PREFIX="$multi" LIBDIR="$multi/lib/any-linux" && [ -e "$multi/lib/any-linux/$LIB" ] && [ "$(ls "$multi/lib")" = any-linux ] &&
        [ "$(PKG_CONFIG_PATH=$multi/lib/any-linux/pkgconfig pkg-config --variable=libdir metal-candle)" = "$multi/lib/any-linux" ] &&
        mv "$multi" "$moved" && cmake -S "$stage/cmake" -B "$stage/cmake/moved" -Dmetal-candle_DIR="$moved/lib/any-linux/cmake/metal-candle" &&
        cmake --build "$stage/cmake/moved" && answers "$stage/cmake/moved/chat-shared" && mv "$moved" "$multi" &&
        make_quietly uninstall PREFIX="$multi" LIBDIR="$multi/lib/any-linux" && [ -z "$(find "$multi" ! -type d)" ]
}

# The loader is told, but not of what is staged and not by somebody who may not.
ldconfig_is_run() {
    local expected=0
    [ "$(id -u)" != 0 ] || expected=1
    mkdir -p "$stage/bin" && printf '#!/bin/sh\necho ran >>"%s"\n' "$stage/ldconfig" >"$stage/bin/ldconfig" && chmod +x "$stage/bin/ldconfig" &&
        PATH="$stage/bin:$PATH" make_quietly install && [ "$(cat "$stage/ldconfig" 2>/dev/null | wc -l)" = $expected ] &&
        PATH="$stage/bin:$PATH" make_quietly install DESTDIR="$stage/elsewhere" && [ "$(cat "$stage/ldconfig" 2>/dev/null | wc -l)" = $expected ]
}

staged() { make_quietly install DESTDIR="$stage/staged" && [ -e "$stage/staged$prefix/lib/pkgconfig/metal-candle.pc" ] && ! grep -rq "$stage/staged" "$stage/staged$prefix/lib/pkgconfig"; }

# An archive works wherever it is unpacked, and holds no path of where it was made.
dist() {
    make_quietly dist && mkdir "$stage/unpacked" || return
    local archive
    archive=$(ls build/metal-candle-*.tar.gz) && (cd build && { sha256sum -c ./*.tar.gz.sha256 || shasum -a 256 -c ./*.tar.gz.sha256; }) || return
    tar -C "$stage/unpacked" -xzf "$archive" && rm "$archive" "$archive.sha256"
    local folder
    folder=$(echo "$stage"/unpacked/metal-candle-*)
    ! grep -rqF "$PWD" "$folder/lib/pkgconfig" "$folder/lib/cmake" || return
    grep -q '^candle-core [0-9]' "$folder/share/licenses/metal-candle/THIRD-PARTY-LICENSES" || return
    # shellcheck disable=SC2046
    $CC -std=c99 examples/c/chat.c -o "$stage/unpacked/chat" $(PKG_CONFIG_PATH=$folder/lib/pkgconfig pkg-config --cflags --libs metal-candle) \
        "-Wl,-rpath,$folder/lib" && answers "$stage/unpacked/chat"
}

# A name for each crate that cargo links, each with a text that is there, and nobody is given what comes without one.
third_party() {
    local file=$stage/licenses crate numbers
    packaging/third-party-licenses.py "$file" || return
    [ "$(grep -cE '^[^ ]+ [0-9.]+: .*; [0-9, ]+$' "$file")" = "$(${CARGO:-cargo} tree --locked -e normal,no-proc-macro --features reserve --prefix none -f '{p}' -p metal-candle |
        sed 's/ (.*//; /^metal-candle /d; /^$/d' | sort -u | wc -l)" ] || { echo "not each crate"; return 1; }
    for crate in candle-core tokenizers ring "Rust's standard library"; do
        numbers=$(sed -n "s/^$crate[ ,].*; //p" "$file") && [ -n "$numbers" ] || { echo "$crate: no text"; return 1; }
        for number in ${numbers//,/ }; do grep -qx "$number" "$file" || { echo "$crate: text $number is missing"; return 1; }; done
    done
    ! grep -qF -e "${CARGO_HOME:-$HOME/.cargo}/" -e "$PWD/" "$file" || { echo "holds paths of this machine"; return 1; }
    # A cargo that knows one crate, which has no file but its sources.
    mkdir -p "$stage/crate" && printf '#!/bin/sh\n[ "$1" = tree ] && echo "nobody v1.0.0" || sed "s/LICENSE/$LICENSE/" <<END\n%s\nEND\n' \
        "{\"packages\": [{\"name\": \"nobody\", \"version\": \"1.0.0\", \"authors\": [\"A. Body <a@b.c>\"], \"repository\": null, \"license\": \"LICENSE\", \"manifest_path\": \"$stage/crate/Cargo.toml\"}]}" \
        >"$stage/bin-cargo" && chmod +x "$stage/bin-cargo" || return
    LICENSE='MIT' CARGO=$stage/bin-cargo packaging/third-party-licenses.py "$file" && grep -qx 'Copyright (c) A. Body' "$file" &&
        LICENSE='Zlib OR Apache-2.0' CARGO=$stage/bin-cargo packaging/third-party-licenses.py "$file" || return
    for crate in 'GPL-3.0-only' 'MIT AND GPL-3.0-only' '(MIT OR Apache-2.0) AND ISC'; do
        ! LICENSE=$crate CARGO=$stage/bin-cargo packaging/third-party-licenses.py "$file" 2>"$stage/said" || { echo "$crate: was taken"; return 1; }
        grep -qF "nobody 1.0.0: expected the text of its licence among its files, found none of $crate" "$stage/said" || return
    done
}

# Programs must ask for the ABI's own name, so that a library of another ABI is never loaded in its place.
soname() { readelf -d "$prefix/lib/libmetal_candle.so" | grep -F "SONAME" | grep -qF "[$(basename "$prefix"/lib/libmetal_candle.so.[0-9])]"; }

step "FEATURES and LTO" cargo_is_told
step "make install" make_quietly install
if [ "$(uname -s)" = Linux ] && have readelf "SONAME"; then step "SONAME" soname; fi
if [ "$(uname -s)" = Linux ] && have nm "symbols of the archive"; then step "the archive's symbols are the header's" symbols_are_the_headers "$prefix/lib/libmetal_candle.a"; fi
if have pkg-config "build through pkg-config"; then
    step "the archive beside another Rust library" beside_another_rust_library
    step "pkg-config, shared" by_pkg_config_shared
    step "pkg-config, static" by_pkg_config_static
fi
if have cmake "build through CMake"; then
    step "CMake, shared and static" by_cmake
    if have pkg-config "LIBDIR"; then step "LIBDIR" libdir; fi
    step "CMake refuses a newer version" newer_is_refused_by_cmake
    step "CMake, FetchContent" by_fetch_content
fi
if have pkg-config "make dist" && have python3 "make dist"; then step "make dist" dist; fi
if have python3 "THIRD-PARTY-LICENSES"; then step "THIRD-PARTY-LICENSES" third_party; fi
step "make install DESTDIR" staged
if [ "$(uname -s)" = Linux ]; then step "ldconfig" ldconfig_is_run; fi
step "make uninstall" nothing_is_left

end "tests/c/install.sh"
