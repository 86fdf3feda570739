//! The binary is one static executable, which needs no other files, and no built program names a folder of its build.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use alknet_embedded_exe::EmbeddedExe;
use alknet_tests::tools::variable;
use memchr::memmem;

/// Folders of the cache in which something is compiled: the copy of the workspace, cargo's target folder, and those of
/// the Vulkan drivers, whose names begin so.
const BUILD_FOLDERS: [&str; 3] = ["workspace", "target", "vulkan"];

/// Endings of files that C compilers read.
const C_ENDINGS: [&str; 7] = [".c", ".cc", ".cpp", ".h", ".hpp", ".inc", ".S"];

/// Longest path of Linux in bytes.
const PATH_MAX: usize = 4096;

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
    fs::copy(alknet_tests::binary(), dir.path().join("alknet")).expect("copied");
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

/// Every program that an image has, with its name.
fn built_programs() -> [(&'static str, Vec<u8>); 3] {
    let read = |path: PathBuf| fs::read(path).expect("a readable program");
    let whole = File::open(alknet_tests::binary()).expect("a readable program");
    let carried = EmbeddedExe::find(&whole).expect("the binary carries the program for GPUs");
    let mut gpu = Vec::new();
    carried.unpack(&whole, &mut gpu).expect("it is whole");
    [
        ("alknet", read(alknet_tests::binary())),
        ("alknet-gpu", gpu),
        (
            "alknet-loader.efi",
            read(variable("ALKNET_TEST_LOADER").into()),
        ),
    ]
}

/// The texts of a program that begin with `folder`, each to the end of a C string or of the longest path.
fn texts_with(program: &[u8], folder: &Path) -> Vec<String> {
    let folder = folder.to_string_lossy().into_owned();
    let found = memmem::find_iter(program, &folder);
    let texts = found.map(|at| {
        let rest = program[at..].iter().take(PATH_MAX);
        let text: Vec<u8> = rest.copied().take_while(|byte| *byte != 0).collect();
        String::from_utf8_lossy(&text).into_owned()
    });
    texts.collect()
}

/// Paths below `folder` of files of C. The texts of Rust have no end, so that a path of Rust may stand before another
/// text.
fn c_files(program: &[u8], folder: &Path) -> Vec<String> {
    let mut texts = texts_with(program, folder);
    texts.retain(|text| {
        let is_c = C_ENDINGS.iter().any(|end| text.ends_with(end));
        is_c && !text.contains(".rs")
    });
    texts
}

/// A program that names its folders has other bytes after a build elsewhere, and shows how its builder's machine is
/// arranged. The paths of Rust's files in cargo's registry, which texts of panics have, are not among them.
#[test]
fn no_built_program_names_its_build_folder() {
    let cache = PathBuf::from(variable("ALKNET_CACHE"));
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(std::env::home_dir()?.join(".cargo")));
    let registry = home.expect("cargo has a folder").join("registry");
    for (name, program) in built_programs() {
        for folder in BUILD_FOLDERS {
            let texts = texts_with(&program, &cache.join(folder));
            assert_eq!(texts, [""; 0], "{name}");
        }
        assert_eq!(c_files(&program, &registry), [""; 0], "{name}");
    }
}

#[test]
fn names_of_folders_are_found_and_those_of_rust_in_the_registry_are_not() {
    let program = b"\x7fELF /c/target/build/q-1/out/q.c\0/h/registry/src/i/a-1/b.h\0\
                    /h/registry/src/i/d-1/src/lib.rsassertion failed: a.c\0/h/registry/src/i/f.c";
    let found = texts_with(program, Path::new("/c/target"));
    assert_eq!(found, ["/c/target/build/q-1/out/q.c"]);
    assert!(texts_with(program, Path::new("/c/workspace")).is_empty());
    let expected = ["/h/registry/src/i/a-1/b.h", "/h/registry/src/i/f.c"];
    assert_eq!(c_files(program, Path::new("/h/registry")), expected);
}
