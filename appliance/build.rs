//! How the program is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Addresses to be put right at start take 24 bytes each in the old table, one bit in this one: a
    // megabyte less, and less to do in every process. The C library reads it since glibc 2.36.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    // Functions that came out the same, most of them copies that several libraries made of one
    // generic function, are kept once. Only LLD can do that, which Rust links with on this target.
    let target = std::env::var("TARGET").unwrap_or_default();
    if target == "x86_64-unknown-linux-gnu" {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    }
}
