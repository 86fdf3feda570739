//! What is in the executable, and what is not.

use std::fs;
use std::path::Path;
use std::process::Command;

use alknet_test_support::skip;

use crate::{adapter, command, diagnostics, drivers, gpu, program, rows};

/// Largest executable in bytes, stripped. docs/driver.md promises it.
const BYTES_MAX: u64 = 75_000_000;

fn tool(name: &str, arguments: &[&str], file: &Path) -> String {
    let output = Command::new(name).args(arguments).arg(file).output();
    let output = output.expect("it runs: it comes with the set-up (binutils)");
    assert!(output.status.success(), "{name}: {}", diagnostics(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stripped() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("alknet-gpu");
    let to = file.display().to_string();
    tool("strip", &["--strip-all", "-o", &to], program());
    (folder, file)
}

#[test]
fn nothing_is_loaded_into_it_and_it_is_not_moved() {
    let segments = tool("readelf", &["-lW"], program());
    assert!(segments.contains("EXEC (Executable file)"), "{segments}");
    for unwanted in ["INTERP", "DYNAMIC"] {
        assert!(!segments.contains(unwanted), "{unwanted} in\n{segments}");
    }
    let stack = segments.lines().find(|line| line.contains("GNU_STACK"));
    assert!(
        !stack.expect("a stack segment").contains("RWE"),
        "{segments}"
    );
}

#[test]
fn dynamic_linking_is_ours() {
    if drivers().is_empty() {
        // Only drivers call these functions, so that the linker leaves them out of such a build.
        skip!("Vulkan driver", "this build of the program has none");
    }
    let symbols = tool("nm", &[], program());
    for name in ["dladdr", "dlclose", "dlerror", "dlopen", "dlsym"] {
        // The C library's are weak, and would be marked with a W.
        let strong = format!(" T {name}");
        let found = symbols.lines().any(|line| line.ends_with(&strong));
        assert!(found, "{name} is not the program's own");
    }
}

#[test]
fn names_of_drivers_are_all_that_is_seen_of_them() {
    let symbols = tool("nm", &["--extern-only", "--defined-only"], program());
    for line in symbols.lines() {
        let name = line.rsplit(' ').next().unwrap_or_default();
        let hidden = ["_ZN4llvm", "LLVM", "lvp_", "vk_icd", "v3dv_Create"];
        assert!(
            !hidden.iter().any(|prefix| name.starts_with(prefix)),
            "{name}"
        );
    }
    for driver in drivers() {
        assert!(
            symbols.contains(&format!(" {driver}_icd_functions")),
            "{driver}"
        );
    }
}

#[test]
fn it_stays_within_its_size() {
    let (_folder, file) = stripped();
    let bytes = fs::metadata(file).expect("it was made").len();
    assert!(bytes <= BYTES_MAX, "{bytes} bytes");
}

#[test]
fn the_self_test_passes_in_an_empty_root() {
    if let Err(why) = adapter() {
        skip!("Vulkan adapter", "{why}");
    }
    let (folder, _file) = stripped();
    let output = Command::new("chroot")
        .arg(folder.path())
        .args(["/alknet-gpu", "selftest", "--json"])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .expect("chroot runs: the tests need root for this one");
    assert!(output.status.success(), "{}", diagnostics(&output));
    let report = &rows(&output)[0];
    assert_eq!(report["ok"], true, "{report}");
    assert_eq!(report["adapter"]["driver"], "llvmpipe");
    let checks = report["checks"].as_array().expect("a list");
    assert_eq!(checks.len(), 5);
    assert!(
        checks.iter().all(|check| check["outcome"] == "equal"),
        "{report}"
    );
}

#[test]
fn a_name_that_generated_code_may_not_call_ends_the_process_with_it() {
    let known = gpu(&["resolve", "floor"]);
    assert!(known.status.success(), "{}", diagnostics(&known));
    let unknown = gpu(&["resolve", "no_such_function"]);
    assert_eq!(unknown.status.code(), Some(70));
    let text = diagnostics(&unknown);
    assert!(text.contains("\"no_such_function\""), "{text}");
}

#[test]
fn the_drivers_say_which_they_are() {
    let info = command().arg("info").output().expect("it starts");
    assert!(info.status.success(), "{}", diagnostics(&info));
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).expect("JSON for people");
    if let Err(why) = adapter() {
        skip!("Vulkan adapter", "{why}");
    }
    let adapters = info["adapters"].as_array().expect("a list");
    let processor = adapters.last().expect("the processor is always there");
    assert_eq!(processor["class"], "Cpu", "{info}");
    let versions = processor["versions"].as_str().expect("a text");
    assert!(
        versions.contains("Mesa") && versions.contains("LLVM"),
        "{versions}"
    );
    for driver in drivers().iter().filter(|name| *name != "llvmpipe") {
        let told = adapters.iter().any(|adapter| adapter["driver"] == **driver)
            || info["without_hardware"]
                .to_string()
                .contains(driver.as_str());
        assert!(told, "{driver} is not accounted for: {info}");
    }
}
