//! The program as cargo starts it: as the compiler's front, under its other name, and as `cargo
//! xtask`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

#[test]
fn the_front_starts_the_compiler_with_every_variable() {
    let cache = tempfile::tempdir().expect("a folder of this test's own");
    let front = xtask::rustc::path(cache.path());
    fs::create_dir_all(front.parent().expect("it lies in a folder")).expect("writable");
    symlink(env!("CARGO_BIN_EXE_xtask"), &front).expect("writable");
    let output = Command::new(&front)
        .args(["env", "LAST=argument"])
        .env("CARGO_BIN_EXE_with-a-dash", "kept")
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("CARGO_BIN_EXE_with-a-dash=kept"), "{text}");
    assert!(text.contains("LAST=argument"), "{text}");
    let output = Command::new(&front)
        .arg("/nonexistent/rustc")
        .output()
        .expect("it starts");
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("cannot start /nonexistent/rustc"), "{text}");
}

/// `cargo xtask cargo ARGUMENTS` in a clone of one file, with a shell script as cargo.
fn xtask_cargo(base: &Path, script: &str, arguments: &[&str]) -> Output {
    let cargo = base.join("cargo");
    fs::write(&cargo, format!("#!/bin/sh\n{script}\n")).expect("ours");
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).expect("ours");
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("cargo")
        .args(arguments)
        .env("CARGO", cargo)
        .env("CARGO_MANIFEST_DIR", base.join("clone/crates/xtask"))
        .env("ALKNET_CACHE", base.join("cache"))
        .output()
        .expect("it starts")
}

/// The test starts a program from there, so no other user may have made the folder.
fn clone_of_one_file() -> TempDir {
    let base = tempfile::tempdir().expect("a folder of this test's own");
    let folder = base.path().join("clone/crates/xtask");
    fs::create_dir_all(folder).expect("ours");
    fs::write(base.path().join("clone/lib.rs"), "fn a( ){}").expect("ours");
    base
}

#[test]
fn what_cargo_fmt_changed_is_in_the_clone() {
    let base = clone_of_one_file();
    let base = base.path();
    let output = xtask_cargo(base, "echo 'fn a() {}' > lib.rs; exit 7", &["fmt"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(
        said.contains("cargo changed in this clone: lib.rs"),
        "{said}"
    );
    let content = fs::read_to_string(base.join("clone/lib.rs"));
    assert_eq!(content.expect("it is there"), "fn a() {}\n");
}

#[test]
fn cargo_clean_is_refused() {
    let base = clone_of_one_file();
    let base = base.path();
    let output = xtask_cargo(base, "echo started > ../started", &["clean"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("cargo xtask cache --prune"), "{said}");
    assert!(!base.join("cache/started").exists());
}

#[test]
fn a_file_that_is_too_large_is_named() {
    let base = clone_of_one_file();
    let base = base.path();
    let disk = fs::File::create(base.join("clone/disk.raw")).expect("ours");
    disk.set_len(4 << 30).expect("a file may have holes");
    let output = xtask_cargo(base, "exit 0", &["check"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("not built with: disk.raw"), "{said}");
}

/// Writes a setting into `folder` that makes cargo start a program instead of every compiler.
/// Returns the file that shows whether the program ran.
fn plant(folder: &Path) -> PathBuf {
    let [program, mark] = ["wrapper", "it-ran"].map(|name| folder.join(name));
    let script = format!("#!/bin/sh\ntouch {}\nexec \"$@\"\n", mark.display());
    fs::write(&program, script).expect("ours");
    fs::create_dir(folder.join(".cargo")).expect("ours");
    let setting = format!(
        "[build]\nrustc-wrapper = {:?}\n",
        program.display().to_string()
    );
    fs::write(folder.join(".cargo/config.toml"), setting).expect("ours");
    for path in ["wrapper", ".cargo", ".cargo/config.toml"] {
        let permissions = fs::Permissions::from_mode(0o755);
        fs::set_permissions(folder.join(path), permissions).expect("ours");
    }
    mark
}

/// The real cargo, which reads settings in every folder above its working folder.
#[test]
fn no_program_runs_that_another_user_names_in_a_folder_above_the_cache() {
    let base = clone_of_one_file();
    let base = base.path();
    let manifest = "[package]\nname = \"made\"\n[lib]\npath = \"lib.rs\"\n[workspace]\n";
    fs::write(base.join("clone/Cargo.toml"), manifest).expect("ours");
    fs::write(base.join("clone/lib.rs"), "").expect("ours");
    let open = base.join("open");
    fs::create_dir(&open).expect("ours");
    let mark = plant(&open);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let check = |cache: &Path| {
        Command::new(env!("CARGO_BIN_EXE_xtask"))
            .args(["cargo", "check", "--offline"])
            .env("CARGO", &cargo)
            .env("CARGO_MANIFEST_DIR", base.join("clone/crates/xtask"))
            .env("ALKNET_CACHE", cache)
            .env_remove("RUSTC_WRAPPER")
            .env_remove("CARGO_BUILD_RUSTC_WRAPPER")
            .output()
            .expect("it starts")
    };
    // The folder is still private: the setting is this user's, and cargo follows it.
    fs::set_permissions(&open, fs::Permissions::from_mode(0o700)).expect("ours");
    let output = check(&open.join("private"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && mark.exists(), "{said}");
    fs::remove_file(&mark).expect("it is there");
    // Like the folder of temporary files.
    fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).expect("ours");
    symlink(&open, base.join("link")).expect("ours");
    for cache in [
        open.join("cache"),
        base.join("link/cache"),
        open.join("private"),
    ] {
        let output = check(&cache);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !mark.exists(),
            "{}: a program of others ran: {said}",
            cache.display()
        );
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("can be written by all users"), "{said}");
    }
}
