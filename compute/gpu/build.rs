//! How the program is linked. The drivers' archives come with `alknet-vulkan`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = std::env::var("TARGET").unwrap_or_default();
    // Mesa's shader cache goes by it: another build's compiled shaders are not for this one.
    println!("cargo::rustc-link-arg-bins=-Wl,--build-id=sha1");
    if target == "x86_64-unknown-linux-gnu" {
        // Not to be moved in memory: the drivers' tables hold addresses by the hundred thousand, which
        // would have to be put right in every process, and pages that are put right are not shared.
        // This takes back what Rust asks for; `startup` says what else it needs.
        println!("cargo::rustc-link-arg-bins=-Wl,--no-pie");
        // Functions that came out the same are kept once. Only LLD can do that, which Rust links with
        // here.
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    }
}
