//! What `alknet image cosign` tells the person who signs.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::time::Duration;

use alknet_image::{ImageForm, OutputRole};
use alknet_test_support::limited;
use alknet_tests::{BuiltImageFolder, binary, run_with_input};
use data_encoding::HEXLOWER;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use sha2::{Digest, Sha256};

use crate::bundle_verbs::{BuildMachine, EXPIRES, text};

/// Exit codes of docs/command-line.md.
const FAILED: i32 = 1;
const USAGE: i32 = 2;
/// Time of a command that reads bundles and refuses them. One that waits for another process is ended then.
const REFUSAL_MAX: Duration = Duration::from_secs(60);

/// How an output ends as long as signatures are missing.
fn missing(roles: &[&str], key: &str, command: &str) -> String {
    let of_role = |role: &&str| {
        format!("  {role}: 2 of 3 signatures by keys in root version 1\n    {key} may sign\n")
    };
    let roles: String = roles.iter().map(of_role).collect();
    format!(
        "alknet: machines refuse this file, because signatures are missing:\n{roles}\
         alknet: add one where another of these keys is: alknet image cosign {command}\n"
    )
}

#[test]
fn a_signer_reads_what_they_signed_and_who_still_has_to_sign() {
    let machine = BuildMachine::new();
    machine.make_key("cy.pem");
    let [ada, ben, cy] = ["ada.pem", "ben.pem", "cy.pem"].map(|name| machine.public_key(name));
    let root = [
        &["root", "--key", "ada.pem", "--threshold", "3"][..],
        &["--trust", &ada, "--trust", &ben, "--trust", &cy],
        &["--expires", "2032-01-31", "--incomplete"],
        &["--out", "1.root.json"],
    ];
    machine.run(&root.concat(), "").json();
    let mut keys = [&*ada, &ben, &cy];
    keys.sort_unstable();
    let roles = ["root", "snapshot", "targets", "timestamp"];
    let roles = roles.map(|role| format!("  {role}: 3 of {}\n", keys.join(" ")));
    let signed = format!(
        "alknet: you signed root document 1, valid until 2032-01-31T00:00:00Z\n{}",
        roles.concat()
    );
    let cosign = |file: &str, key: &str, options: &[&str]| {
        let shown = machine.shown(&[&["cosign", file, "--key", key][..], options].concat());
        assert_eq!(shown.output, format!("{file}\n"));
        shown.errors
    };
    let rest = missing(&["root"], &cy, "1.root.json --key KEY");
    let shown = cosign("1.root.json", "ben.pem", &[]);
    assert_eq!(shown, format!("{signed}{rest}"));
    assert_eq!(cosign("1.root.json", "cy.pem", &[]), signed);

    let built = BuiltImageFolder::get();
    let program = built.file(ImageForm::Uki, OutputRole::Uki);
    let bundle = [
        &["bundle", text(&program), "--number", "7", "--incomplete"][..],
        &["--key", "ada.pem", "--root", "1.root.json"],
        &["--floor", "0.0.1", "--needs", "loader-9"],
        &["--needs", "shelf", "--out", "7.bundle"],
        &EXPIRES,
    ];
    machine.run(&bundle.concat(), "").json();
    let hash = HEXLOWER.encode(&Sha256::digest(fs::read(&program).expect("it was built")));
    let version = &built.manifest().version;
    let signed = format!(
        "alknet: you signed release 7, valid until 2032-01-31T00:00:00Z, its timestamp until 2031-01-31T00:00:00Z\n  \
         alknet_{version}.efi: SHA-256 {hash}\n    \
         version {version}, floor 0.0.1, needs loader-9 and shelf\n"
    );
    let own_root = ["--root", "1.root.json"];
    let roles = ["timestamp", "snapshot", "targets"];
    let rest = missing(&roles, &cy, "7.bundle --root ROOT --key KEY");
    let shown = cosign("7.bundle", "ben.pem", &own_root);
    assert_eq!(shown, format!("{signed}{rest}"));
    assert_eq!(cosign("7.bundle", "cy.pem", &own_root), signed);
}

