//! What `alknet image cosign` tells the person who signs.

use std::fs;

use alknet_image::{ImageForm, OutputRole};
use alknet_tests::BuiltImageFolder;
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use crate::bundle_verbs::{BuildMachine, EXPIRES, text};

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
