//! What the shared library exports is `abi/symbols.txt`, and its name carries the binary interface's version.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use metal_candle::ffi::library::{MC_ABI_VERSION, mc_abi_version};

#[test]
fn exports_are_the_committed_list() {
    let listed: Vec<&str> = include_str!("../abi/symbols.txt").lines().collect();
    assert!(listed.is_sorted(), "abi/symbols.txt is not sorted");
    let Some(output) = tool("nm", if cfg!(target_vendor = "apple") { &["-gU"] } else { &["-D", "--defined-only"] }) else {
        return;
    };
    let mut exported: Vec<&str> = output.lines().filter_map(|line| line.split_whitespace().last()).collect();
    if cfg!(target_vendor = "apple") {
        exported = exported.into_iter().map(|symbol| symbol.strip_prefix('_').unwrap_or(symbol)).collect();
        // See build.rs: there these cannot be kept inside.
        exported.retain(|symbol| !symbol.starts_with("llg_"));
    }
    exported.sort_unstable();
    assert_eq!(exported, listed);
}

#[test]
fn library_is_named_by_its_abi_version() {
    assert_eq!(mc_abi_version(), MC_ABI_VERSION);
    if cfg!(target_os = "linux") {
        let Some(output) = tool("readelf", &["-d"]) else { return };
        assert!(output.contains(&format!("[libmetal_candle.so.{MC_ABI_VERSION}]")), "{output}");
    }
}

/// Threads of the library outlive a `dlclose()`; tests/c/unload shows that they may.
#[test]
fn library_stays_where_it_was_loaded() {
    if cfg!(target_os = "linux") {
        let Some(output) = tool("readelf", &["-d"]) else { return };
        assert!(output.contains("NODELETE"), "{output}");
    }
}

/// The output of a tool on the shared library; `None` if the machine lacks the tool.
fn tool(name: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(name).args(arguments).arg(library()).output().ok()?;
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

/// Built together with this test: cargo puts both into the same folder.
fn library() -> PathBuf {
    let test = env::current_exe().unwrap();
    let name = format!("{}metal_candle{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
    let found = test.ancestors().skip(1).map(|folder| folder.join(&name)).find(|path| Path::exists(path));
    found.expect("cargo built the shared library")
}