/// The new file of the second bundle cannot be written. Then the first one keeps its documents, or the next call would
/// refuse the two.
pub(crate) fn assert_replaced_together(machine: &BuildMachine, second: &str) {
    let bundles = ["1.bundle", second];
    let before = bundles.map(|name| machine.read(name));
    let obstacle = machine.file(&format!(".{second}.new"));
    fs::create_dir(&obstacle).expect("the folder is ours");
    let words = ["cosign", "1.bundle", second, "--root", "1.root.json"];
    let failed = machine.run(&[&words[..], &["--key", "ben.pem"]].concat(), "");
    assert_eq!(failed.status, FAILED, "{failed:?}");
    assert!(
        failed.errors.contains("none of the files was replaced"),
        "{failed:?}"
    );
    assert!(
        bundles.map(|name| machine.read(name)) == before,
        "neither changed"
    );
    assert!(!machine.file(".1.bundle.new").exists(), "nothing is left");
    fs::remove_dir(&obstacle).expect("it is empty");
}

/// Makes a bundle that Ben has to sign as well.
fn begin_bundle(machine: &BuildMachine) {
    let root = [
        &["root", "--key", "ada.pem", "--key", "ben.pem"][..],
        &["--threshold", "2", "--expires", "2032-01-31"],
        &["--out", "1.root.json"],
    ];
    machine.run(&root.concat(), "").json();
    let program = BuiltImageFolder::get().file(ImageForm::Uki, OutputRole::Uki);
    let bundle = [
        &["bundle", text(&program), "--number", "1", "--incomplete"][..],
        &["--key", "ada.pem", "--root", "1.root.json"],
        &["--out", "1.bundle"],
        &EXPIRES,
    ];
    machine.run(&bundle.concat(), "").json();
}

/// Why Ben's signature was refused.
fn refusal(machine: &BuildMachine, root: &str, files: &[&str]) -> String {
    let mut command = limited(REFUSAL_MAX, binary());
    command.args(["image", "cosign", "--key", "ben.pem", "--root", root]);
    command.args(files).current_dir(machine.file(""));
    let refused = run_with_input(command, "");
    assert_eq!(refused.status, USAGE, "{files:?}: {refused:?}");
    refused.errors
}

/// The first signer hands on a folder with something else in the place of a bundle.
#[test]
fn a_pipe_a_device_or_long_files_beside_a_bundle_are_refused() {
    let machine = BuildMachine::new();
    begin_bundle(&machine);
    let before = machine.read("1.bundle");
    let beside = machine.file("from-1.tar");
    let put = |make: &dyn Fn()| {
        fs::remove_file(&beside).ok();
        make();
    };
    let refused = || {
        let calls = [
            ("1.root.json", &["1.bundle", "from-1.tar"][..]),
            ("1.root.json", &["from-1.tar", "1.bundle"]),
            ("from-1.tar", &["1.bundle"]),
        ];
        calls.map(|(root, files)| refusal(&machine, root, files))
    };
    put(&|| mkfifo(&beside, Mode::S_IRWXU).expect("the folder is ours"));
    for said in refused() {
        assert!(said.contains("from-1.tar: it is no regular file"), "{said}");
    }
    put(&|| symlink("/dev/zero", &beside).expect("the folder is ours"));
    for said in refused() {
        assert!(said.contains("from-1.tar: it is no regular file"), "{said}");
    }
    // As long as one bundle may be, and it takes no place on the disk.
    put(&|| {
        let file = File::create(&beside).expect("the folder is ours");
        file.set_len(1 << 30).expect("sparse");
    });
    let said = refusal(&machine, "1.root.json", &["1.bundle", "from-1.tar"]);
    assert!(
        said.contains("have at most 1073741824 bytes together"),
        "{said}"
    );
    assert!(machine.read("1.bundle") == before, "nothing was signed");
}
