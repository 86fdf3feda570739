//! Signatures, checked by minisign, and minisign's, checked by us.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use alknet_image::{
    FileToSign, ImageError, ImageForm, MANIFEST_FILE, MANIFEST_SIGNATURE_FILE, Manifest,
    OutputRole, sign_folder,
};
use alknet_image_write::minisign::{
    EncryptedKey, MinisignError, MinisignKey, MinisignSecretKey, MinisignSignature,
};

use crate::support::{InputFolder, output, run, text};

/// A key pair that minisign made, without a password.
struct MinisignPair {
    dir: tempfile::TempDir,
}

impl MinisignPair {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let pair = Self { dir };
        run(
            "minisign",
            &[
                "-G",
                "-W",
                "-p",
                text(&pair.public()),
                "-s",
                text(&pair.secret()),
            ],
        );
        pair
    }

    fn public(&self) -> PathBuf {
        self.dir.path().join("key.pub")
    }

    fn secret(&self) -> PathBuf {
        self.dir.path().join("key.sec")
    }

    fn file(&self) -> PathBuf {
        let file = self.dir.path().join("file");
        fs::write(&file, "what is signed").expect("writable");
        file
    }
}

fn read<T: std::str::FromStr<Err = MinisignError>>(path: &Path) -> T {
    let text = fs::read_to_string(path).expect("text");
    text.parse()
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn signature_of(file: &Path) -> PathBuf {
    PathBuf::from(format!("{}.minisig", text(file)))
}

#[test]
fn minisign_accepts_our_signature_by_its_own_key() {
    let pair = MinisignPair::new();
    let file = pair.file();
    let key: EncryptedKey = read(&pair.secret());
    let key = key.open(None).expect("it has no password");
    let public: MinisignKey = read(&pair.public());
    assert_eq!(key.public(), public);
    let signature = key.sign(&mut File::open(&file).expect("ours"), "version:0.1.0");
    fs::write(signature_of(&file), signature.expect("readable")).expect("writable");
    let said = run(
        "minisign",
        &["-V", "-p", text(&pair.public()), "-m", text(&file)],
    );
    assert!(said.contains("Trusted comment: version:0.1.0"), "{said}");
    fs::write(&file, "something else").expect("writable");
    let refused = output(
        "minisign",
        &["-V", "-p", text(&pair.public()), "-m", text(&file)],
    );
    assert!(!refused.status.success());
}

#[test]
fn minisign_accepts_a_key_of_a_seed() {
    let pair = MinisignPair::new();
    let file = pair.file();
    let key = MinisignSecretKey::from_seed(&[42; 32]);
    let signature = key.sign(&mut File::open(&file).expect("ours"), "x");
    fs::write(signature_of(&file), signature.expect("readable")).expect("writable");
    let line = key.public().to_string();
    run("minisign", &["-V", "-P", &line, "-m", text(&file)]);
    let saved = pair.dir.path().join("ours.pub");
    fs::write(&saved, key.public().file()).expect("writable");
    run("minisign", &["-V", "-p", text(&saved), "-m", text(&file)]);
}

#[test]
fn both_kinds_of_minisign_s_signatures_are_checked() {
    let pair = MinisignPair::new();
    let file = pair.file();
    let public: MinisignKey = read(&pair.public());
    // The second one is of the file itself, as minisign made them before 0.6.
    for options in [&["-S"][..], &["-S", "-l"]] {
        let secret = pair.secret();
        let all = [options, &["-s", text(&secret), "-m", text(&file)]].concat();
        run("minisign", &all);
        let signature: MinisignSignature = read(&signature_of(&file));
        let mut content = File::open(&file).expect("ours");
        assert_eq!(
            signature.verify(&public, &mut content),
            Ok(()),
            "{options:?}"
        );
        assert!(signature.trusted_comment().contains("timestamp:"));
        let refused = signature.verify(&public, &mut &b"something else"[..]);
        assert_eq!(refused, Err(MinisignError::OtherContent), "{options:?}");
    }
}

#[test]
fn every_file_of_a_folder_gets_a_signature_and_the_manifest_the_last_one() {
    let pair = MinisignPair::new();
    let key: EncryptedKey = read(&pair.secret());
    let key = key.open(None).expect("it has no password");
    let dir = tempfile::tempdir().expect("a temporary folder");
    // Two forms that share their kernels.
    InputFolder::new().build(&[ImageForm::Direct, ImageForm::Erofs], dir.path());
    let mut sign = |file: FileToSign<'_>| -> Result<String, ImageError> {
        Ok(key.sign(file.content, "x").expect("readable"))
    };
    let manifest = sign_folder(dir.path(), &mut sign).expect("signed");
    // A second time nothing is signed twice.
    assert_eq!(
        sign_folder(dir.path(), &mut sign).expect("signed"),
        manifest
    );
    assert_eq!(Manifest::read(dir.path()).expect("written"), manifest);
    let signed = manifest
        .outputs
        .iter()
        .filter(|it| it.role == OutputRole::Signature);
    let signed: Vec<_> = signed.map(|it| it.file.as_str()).collect();
    assert!(signed.contains(&"root.erofs.minisig"), "{signed:?}");
    assert_eq!(signed.len() * 2, manifest.outputs.len());
    for name in signed.into_iter().chain([MANIFEST_SIGNATURE_FILE]) {
        let file = name.strip_suffix(".minisig").expect("its ending");
        let path = dir.path().join(file);
        run(
            "minisign",
            &["-V", "-p", text(&pair.public()), "-m", text(&path)],
        );
    }
    // Another build takes the signature of the manifest along.
    InputFolder::new().build(&[ImageForm::Direct], dir.path());
    assert!(!dir.path().join(MANIFEST_SIGNATURE_FILE).exists());
}

