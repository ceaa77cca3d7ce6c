#!/usr/bin/env bash
# Makes an XCFramework of static libraries: swift/scripts/assemble-xcframework.sh OUT TARGET ARCHIVE [TARGET ARCHIVE …]
#
# Targets of one platform become one library, as Xcode wants them where it builds for both processors.
#
# An app may hold a second Rust library, so only the functions of abi/symbols.txt keep their names. On a Mac all others become
# local. Linux has no linker that joins Apple's objects: there what one object calls in another gets a name that begins with
# mc_ as well. Debug information goes.
set -euo pipefail
cd "$(dirname "$0")/../.."

fail() {
    echo "assemble-xcframework: $*" >&2
    exit 1
}

out=$1
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed 's/^/_/' abi/symbols.txt | sort >"$work/functions"

on_a_mac() { [ "$(uname -s)" = Darwin ]; }

defined() { # archive: the names that others can link to
    local nm=llvm-nm-22
    ! on_a_mac || nm='xcrun nm'
    $nm --extern-only --defined-only --format=just-symbols "$1" | grep '^_' | sort -u
}

only_functions() { # archive, result, architecture, platform as Apple's linker calls it, its oldest version
    if on_a_mac; then
        xcrun ld -r -arch "$3" -platform_version "$4" "$5" "$5" -all_load "$1" -exported_symbols_list "$work/functions" -o "$work/joined.o"
        xcrun strip -S "$work/joined.o"
        xcrun libtool -static -o "$2" "$work/joined.o"
    else
        # With its bitcode an object shows the names that are in there.
        llvm-objcopy-22 --strip-debug --remove-section=__LLVM,__bitcode --remove-section=__LLVM,__cmdline "$1" "$work/plain.a"
        defined "$work/plain.a" | sed -n '/^_mc_/!s/.*/& _mc_own&/p' >"$work/names"
        llvm-objcopy-22 --redefine-syms="$work/names" "$work/plain.a" "$2"
    fi
    defined "$2" >"$work/defined"
    ! grep -v '^_mc_' "$work/defined" >&2 || fail "$1: these names are global"
    [ -z "$(comm -23 "$work/functions" "$work/defined")" ] || fail "$1: lacks" $(comm -23 "$work/functions" "$work/defined")
}

# platform in the list, its variant, platform of the linker, oldest version, architecture
platform_of() { # target
    case $1 in
    aarch64-apple-darwin) echo macos - macos 15.0 arm64 ;;
    x86_64-apple-darwin) echo macos - macos 15.0 x86_64 ;;
    aarch64-apple-ios) echo ios - ios 18.0 arm64 ;;
    aarch64-apple-ios-sim) echo ios simulator ios-simulator 18.0 arm64 ;;
    x86_64-apple-ios) echo ios simulator ios-simulator 18.0 x86_64 ;;
    *) fail "$1: expected {aarch64,x86_64}-apple-darwin, {aarch64,x86_64}-apple-ios or aarch64-apple-ios-sim" ;;
    esac
}

library() { # platform, variant, architectures in the order of the alphabet: one folder, and its entry in the list
    local system=$1 variant=${2#-} folder architectures lipo=llvm-lipo-22
    shift 2
    architectures=$*
    folder=$system-${architectures// /_}${variant:+-$variant}
    # In a folder of the module's name: of two XCFrameworks with a module map further up an app can only hold one.
    local headers=$out/$folder/Headers/metal_candle
    mkdir -p "$headers"
    cp include/metal_candle.h "$headers/"
    {
        echo 'module metal_candle {'
        echo '    header "metal_candle.h"'
        sed -n 's/^framework \(.*\)/    link framework "\1"/p; s/^library \(.*\)/    link "\1"/p' swift/scripts/system.txt
        echo '    export *'
        echo '}'
    } >"$headers/module.modulemap"
    ! on_a_mac || lipo='xcrun lipo'
    if [ $# = 1 ]; then
        mv "$work/$system-$variant-$1.a" "$out/$folder/libmetal_candle.a"
    else
        # shellcheck disable=SC2046,SC2086
        $lipo -create $(printf "$work/$system-$variant-%s.a " $architectures) -output "$out/$folder/libmetal_candle.a"
    fi
    echo "$folder: $(($(wc -c <"$out/$folder/libmetal_candle.a") / 1024)) KiB" >&2
    cat <<END
        <dict>
            <key>BinaryPath</key><string>libmetal_candle.a</string>
            <key>HeadersPath</key><string>Headers</string>
            <key>LibraryIdentifier</key><string>$folder</string>
            <key>LibraryPath</key><string>libmetal_candle.a</string>
            <key>SupportedArchitectures</key><array>$(printf '<string>%s</string>' $architectures)</array>
            <key>SupportedPlatform</key><string>$system</string>${variant:+
            <key>SupportedPlatformVariant</key><string>$variant</string>}
        </dict>
END
}

rm -rf "$out"
mkdir -p "$out"
while [ $# -gt 0 ]; do
    platform=$(platform_of "$1")
    read -r system variant linker version architecture <<<"$platform"
    only_functions "$2" "$work/$system-${variant#-}-$architecture.a" "$architecture" "$linker" "$version"
    echo "$system $variant $architecture" >>"$work/platforms"
    shift 2
done
sort -u "$work/platforms" | awk '{platform = $1 " " $2; list[platform] = list[platform] " " $3} END {for (platform in list) print platform list[platform]}' |
    sort | while read -r platform; do
        # shellcheck disable=SC2086
        library $platform
    done >"$work/libraries"
cat - "$work/libraries" >"$out/Info.plist" <<'END'
<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
    <key>AvailableLibraries</key>
    <array>
END
cat >>"$out/Info.plist" <<'END'
    </array>
    <key>CFBundlePackageType</key><string>XFWK</string>
    <key>XCFrameworkFormatVersion</key><string>1.0</string>
</dict>
</plist>
END
cp swift/Sources/MetalCandle/PrivacyInfo.xcprivacy LICENSE "$out/"
