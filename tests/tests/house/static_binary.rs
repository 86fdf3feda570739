//! The binary is one static executable, which needs no other files.

use std::process::Command;

fn readelf(flag: &str) -> String {
    let binary = alknet_tests::binary();
    let out = Command::new("readelf")
        .args([flag, "-W"])
        .arg(&binary)
        .output();
    let out = out.expect("readelf runs: it comes with the set-up (binutils)");
    assert!(out.status.success(), "readelf {flag} {}", binary.display());
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
fn it_asks_for_no_interpreter_and_no_library() {
    let segments = readelf("-l");
    assert!(segments.contains("LOAD"), "not an executable:\n{segments}");
    assert!(
        !segments.contains("INTERP"),
        "an interpreter is asked for:\n{segments}"
    );
    let dynamic = readelf("-d");
    assert!(
        !dynamic.contains("NEEDED"),
        "a library is needed:\n{dynamic}"
    );
}

/// docs/image.md names this kernel. The C library compares it with that of the machine before it starts the program.
#[test]
fn the_oldest_kernel_on_which_it_starts_is_linux_3_2() {
    let notes = readelf("-n");
    assert!(notes.contains("OS: Linux, ABI: 3.2.0"), "{notes}");
}

#[test]
fn its_stack_is_not_executable_and_its_tables_are_read_only() {
    let segments = readelf("-l");
    let stack = segments
        .lines()
        .find(|l| l.contains("GNU_STACK"))
        .expect("a stack segment");
    assert!(!stack.contains("RWE"), "the stack is executable: {stack}");
    assert!(segments.contains("GNU_RELRO"), "relocations stay writable");
}

#[test]
fn it_runs_in_an_empty_root() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::copy(alknet_tests::binary(), dir.path().join("alknet")).expect("copied");
    let out = Command::new("chroot")
        .arg(dir.path())
        .args(["/alknet", "--version"])
        .output();
    let out = out.expect("chroot runs: the tests need root for this one");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    assert!(String::from_utf8_lossy(&out.stdout).starts_with("alknet "));
}