#[test]
fn a_folder_with_a_changed_file_is_not_signed() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    InputFolder::new().build(&[ImageForm::Direct], dir.path());
    let names = || {
        let entries = fs::read_dir(dir.path()).expect("readable");
        let names = entries.map(|entry| entry.expect("readable").file_name());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    let before = names();
    let manifest = fs::read(dir.path().join("manifest.json")).expect("written");
    let refused = || {
        let mut sign = |file: FileToSign<'_>| -> Result<String, ImageError> {
            panic!("{} is signed", file.path.display());
        };
        sign_folder(dir.path(), &mut sign).expect_err("a file differs")
    };
    // Behind the kernels in the manifest, and at its old length.
    let initrd = dir.path().join("initrd.cpio.lz4");
    let built = fs::read(&initrd).expect("written");
    let mut changed = built.clone();
    changed[built.len() / 2] ^= 1;
    fs::write(&initrd, changed).expect("writable");
    let error = refused();
    assert!(matches!(error, ImageError::OtherContent { .. }), "{error}");
    assert!(error.to_string().contains("initrd.cpio.lz4"), "{error}");
    assert_eq!(names(), before);
    fs::remove_file(&initrd).expect("it is there");
    let error = refused();
    assert!(error.to_string().contains("initrd.cpio.lz4"), "{error}");
    let after = fs::read(dir.path().join("manifest.json")).expect("it stays");
    assert_eq!(after, manifest);
}

#[test]
fn a_folder_whose_files_cannot_be_signed_keeps_its_manifest() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    InputFolder::new().build(&[ImageForm::Direct], dir.path());
    let before = fs::read(dir.path().join("manifest.json")).expect("written");
    let mut sign = |_: FileToSign<'_>| -> Result<String, ImageError> {
        Err(ImageError::ToolMissing {
            tool: "key",
            package: "keys",
        })
    };
    let failed = sign_folder(dir.path(), &mut sign);
    assert_eq!(failed.expect_err("no signature").exit_code(), 4);
    let after = fs::read(dir.path().join("manifest.json")).expect("it stays");
    assert_eq!(before, after);
}

/// The attack: another person who can write to the folder exchanges a file after the owner's command has compared it.
#[test]
fn a_file_that_is_exchanged_after_the_comparison_is_not_signed() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let built = InputFolder::new().build(&[ImageForm::Direct], dir.path());
    let next = dir.path().join("initrd.cpio.lz4");
    let manifest_file = dir.path().join(MANIFEST_FILE);
    let before = fs::read(&manifest_file).expect("written");
    let key = MinisignSecretKey::from_seed(&[7; 32]);
    let mut signed = 0;
    let mut sign = |file: FileToSign<'_>| -> Result<String, ImageError> {
        if signed == 0 {
            assert_ne!(file.path, next, "it is the first file");
            fs::write(&next, "of another person").expect("writable");
        }
        signed += 1;
        Ok(key.sign(file.content, "x").expect("readable"))
    };
    let error = sign_folder(dir.path(), &mut sign).expect_err("a file differs");
    match &error {
        ImageError::OtherContent { path, .. } => assert_eq!(path, &next),
        error => panic!("{error}"),
    }
    // The command signed others before it.
    assert!(signature_of(&dir.path().join(&built.outputs[0].file)).exists());
    assert!(!signature_of(&next).exists());
    assert!(!dir.path().join(MANIFEST_SIGNATURE_FILE).exists());
    assert_eq!(fs::read(&manifest_file).expect("it stays"), before);
}

/// The attack: another person exchanges the disk once it is signed, and the manifest before it is signed.
#[test]
fn an_exchanged_manifest_is_not_signed_and_an_exchanged_disk_changes_no_manifest() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let built = InputFolder::new().build(&[ImageForm::Raw], dir.path());
    let raw = built.path(dir.path(), ImageForm::Raw, OutputRole::Disk);
    let raw = raw.expect("it was built");
    let key = MinisignSecretKey::from_seed(&[7; 32]);
    let (mut is_disk_exchanged, mut written) = (false, Vec::new());
    let mut sign = |file: FileToSign<'_>| -> Result<String, ImageError> {
        if file.path == dir.path().join(MANIFEST_FILE) {
            assert_eq!(file.version, Some(&*built.version));
            written = fs::read(file.path).expect("written");
            fs::write(file.path, "of another person").expect("writable");
        }
        let signature = key.sign(file.content, "x").expect("readable");
        if file.path == raw {
            fs::write(&raw, "of another person").expect("writable");
            is_disk_exchanged = true;
        }
        Ok(signature)
    };
    let manifest = sign_folder(dir.path(), &mut sign).expect("signed");
    assert!(is_disk_exchanged && built.disk.is_some());
    assert_eq!(manifest.disk, built.disk);
    let own = Manifest::parse(&written, Path::new(MANIFEST_FILE)).expect("ours");
    assert_eq!(own, manifest);
    let signature: MinisignSignature = read(&dir.path().join(MANIFEST_SIGNATURE_FILE));
    let public = key.public();
    assert_eq!(signature.verify(&public, &mut &written[..]), Ok(()));
    let refused = signature.verify(&public, &mut &b"of another person"[..]);
    assert_eq!(refused, Err(MinisignError::OtherContent));
}
