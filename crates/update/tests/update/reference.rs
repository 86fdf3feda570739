//! The reference implementation of TUF reads what this program signs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use alknet_test_support::limited;
use alknet_update::{
    DeltaInfo, RootPlan, TrustAnchor, TufRole, UpdateTarget, UpdateTrust, begin_release,
    cosign_bundle, sign_release, sign_root, write_bundle,
};

use crate::support::{LATE, PROGRAM, Publisher, keys, read, signer, target};

/// Python loads its packages in less than a second.
const PYTHON_LIMIT: Duration = Duration::from_secs(60);

/// Where the set-up put the packages.
pub(crate) const PACKAGES_VARIABLE: &str = "ALKNET_TEST_PYTHONPATH";

/// What the set-up put at the place that this variable names.
pub(crate) fn set_up_path(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable).unwrap_or_else(|| {
        panic!("{variable} is not set; run these tests with `cargo xtask test`")
    });
    path.into()
}

/// Runs a script of this folder with the reference implementation, and returns what it printed, or its error.
pub(crate) fn python(script: &str, arguments: &[&Path]) -> Result<String, String> {
    python_with(&[set_up_path(PACKAGES_VARIABLE)], script, arguments)
}

/// Runs a script of this folder with the packages of these folders.
pub(crate) fn python_with(
    packages: &[PathBuf],
    script: &str,
    arguments: &[&Path],
) -> Result<String, String> {
    let packages = std::env::join_paths(packages).expect("no colon in the names of the cache");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/update");
    let mut command = limited(PYTHON_LIMIT, "python3");
    command
        .arg(folder.join(script))
        .args(arguments)
        .env("PYTHONPATH", packages)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let output = command.output().expect("Python is part of every Debian");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    match output.status.success() {
        true => Ok(text(output.stdout)),
        false => Err(text(output.stderr)),
    }
}

/// What the reference client says of a bundle that tar has unpacked, beginning with this root.
fn accepted(bundle: &[u8], root: &[u8]) -> Result<String, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    fs::write(path("bundle.tar"), bundle).expect("written");
    fs::write(path("trusted.json"), root).expect("written");
    let unpacked = Command::new("tar")
        .args(["--extract", "--file"])
        .arg(path("bundle.tar"))
        .arg("--directory")
        .arg(folder.path())
        .output()
        .expect("tar is part of every Debian");
    assert!(unpacked.status.success(), "{unpacked:?}");
    let target = Path::new("alknet.efi");
    python("accept.py", &[folder.path(), &path("trusted.json"), target])
}

#[test]
fn the_reference_client_accepts_a_bundle() {
    let publisher = Publisher::new(1);
    let printed = accepted(&publisher.bundle(1, "1.1.0"), publisher.root());
    assert_eq!(printed, Ok(format!("alknet.efi 1.1.0 {}\n", PROGRAM.len())));
}

/// As a client that knows no deltas does.
#[test]
fn the_reference_client_accepts_a_bundle_with_a_delta() {
    let publisher = Publisher::new(1);
    let info = DeltaInfo {
        target: "alknet.efi".to_owned(),
        base: "ab".repeat(32),
        library: 10_507,
        blocks: Vec::new(),
    };
    let delta = UpdateTarget::describe_delta("alknet.delta", info, &mut &*PROGRAM);
    let plan = Publisher::plan(1, vec![target("1.1.0"), delta.expect("a delta")]);
    let printed = accepted(&publisher.bundle_of(&plan), publisher.root());
    assert_eq!(printed, Ok(format!("alknet.efi 1.1.0 {}\n", PROGRAM.len())));
}

/// The root was replaced twice: by a new key, and by two keys that both have to sign, beside one for the online roles.
#[test]
fn the_reference_client_follows_new_roots() {
    let [old, new, other, online] = [1, 2, 3, 4].map(signer);
    let first = Publisher::new(1).roots.remove(0);
    let plan = RootPlan::with_keys(2, LATE, &keys(&[&new], 1));
    let second = sign_root(&plan, Some(&first), &[&old, &new]).expect("both sign");
    let mut plan = RootPlan::with_keys(3, LATE, &keys(&[&new, &other], 2));
    for role in [TufRole::Timestamp, TufRole::Snapshot] {
        plan.roles.insert(role, keys(&[&online], 1));
    }
    let third = sign_root(&plan, Some(&second), &[&new, &other]).expect("both sign");
    let plan = Publisher::plan(1, vec![target("1.1.0")]);
    let release = sign_release(&third, &plan, &[&new, &other, &online]).expect("all sign");
    let mut bundle = Vec::new();
    let open = |_: &UpdateTarget| Ok(PROGRAM);
    let roots = [first.clone(), second, third];
    write_bundle(&mut bundle, &roots, &release, &plan.targets, open).expect("written");
    assert_eq!(
        accepted(&bundle, &first),
        Ok(format!("alknet.efi 1.1.0 {}\n", PROGRAM.len()))
    );
    let anchor = TrustAnchor::root(&first).expect("a root");
    let (_, verified) = read(UpdateTrust::new(anchor), &bundle);
    assert_eq!(verified.expect("a good bundle").version(), 1);
}

/// The documents of such a bundle name versions of each other, and no hashes.
#[test]
fn the_reference_client_accepts_a_bundle_once_the_second_key_has_signed() {
    let [one, two] = [1, 2].map(signer);
    let plan = RootPlan::with_keys(1, LATE, &keys(&[&one, &two], 2));
    let root = sign_root(&plan, None, &[&one, &two]).expect("both sign");
    let plan = Publisher::plan(1, vec![target("1.1.0")]);
    let (release, _) = begin_release(&root, &plan, &[&one]).expect("a named key");
    let mut bundle = Vec::new();
    let open = |_: &UpdateTarget| Ok(PROGRAM);
    let roots = [root.clone()];
    write_bundle(&mut bundle, &roots, &release, &plan.targets, open).expect("written");
    let refused = accepted(&bundle, &root).expect_err("one key is missing");
    assert!(refused.contains("UnsignedMetadataError"), "{refused}");
    let whole = cosign_bundle(&bundle, &[], &root, &[&two]).expect("the other key");
    assert_eq!(
        accepted(&whole.bundle, &root),
        Ok(format!("alknet.efi 1.1.0 {}\n", PROGRAM.len()))
    );
}

/// Otherwise the tests above would say nothing.
#[test]
fn the_reference_client_refuses_other_keys() {
    let publisher = Publisher::new(1);
    let bundle = publisher.bundle(1, "1.1.0");
    // The same version of a root, by another key: the timestamp's key is not in it.
    let refused = accepted(&bundle, Publisher::new(2).root()).expect_err("other keys");
    assert!(refused.contains("UnsignedMetadataError"), "{refused}");
}
