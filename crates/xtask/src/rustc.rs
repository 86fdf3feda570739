//! The compiler's front: what cargo starts in rustc's place for the packages of the workspace.
//!
//! Test programs, and programs that only tests start, are compiled by clippy's driver: the lints come
//! with the compilation that the tests need anyway. They are not shipped, so they are optimised little,
//! which is quicker in sum. Examples are linted too, and optimised as cargo asks: tests boot machines
//! that run them. Everything else is compiled as cargo asks.
//!
//! It is this package's own program under another name, and not a script: a shell drops variables whose
//! names it cannot have, such as `CARGO_BIN_EXE_alknet-gpu`.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the program is called when it is the front. Cargo knows it by its path only, so that the path
/// changes with this text.
const NAME: &str = "rustc-for-";

/// The driver that lints and compiles.
const LINTING: &str = "clippy-driver";

/// Binaries that tests start and no image contains, besides those of the fuzzer.
const FOR_TESTS: [&str; 3] = [
    "alknet_sessions_probe",
    "alknet_vault_tool",
    "alknet_worker_probe",
];

/// Test programs that compute so much that they are optimised as cargo asks: the generic code of ciphers,
/// and of readers of JSON and YAML, is compiled where it is used.
const COMPUTING: [&str; 11] = [
    "alknet_init",
    "alknet_sealed",
    "alknet_store",
    "alknet_tpm",
    "alknet_typedef",
    "alknet_vault",
    "corpus",
    "image",
    "openapi",
    "typedef",
    "write",
];

/// Where the front lies in the cache. Cargo compiles again what was compiled through another front.
#[must_use]
pub fn path(cache: &Path) -> PathBuf {
    let hash = fnv1a(include_bytes!("rustc.rs"));
    cache.join("bin").join(format!("{NAME}{hash:016x}"))
}

/// Becomes the compiler when this process was started as the front; returns when it was not. The text is
/// why the compiler could not be started.
#[must_use]
pub fn stand_in() -> Option<String> {
    let arguments: Vec<OsString> = env::args_os().collect();
    let name = Path::new(arguments.first()?).file_name()?.to_str()?;
    if !name.starts_with(NAME) {
        return None;
    }
    let (rustc, rest) = arguments.get(1..)?.split_first()?;
    let mut command = compiler(rustc, rest);
    let error = command.exec();
    Some(format!(
        "cannot start {}: {error}",
        command.get_program().display()
    ))
}

/// The compiler that gets `arguments`: rustc, or clippy's driver in its place.
fn compiler(rustc: &OsStr, arguments: &[OsString]) -> Command {
    let for_tests = is_for_tests(arguments);
    if !for_tests && !is_example(arguments) {
        let mut command = Command::new(rustc);
        command.args(arguments);
        return command;
    }
    let mut command = Command::new(LINTING);
    // It takes the compiler's place when its first argument is the compiler's path.
    command.arg(rustc).args(arguments);
    if for_tests && !COMPUTING.contains(&crate_name(arguments)) {
        command.arg("-Copt-level=0");
    }
    command
}

/// Whether nothing of what is compiled gets into an image.
fn is_for_tests(arguments: &[OsString]) -> bool {
    let name = crate_name(arguments);
    arguments
        .iter()
        .any(|argument| argument == OsStr::new("--test"))
        || name == "build_script_build"
        || name.starts_with("fuzz_")
        || FOR_TESTS.contains(&name)
}

/// Whether what is compiled lies in a package's `examples`.
fn is_example(arguments: &[OsString]) -> bool {
    let mut paths = arguments.iter().map(Path::new);
    // Among the arguments of rustc this is the only path with such an ending.
    let source = paths.find(|path| path.extension() == Some(OsStr::new("rs")));
    source.is_some_and(|path| path.iter().any(|part| part == "examples"))
}

/// The name of the crate that is compiled; empty where cargo asks the compiler something else.
fn crate_name(arguments: &[OsString]) -> &str {
    let mut pairs = arguments.iter().zip(arguments.iter().skip(1));
    let named = pairs.find(|(option, _)| *option == "--crate-name");
    named
        .and_then(|(_, name)| name.to_str())
        .unwrap_or_default()
}

/// FNV-1a, 64 bits: names a text; nothing rests on it but a path.
fn fnv1a(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn for_tests(arguments: &str) -> bool {
        let arguments: Vec<OsString> = arguments.split(' ').map(OsString::from).collect();
        is_for_tests(&arguments)
    }

    #[test]
    fn what_is_shipped_is_compiled_by_rustc() {
        assert!(!for_tests(
            "--crate-name alknet --crate-type bin -C opt-level=s"
        ));
        assert!(!for_tests(
            "--crate-name alknet_core --edition=2024 src/lib.rs"
        ));
        // Cargo's first questions.
        assert!(!for_tests("- --crate-name ___ --print=file-names"));
        assert!(!for_tests("-vV"));
    }

    #[test]
    fn what_only_tests_start_is_linted() {
        assert!(for_tests("--crate-name alknet_core --test src/lib.rs"));
        assert!(for_tests("--crate-name build_script_build build.rs"));
        assert!(for_tests("--crate-name fuzz_frame targets/frame.rs"));
        assert!(for_tests("--crate-name alknet_worker_probe"));
    }

    /// The compiler of these arguments, and whether it optimises as cargo asks.
    fn compiled_by(arguments: &str) -> (String, bool) {
        let arguments: Vec<OsString> = arguments.split(' ').map(OsString::from).collect();
        let command = compiler(OsStr::new("rustc"), &arguments);
        let lowered = command
            .get_args()
            .any(|argument| argument == "-Copt-level=0");
        (
            command.get_program().to_string_lossy().into_owned(),
            !lowered,
        )
    }

    #[test]
    fn an_example_is_linted_and_optimised_as_cargo_asks() {
        let linting = |optimised| (LINTING.to_owned(), optimised);
        for path in [
            "init/examples/machine.rs",
            "/x/init/tpm/examples/predict/main.rs",
        ] {
            let line = format!("--crate-name machine --edition=2024 {path} -C opt-level=2");
            assert_eq!(compiled_by(&line), linting(true));
        }
        let tests = "--crate-name machine --test init/examples/machine.rs";
        assert_eq!(compiled_by(tests), linting(false));
        let tests = "--crate-name alknet_tpm --test init/tpm/src/lib.rs";
        assert_eq!(compiled_by(tests), linting(true));
        let library = "--crate-name examples crates/core/src/lib.rs --out-dir /x/examples";
        assert_eq!(compiled_by(library), ("rustc".to_owned(), true));
    }
}
