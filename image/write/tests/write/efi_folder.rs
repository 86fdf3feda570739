//! Signed builds in which another person hides a file from `alknet image verify FOLDER --efi-cert`.

use std::fs::{self, File};
use std::path::Path;

use alknet_image::{ImageForm, MANIFEST_FILE, OutputRole};
use alknet_image_write::{SignedPrograms, SignedProgramsError, verify_programs};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use crate::efi::EfiOwner;
use crate::support::InputFolder;

const RAW: &str = "alknet_0.1.0.raw";

/// A folder with the forms `uki` and `raw`, signed.
struct SignedFolder {
    owner: EfiOwner,
}

impl SignedFolder {
    fn new() -> Self {
        let owner = EfiOwner::rsa();
        let forms = [ImageForm::Uki, ImageForm::Raw];
        let built = owner.build(&InputFolder::new().inputs, &forms, &owner.path("out"));
        let built = built.expect("the forms build");
        let raw = built.path(Path::new(""), ImageForm::Raw, OutputRole::Disk);
        assert_eq!(raw.as_deref(), Some(Path::new(RAW)));
        Self { owner }
    }

    fn verify(&self) -> Result<SignedPrograms, SignedProgramsError> {
        verify_programs(&self.owner.path("out"), &self.owner.certificate())
    }

    /// Changes the list of outputs in the manifest.
    fn change_outputs(&self, change: impl FnOnce(&mut Vec<Value>)) {
        let path = self.owner.path("out").join(MANIFEST_FILE);
        let manifest = fs::read(&path).expect("it was built");
        let mut manifest: Value = serde_json::from_slice(&manifest).expect("ours");
        change(manifest["outputs"].as_array_mut().expect("a list"));
        fs::write(&path, manifest.to_string()).expect("writable");
    }
}

/// The attack: the manifest gives the unsigned disk another form or role, or does not name it.
#[test]
fn a_disk_that_the_manifest_hides_is_left_out_by_name() {
    let folder = SignedFolder::new();
    let found = folder.verify().expect("all are signed");
    assert_eq!(found.checked.len(), 3, "{found:?}");
    // The bill of materials, the checksums and the other texts are not listed.
    assert_eq!(found.left_out, [""; 0]);
    let is_raw = |output: &Value| output["file"] == RAW;
    let file = File::options()
        .write(true)
        .open(folder.owner.path("out").join(RAW));
    file.expect("ours").set_len(1 << 20).expect("writable");
    let refused = folder.verify().expect_err("it is no disk now");
    assert!(refused.to_string().contains(RAW), "{refused}");
    for (form, role) in [
        ("raw", "sbom"),
        ("raw", "signature"),
        ("uki", "disk"),
        ("direct", "kernel"),
    ] {
        folder.change_outputs(|outputs| {
            let output = outputs.iter_mut().find(|it| is_raw(it));
            let output = output.expect("the manifest has it");
            (output["form"], output["role"]) = (json!(form), json!(role));
        });
        let found = folder.verify().expect("the program is signed");
        assert_eq!(found.checked.len(), 1, "{form} {role}: {found:?}");
        assert_eq!(found.left_out, [RAW], "{form} {role}");
    }
    folder.change_outputs(|outputs| outputs.retain(|it| !is_raw(it)));
    let found = folder.verify().expect("the program is signed");
    assert_eq!(found.checked.len(), 1, "{found:?}");
    assert_eq!(found.left_out, [RAW]);
    folder.change_outputs(Vec::clear);
    let refused = folder.verify().expect_err("nothing is named");
    assert!(
        matches!(refused, SignedProgramsError::NoForm { .. }),
        "{refused}"
    );
}

/// The attack: files that the manifest does not name lie beside those that it names. The command opens no pipe.
#[test]
fn what_the_manifest_does_not_name_is_left_out_by_name() {
    let folder = SignedFolder::new();
    let out = folder.owner.path("out");
    let put = |name: &str, content: &[u8]| fs::write(out.join(name), content).expect("writable");
    put("NOTES.txt", "Größe:\t1\r\n".as_bytes());
    put("a.efi", b"MZ\0\0");
    put("b.efi", b"VZ is what a program may begin with");
    put("c.zst", b"\x28\xb5\x2f\xfd");
    put("d.img", &[0; 512]);
    fs::create_dir(out.join("e")).expect("the folder is ours");
    mkfifo(&out.join("f"), Mode::S_IRWXU).expect("the folder is ours");
    let found = folder.verify().expect("what is named is signed");
    assert_eq!(found.checked.len(), 3, "{found:?}");
    let expected = ["a.efi", "b.efi", "c.zst", "d.img", "e", "f"];
    assert_eq!(found.left_out, expected);
}

/// The attack: a disk is a text that names another file, which has its content. The manifest lists it, or does not.
#[test]
fn a_text_that_describes_a_disk_is_left_out_by_name() {
    const DESCRIPTION: &str = "# Disk DescriptorFile\nversion=1\ncreateType=\"monolithicFlat\"\n\
                               RW 557056 FLAT \"/elsewhere/evil.img\" 0\n";
    let folder = SignedFolder::new();
    let path = folder.owner.path("out").join("x.vmdk");
    let is_listed = |folder: &SignedFolder, why: &str| {
        let found = folder.verify().expect("all are signed");
        assert_eq!(found.checked.len(), 3, "{why}: {found:?}");
        assert_eq!(found.left_out, ["x.vmdk"], "{why}");
    };
    // Programs that read a description skip blanks and other comments before it.
    for text in [DESCRIPTION, &DESCRIPTION[2..], "#\n version=3\n"] {
        fs::write(&path, text).expect("writable");
        is_listed(&folder, text);
    }
    folder.change_outputs(|outputs| {
        outputs.push(json!({
            "form": "vmdk",
            "role": "disk",
            "file": "x.vmdk",
            "bytes": DESCRIPTION.len(),
            "sha256": "0".repeat(64),
        }));
    });
    for text in [DESCRIPTION, "any other text\n"] {
        fs::write(&path, text).expect("writable");
        is_listed(&folder, text);
    }
}

/// The attack: bytes behind the part of a program that the command reads, which firmware hashes and the command did not.
#[test]
fn a_program_that_is_not_read_to_its_end_is_refused_by_its_length() {
    let owner = EfiOwner::rsa();
    let path = owner.path("long.efi");
    fs::write(&path, b"MZ\0\0").expect("writable");
    let file = File::options().write(true).open(&path).expect("ours");
    file.set_len((1 << 30) + 1).expect("a sparse file");
    let refused = verify_programs(&path, &owner.certificate());
    let said = refused.expect_err("it is too long").to_string();
    let wanted = "it is 1073741825 bytes, and a program has at most 1073741824";
    assert!(said.contains("long.efi") && said.contains(wanted), "{said}");
}
