use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;

/// Set in the process whose environment is a caller's.
const CALLER: &str = "ALKNET_TEST_CALLER";

/// Variables by which callers have decided what was built under a name that did not have them.
const DECIDING: [&str; 10] = [
    "ARCH",
    "CFLAGS",
    "CPATH",
    "CROSS_COMPILE",
    "HOME",
    "KCFLAGS",
    "LLVM",
    "MAKEFLAGS",
    "TAR_OPTIONS",
    "XZ_OPT",
];

#[test]
fn a_callers_environment_decides_nothing() {
    if env::var_os(CALLER).is_some() {
        let output = program("env").output().expect("every Debian has it");
        let text = String::from_utf8(output.stdout).expect("text");
        let names = text
            .lines()
            .filter_map(|line| Some(line.split_once('=')?.0));
        let expected: BTreeSet<_> = SET
            .iter()
            .map(|(name, _)| *name)
            .chain(LET_THROUGH)
            .collect();
        assert_eq!(names.collect::<BTreeSet<_>>(), expected);
        // Not the program that the caller's path finds first.
        let said = program("gcc")
            .arg("--version")
            .output()
            .expect("the set-up installs it");
        assert!(said.status.success(), "{said:?}");
    } else {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let gcc = folder.path().join("gcc");
        fs::write(&gcc, "#!/bin/sh\nexit 1\n").expect("writable");
        fs::set_permissions(&gcc, fs::Permissions::from_mode(0o755)).expect("ours");
        let mut child = Command::new("/proc/self/exe");
        child
            .args([
                "--exact",
                "steps::tests::a_callers_environment_decides_nothing",
            ])
            .env(CALLER, "1")
            .env("PATH", folder.path())
            .env("TMPDIR", folder.path())
            .envs(DECIDING.map(|name| (name, "1")));
        let child = child.output().expect("this program runs");
        assert!(child.status.success(), "{child:?}");
    }
}

/// Every file with a step is a part of the name of what the step makes, and starts no program in another way.
#[test]
fn another_step_is_another_name() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let read = |file: &str| fs::read_to_string(source.join(file)).expect("it is there");
    // The files with steps, beside where their names are made.
    for (names, steps) in [
        ("kernel/mod.rs", &["kernel/build.rs"][..]),
        (
            "driver/mod.rs",
            &["driver/build.rs", "driver/ninja.rs", "driver/seal.rs"],
        ),
        ("gpu.rs", &["gpu/pack.rs"]),
    ] {
        let names = read(names);
        assert!(
            names.contains("steps.rs\")"),
            "the environment of the programs"
        );
        for file in steps {
            let (_, last) = file.rsplit_once('/').expect("a folder");
            let is_part = names.contains(&format!("include_str!(\"{last}\")"))
                || names.contains(&format!("include_str!(\"{file}\")"));
            assert!(is_part, "{file}");
            let text = read(file);
            assert!(!text.contains("Command::new("), "{file}: `steps::program`");
            // An edit of a test is no other kernel.
            assert!(!text.contains("#[test]"), "{file}: its tests lie elsewhere");
        }
    }
    let files = ["kernel", "driver", "gpu"].map(|folder| source.join(folder));
    let files = files
        .iter()
        .flat_map(|folder| fs::read_dir(folder).expect("a folder"));
    let mut found = 0;
    for file in files.map(|file| file.expect("readable").path()) {
        let name = file
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let starts = fs::read_to_string(&file).is_ok_and(|text| text.contains("program("));
        let known = ["build.rs", "seal.rs", "pack.rs", "mod.rs"].contains(&name.as_str());
        assert!(!starts || known, "{name} has steps: name it above");
        found += usize::from(starts);
    }
    assert!(found >= 4, "{found} files with steps");
}
