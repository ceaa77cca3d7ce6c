//! Names the shared library by its binary interface: `libmetal_candle.so.2` holds what `MC_ABI_VERSION 2` describes.
//!
//! What it exports needs no script here: rustc hands the linker a list of the `no_mangle` functions, and `tests/abi.rs`
//! compares the result with `abi/symbols.txt`. That list has the functions of dependencies too, and llguidance has a C interface
//! of its own (`llg_*`): on ELF those stay inside. Apple's linker knows a list of what to export or one of what not to, and rustc
//! gives it the first; there nothing binds to them by accident, as a program looks a symbol up in the library that it was linked
//! with.
//!
//! `cfg(reference_data)` says whether models and references are there: the repository has them, a package does not.

use std::path::Path;
use std::{env, fs};

fn main() {
    println!("cargo:rustc-check-cfg=cfg(reference_data)");
    if Path::new("tests/golden").is_dir() && Path::new("models/tiny-coder").is_dir() {
        println!("cargo:rustc-cfg=reference_data");
    }
    let source = "src/ffi/library.rs";
    println!("cargo:rerun-if-changed={source}");
    println!("cargo:rerun-if-changed=build.rs");
    let text = fs::read_to_string(source).expect("src/ffi/library.rs is part of the package");
    let abi = text
        .lines()
        .find_map(|line| line.strip_prefix("pub const MC_ABI_VERSION: u32 = ")?.strip_suffix(';'))
        .expect("src/ffi/library.rs defines MC_ABI_VERSION");
    match env::var("CARGO_CFG_TARGET_OS").as_deref() {
        Ok("macos" | "ios" | "tvos" | "watchos" | "visionos") => {
            println!("cargo:rustc-cdylib-link-arg=-Wl,-install_name,@rpath/libmetal_candle.{abi}.dylib");
            println!("cargo:rustc-cdylib-link-arg=-Wl,-compatibility_version,{abi}");
        }
        Ok("linux" | "android" | "freebsd") => {
            println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libmetal_candle.so.{abi}");
            // Our own functions come as objects, those of dependencies in archives.
            println!("cargo:rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
            // Threads of the library outlive a dlclose(), and so must its code.
            println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
        }
        _ => {}
    }
}
