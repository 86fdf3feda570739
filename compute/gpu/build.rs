//! Linker options of the program. The drivers' archives come with `alknet-vulkan`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = std::env::var("TARGET").unwrap_or_default();
    // Mesa's shader cache is keyed by the build id, so that another build's compiled shaders are not used.
    println!("cargo::rustc-link-arg-bins=-Wl,--build-id=sha1");
    if target == "x86_64-unknown-linux-gnu" {
        // The program is not relocatable: the drivers' tables hold hundreds of thousands of addresses, which the
        // start code of every process would have to relocate, and relocated pages are not shared between processes.
        // This overrides Rust's default; `startup` describes the other part of the change.
        println!("cargo::rustc-link-arg-bins=-Wl,--no-pie");
        // Identical functions are kept once. Only LLD can do that, which Rust links with on this target.
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    }
}
