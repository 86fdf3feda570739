//! Links the Vulkan drivers, and finds their archives.
//!
//! `cargo xtask` writes `linked-drivers` beside this file (docs/driver.md): one line `NAME=FOLDER` for each driver.
//! Without the file, or with an empty one, no driver is linked and the crate reports that at run time.
//! `ALKNET_VULKAN_DRIVERS` holds the same lines, separated by commas, and overrides the file, for a build without
//! `cargo xtask`.

use std::path::Path;
use std::{env, fs};

/// The variable that overrides the file.
const VARIABLE: &str = "ALKNET_VULKAN_DRIVERS";

/// The file that `cargo xtask` writes.
const FILE: &str = "linked-drivers";

/// Every driver that the source knows; docs/driver.md describes how to add one.
const KNOWN: [&str; 3] = ["llvmpipe", "panvk", "v3dv"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={FILE}");
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    for name in KNOWN {
        println!("cargo::rustc-check-cfg=cfg(vulkan_{name})");
    }
    let text = env::var(VARIABLE)
        .or_else(|_| fs::read_to_string(FILE))
        .unwrap_or_default();
    // `none` is a line of its own, so that the variable can override the file with no driver.
    let mut any = false;
    for line in text.split(['\n', ',']).map(str::trim) {
        if line.is_empty() || line == "none" || line.starts_with('#') {
            continue;
        }
        any |= link(line);
    }
    if any {
        // The mathematics of the C library is the one dependency that neither the archives nor Rust bring.
        println!("cargo::rustc-link-lib=static:-bundle=m");
    }
}

/// Links the driver of one line; returns whether its archive exists.
fn link(line: &str) -> bool {
    let Some((name, folder)) = line.split_once('=') else {
        panic!("linked-drivers: \"{line}\" is not NAME=FOLDER");
    };
    assert!(
        KNOWN.contains(&name),
        "linked-drivers: no driver \"{name}\", only {}",
        KNOWN.join(", ")
    );
    let archive = Path::new(folder).join(format!("libvulkan_{name}.a"));
    println!("cargo::rerun-if-changed={}", archive.display());
    if !archive.exists() {
        // A user may delete the cache at any time; the next `cargo xtask` builds the driver again.
        println!(
            "cargo::warning={} is gone: built without the Vulkan driver {name}; `cargo xtask driver` \
             brings it back",
            archive.display()
        );
        return false;
    }
    println!("cargo::rustc-link-search=native={folder}");
    // With bundling, the archive would be copied into the library and take 120 MB twice.
    println!("cargo::rustc-link-lib=static:-bundle=vulkan_{name}");
    println!("cargo::rustc-cfg=vulkan_{name}");
    true
}
