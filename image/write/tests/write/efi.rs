//! EFI programs, signed by us and checked by sbverify.

use std::fs;
use std::path::{Path, PathBuf};

use alknet_image::{ImageForm, OutputRole};
use alknet_image_write::authenticode::{AuthenticodeError, EfiSigner, sign};

use crate::released::ReleaseFolder;
use crate::support::{output, run, text};

/// An owner's key and certificate, made by OpenSSL.
struct EfiOwner {
    dir: tempfile::TempDir,
}

impl EfiOwner {
    fn new(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let owner = Self { dir };
        let (key, certificate) = (owner.path("key.pem"), owner.path("cert.pem"));
        let fixed = [
            "req",
            "-new",
            "-x509",
            "-nodes",
            "-days",
            "3650",
            "-subj",
            "/CN=Owner of machines/",
            "-keyout",
            text(&key),
            "-out",
            text(&certificate),
        ];
        run("openssl", &[&fixed[..], options].concat());
        owner
    }

    fn rsa() -> Self {
        Self::new(&["-newkey", "rsa:2048"])
    }

    fn ecdsa() -> Self {
        Self::new(&["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("text")
    }

    fn signer(&self) -> EfiSigner {
        let signer = EfiSigner::from_pem(&self.read("key.pem"), &self.read("cert.pem"));
        signer.expect("OpenSSL made them")
    }
}

fn program() -> Vec<u8> {
    let release = ReleaseFolder::shared();
    let path = release
        .manifest
        .path(release.path(), ImageForm::Uki, OutputRole::Uki);
    fs::read(path.expect("the form was built")).expect("readable")
}

fn accepts(certificate: &Path, program: &Path) -> bool {
    let checked = output("sbverify", &["--cert", text(certificate), text(program)]);
    checked.status.success()
}

#[test]
fn sbverify_accepts_what_an_rsa_key_and_an_ecdsa_key_signed() {
    let other = EfiOwner::rsa();
    for owner in [EfiOwner::rsa(), EfiOwner::ecdsa()] {
        let signed = sign(&program(), &owner.signer()).expect("a program");
        let path = owner.path("signed.efi");
        fs::write(&path, &signed).expect("writable");
        let said = run("sbverify", &["--list", text(&path)]);
        assert!(said.contains("Owner of machines"), "{said}");
        assert!(accepts(&owner.path("cert.pem"), &path));
        assert!(!accepts(&other.path("cert.pem"), &path));
        // A byte within the kernel.
        let mut changed = signed.clone();
        let middle = changed.len() / 2;
        changed[middle] ^= 1;
        fs::write(&path, &changed).expect("writable");
        assert!(!accepts(&owner.path("cert.pem"), &path));
        let again = sign(&signed, &owner.signer()).expect_err("it is signed");
        assert!(matches!(again, AuthenticodeError::Signed), "{again}");
    }
}

#[test]
fn sbsign_hashes_the_same_bytes() {
    let owner = EfiOwner::rsa();
    let (plain, theirs) = (owner.path("plain.efi"), owner.path("theirs.efi"));
    fs::write(&plain, program()).expect("writable");
    let (key, certificate) = (owner.path("key.pem"), owner.path("cert.pem"));
    run(
        "sbsign",
        &[
            "--key",
            text(&key),
            "--cert",
            text(&certificate),
            "--output",
            text(&theirs),
            text(&plain),
        ],
    );
    // Their signature has a time and so other bytes. What is before both is the same but for the checksum.
    let ours = sign(&program(), &owner.signer()).expect("a program");
    let theirs = fs::read(theirs).expect("written");
    let start = program().len().next_multiple_of(8);
    assert_eq!(ours[0x200..start], theirs[0x200..start]);
    // The same program has the same signature each time.
    assert_eq!(ours, sign(&program(), &owner.signer()).expect("a program"));
}

#[test]
fn keys_in_the_older_forms_are_read() {
    let (rsa, ecdsa) = (EfiOwner::rsa(), EfiOwner::ecdsa());
    for (owner, verb) in [(rsa, "rsa"), (ecdsa, "ec")] {
        let (new, old) = (owner.path("key.pem"), owner.path("old.pem"));
        let traditional: &[&str] = if verb == "rsa" {
            &["-traditional"]
        } else {
            &[]
        };
        let all = [&[verb, "-in", text(&new), "-out", text(&old)], traditional].concat();
        run("openssl", &all);
        let key = owner.read("old.pem");
        assert!(
            key.contains(&format!("BEGIN {} PRIVATE KEY", verb.to_uppercase())),
            "{verb}"
        );
        EfiSigner::from_pem(&key, &owner.read("cert.pem")).expect("OpenSSL wrote it");
    }
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let (one, other) = (EfiOwner::rsa(), EfiOwner::ecdsa());
    let refusal = |key: &str, certificate: &str| {
        let refused = EfiSigner::from_pem(key, certificate).expect_err("it cannot be used");
        refused.to_string()
    };
    let said = refusal(&one.read("key.pem"), &other.read("cert.pem"));
    assert!(said.contains("not of this key"), "{said}");
    let said = refusal(&one.read("cert.pem"), &one.read("cert.pem"));
    assert!(said.contains("no private key"), "{said}");
    let said = refusal(&one.read("key.pem"), "");
    assert!(said.contains("no certificate"), "{said}");
    let sealed = one.path("sealed.pem");
    let key = one.path("key.pem");
    run(
        "openssl",
        &[
            "pkcs8",
            "-topk8",
            "-in",
            text(&key),
            "-passout",
            "pass:x",
            "-out",
            text(&sealed),
        ],
    );
    let said = refusal(&one.read("sealed.pem"), &one.read("cert.pem"));
    assert!(said.contains("encrypted"), "{said}");
    let small = EfiOwner::new(&["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"]);
    let said = refusal(&small.read("key.pem"), &small.read("cert.pem"));
    assert!(said.contains("P-256"), "{said}");
}
