use super::*;

/// Packages of crates.io with the programs that are built of them.
const PROGRAMS: [(&str, &str); 3] = [
    (test::DENY, "cargo-deny"),
    (HTTPWG, "httpwg"),
    (SENDME, "sendme"),
];

/// An attacker may put one in the registry's place, or into the folder of a mirror.
#[test]
fn a_package_with_other_bytes_is_not_built() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut cx = XtaskContext::in_folder(folder.path());
    for (package, program) in PROGRAMS {
        let pin = sources::accepted(package).expect("pinned").remove(0);
        assert_eq!(pin.cargo, Some(format!("{package}@{}", pin.version)));
        let mirror = folder.path().join("mirror");
        fs::create_dir_all(&mirror).expect("writable");
        fs::write(mirror.join(&pin.file), "another package").expect("writable");
        cx.sources = Some(mirror);
        let error = installed(&cx, package, program).expect_err("it is not the pinned one");
        let said = error.to_string();
        assert!(
            said.contains(&pin.sha256) && said.contains(&pin.file),
            "{said}"
        );
        assert!(!installed_folder(&cx, package, &pin).exists());
    }
}

/// Programs from before packages were pinned, and from other bytes of the same version.
#[test]
fn a_program_that_was_built_of_other_bytes_is_not_used() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut cx = XtaskContext::in_folder(folder.path());
    let mirror = folder.path().join("mirror");
    fs::create_dir_all(&mirror).expect("writable");
    cx.sources = Some(mirror.clone());
    let put = |folder: &Path, program: &str| {
        let place = folder.join("bin").join(program);
        fs::create_dir_all(folder.join("bin")).expect("writable");
        fs::write(&place, "a program").expect("writable");
        place
    };
    for (package, program) in PROGRAMS {
        let pin = sources::accepted(package).expect("pinned").remove(0);
        // A missing package is not fetched.
        fs::write(mirror.join(&pin.file), "another package").expect("writable");
        let named = format!("{package}-{}", pin.version);
        put(&cx.cache().join("tools").join(named), program);
        let mut other = pin.clone();
        other.sha256 = "0".repeat(pin.sha256.len());
        put(&installed_folder(&cx, package, &other), program);
        installed(&cx, package, program).expect_err("neither is of the pinned bytes");
        let own = put(&installed_folder(&cx, package, &pin), program);
        let used = installed(&cx, package, program).expect("it is there");
        assert_eq!(used, own);
    }
}

/// Without it, the build ends with what to do about a compiler whose library is not pinned.
#[test]
fn the_library_for_another_target_is_that_of_the_compiler() {
    let workspace: toml::Table =
        toml::from_str(include_str!("../../../../Cargo.toml")).expect("a manifest");
    let oldest = workspace["workspace"]["package"]["rust-version"]
        .as_str()
        .expect("a version");
    let said = |release: &str| format!("rustc {release}\nbinary: rustc\nrelease: {release}\n");
    for target in [WASM, UEFI] {
        let pinned = library_source(&target, &said(&format!("{oldest}.0")));
        let pinned = pinned.expect("the oldest is pinned");
        assert_eq!(pinned, format!("{}{oldest}.0", target.library));
        let error = library_source(&target, &said("1.0.0")).expect_err("no such release");
        let error = error.to_string();
        assert!(
            error.contains(&format!("{}1.0.0", target.library))
                && error.contains(&format!("rustup target add {}", target.triple)),
            "{error}"
        );
    }
}

#[test]
fn every_python_package_is_pinned() {
    for (packages, files) in PYTHON_LISTS
        .into_iter()
        .zip([36, 34, 22, 48, 35, 14, 2, 14, 5, 3])
    {
        for package in packages
            .lines()
            .filter(|line| !line.starts_with(['#', ' ']))
        {
            assert!(
                package.ends_with(" \\") && package.contains("=="),
                "{package}"
            );
        }
        assert_eq!(packages.matches("sha256:").count(), files);
    }
}
