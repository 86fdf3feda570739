//! How the program is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The old relocation table takes 24 bytes for each address that the loader corrects at start,
    // and this one takes one bit: the program is a megabyte smaller, and every process starts with
    // less work. The C library reads this table since glibc 2.36.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    // The linker keeps functions with identical code once. Most of them are copies that several
    // libraries made of one generic function. Only LLD can do that, which is Rust's linker on this
    // target.
    let target = std::env::var("TARGET").unwrap_or_default();
    if target == "x86_64-unknown-linux-gnu" {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    }
}
