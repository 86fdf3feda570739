//! How the program is linked. The drivers' archives come with `alknet-vulkan`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = std::env::var("TARGET").unwrap_or_default();
    // Not to be moved in memory: the drivers' tables hold 100,000 addresses that would have to be put
    // right in every process, and pages that are put right are pages that are not shared.
    println!("cargo::rustc-link-arg-bins=-no-pie");
    println!("cargo::rustc-link-arg-bins=-static");
    // Mesa's shader cache goes by it: another build's compiled shaders are not for this one.
    println!("cargo::rustc-link-arg-bins=-Wl,--build-id=sha1");
    // Functions that came out the same are kept once. Only LLD can do that, which Rust links with here.
    if target == "x86_64-unknown-linux-gnu" {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    }
}
