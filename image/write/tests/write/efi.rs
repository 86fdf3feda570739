//! EFI programs, signed by us and checked by sbverify.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use alknet_image::{
    DATA_FIRST_LBA, ESP_FIRST_LBA, EspVolume, ImageError, ImageForm, ImageInputs, LBA_BYTES,
    Manifest, ManifestDisk, MediumDisk, OutputRole, build_signed,
};
use alknet_image_write::authenticode::{AuthenticodeError, EfiCertificate, EfiSigner, sign};
use alknet_image_write::{SignedProgramsError, verify_programs};
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use crate::disk_forms::as_raw;
use crate::released::ReleaseFolder;
use crate::support::{InputFolder, output, run, text};
use crate::tampered::crc32;

/// The program and the loader on a new disk.
const ON_DISK: [&str; 2] = ["EFI/ALKNET/A.EFI", "EFI/BOOT/BOOTX64.EFI"];
/// The program, and the disk as it is and in a form that has to be unpacked.
const SOME_FORMS: [ImageForm; 3] = [ImageForm::Uki, ImageForm::Raw, ImageForm::Qcow2];

/// An owner's key and certificate, made by OpenSSL.
pub(crate) struct EfiOwner {
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

    pub(crate) fn rsa() -> Self {
        Self::new(&["-newkey", "rsa:2048"])
    }

    pub(crate) fn ecdsa() -> Self {
        Self::new(&["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("text")
    }

    pub(crate) fn signer(&self) -> EfiSigner {
        let signer = EfiSigner::from_pem(&self.read("key.pem"), &self.read("cert.pem"));
        signer.expect("OpenSSL made them")
    }

    pub(crate) fn certificate(&self) -> EfiCertificate {
        EfiCertificate::from_pem(&self.read("cert.pem")).expect("OpenSSL made it")
    }

    /// Builds forms that this owner signs.
    pub(crate) fn build(
        &self,
        inputs: &ImageInputs,
        forms: &[ImageForm],
        out: &Path,
    ) -> Result<Manifest, ImageError> {
        let signer = self.signer();
        let sign = |program: &[u8]| sign(program, &signer).map_err(|error| error.to_string());
        build_signed(inputs, forms, out, &sign, &mut |_| {})
    }

    /// The program on the EFI system partition of a medium, and the parts of the disk that the medium installs.
    fn of_medium(&self, medium: &Path) -> (Vec<u8>, ManifestDisk) {
        let root = self.path("medium");
        let from = ["-no_rc", "-osirrox", "on", "-indev", text(medium)];
        run(
            "xorriso",
            &[&from[..], &["-extract", "/", text(&root)]].concat(),
        );
        let (partition, copy) = (root.join("boot/efi.img"), self.path("medium.efi"));
        let program = format!("::/{}", ON_DISK[1]);
        run("mcopy", &["-i", text(&partition), &program, text(&copy)]);
        let disk = MediumDisk::open(&root).and_then(MediumDisk::parts);
        let program = fs::read(&copy).expect("copied");
        (program, disk.expect("the medium has a disk"))
    }

    /// Checks the programs of each disk of a build: they are those of the form `raw`, the manifest has their hashes, and
    /// the command reads them or says that it does not.
    fn assert_disks(&self, manifest: &Manifest, out: &Path) {
        let raw = manifest.path(out, ImageForm::Raw, OutputRole::Disk);
        let raw = raw.expect("it was built");
        let expected = ON_DISK.map(|path| on_disk(&raw, path));
        let disk = manifest.disk.as_ref().expect("the manifest has the parts");
        for (path, content) in ON_DISK.iter().zip(&expected) {
            let entry = disk.files.iter().find(|file| file.path == *path);
            let sha256 = HEXLOWER.encode(&Sha256::digest(content));
            assert_eq!(entry.map(|file| &file.sha256), Some(&sha256), "{path}");
        }
        let roles = [OutputRole::Disk, OutputRole::Archive, OutputRole::OciImage];
        for output in manifest
            .outputs
            .iter()
            .filter(|it| roles.contains(&it.role))
        {
            let (form, file) = (output.form, out.join(&output.file));
            match as_raw(form, &file, self.dir.path()) {
                Some(disk) => {
                    let found = ON_DISK.map(|path| on_disk(&disk, path));
                    assert!(found == expected, "{form} has other programs");
                }
                None => {
                    let (program, installed) = self.of_medium(&file);
                    assert!(program == expected[0], "{form} has another program");
                    assert_eq!(&installed, disk, "{form} installs another disk");
                }
            }
            let checked = verify_programs(&file, &self.certificate());
            match form {
                ImageForm::Raw | ImageForm::Vhd => {
                    let checked = checked.expect("both are signed").checked;
                    assert_eq!(checked.len(), 2, "{form}: {checked:?}");
                }
                _ => {
                    let refused = checked.expect_err("no raw disk");
                    assert!(
                        matches!(refused, SignedProgramsError::Unreadable { .. }),
                        "{form}: {refused}"
                    );
                }
            }
        }
    }
}

/// A file on the EFI system partition of a disk.
fn on_disk(disk: &Path, path: &str) -> Vec<u8> {
    let disk = File::open(disk).expect("it was written");
    let volume = EspVolume::open(&disk).expect("ours");
    let files = volume.files().expect("readable");
    let file = files.iter().find(|file| file.path == path);
    let file = file.unwrap_or_else(|| panic!("no {path}: {files:?}"));
    let mut content = Vec::new();
    volume.copy(file, &mut content).expect("readable");
    content
}

fn program() -> Vec<u8> {
    let release = ReleaseFolder::shared();
    let path = release
        .manifest
        .path(release.path(), ImageForm::Uki, OutputRole::Uki);
    fs::read(path.expect("the form was built")).expect("readable")
}

pub(crate) fn accepts(certificate: &Path, program: &Path) -> bool {
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

#[test]
fn uki_and_all_kinds_of_disks_of_a_signed_build_have_the_same_signed_programs() {
    let other = EfiOwner::rsa();
    let mut all_forms = ImageForm::ALL.to_vec();
    all_forms.retain(|form| form.holds_efi_program());
    let others_of_all = [
        "alknet_0.1.0-aws.vmdk",
        "alknet_0.1.0-containerdisk.oci.tar",
        "alknet_0.1.0-gce.tar.gz",
        "alknet_0.1.0.iso",
        "alknet_0.1.0.ova",
        "alknet_0.1.0.qcow2",
        "alknet_0.1.0.vhd",
        "alknet_0.1.0.vhdx",
        "alknet_0.1.0.vmdk",
    ];
    // An ECDSA key signs with a random number, so a program that is signed twice differs.
    for (owner, forms, left_out) in [
        (EfiOwner::rsa(), &SOME_FORMS[..], &others_of_all[5..6]),
        (EfiOwner::ecdsa(), &all_forms[..], &others_of_all[..]),
    ] {
        let out = owner.path("out");
        let manifest = owner.build(&InputFolder::new().inputs, forms, &out);
        let manifest = manifest.expect("the forms build");
        owner.assert_disks(&manifest, &out);
        let file = |form, role| manifest.path(&out, form, role).expect("it was built");
        let raw = file(ImageForm::Raw, OutputRole::Disk);
        for path in ON_DISK {
            let program = owner.path("program.efi");
            fs::write(&program, on_disk(&raw, path)).expect("writable");
            assert!(accepts(&owner.path("cert.pem"), &program), "{path}");
            assert!(!accepts(&other.path("cert.pem"), &program), "{path}");
        }
        let uki = fs::read(file(ImageForm::Uki, OutputRole::Uki)).expect("readable");
        assert!(uki == on_disk(&raw, ON_DISK[0]), "another program");
        let entry = manifest
            .outputs
            .iter()
            .find(|it| it.role == OutputRole::Uki);
        let sha256 = HEXLOWER.encode(&Sha256::digest(&uki));
        assert_eq!(entry.map(|it| &it.sha256), Some(&sha256));
        let mut found = verify_programs(&out, &owner.certificate()).expect("all are signed");
        assert_eq!(found.checked.len(), 3, "{found:?}");
        found.left_out.sort_unstable();
        assert_eq!(found.left_out, left_out);
        let refused = verify_programs(&out, &other.certificate()).expect_err("another owner");
        assert!(
            matches!(refused, SignedProgramsError::NotSigned { .. }),
            "{refused}"
        );
    }
}

#[test]
fn a_signed_build_with_an_rsa_key_is_the_same_again() {
    let owner = EfiOwner::rsa();
    let [one, two] = ["one", "two"].map(|name| {
        let manifest = owner.build(
            &InputFolder::new().inputs,
            &[ImageForm::Uki, ImageForm::Raw],
            &owner.path(name),
        );
        manifest.expect("the forms build")
    });
    assert_eq!(one, two);
}

#[test]
fn what_cannot_be_signed_is_named_before_anything_is_written() {
    let owner = EfiOwner::rsa();
    let folder = InputFolder::new();
    let out = owner.path("out");
    let refused = |forms: &[ImageForm]| {
        let refused = owner.build(&folder.inputs, forms, &out);
        assert!(!out.exists());
        refused.expect_err("it must be refused")
    };
    let error = refused(&[ImageForm::Direct, ImageForm::Oci]);
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("direct oci"), "{error}");
    // The loader of an image that its owner signed.
    let path = folder.inputs.loader.as_ref().expect("there is one");
    let loader = fs::read(path).expect("readable");
    let signed = sign(&loader, &owner.signer()).expect("a program");
    fs::write(path, signed).expect("writable");
    let error = refused(&[ImageForm::Raw]);
    assert_eq!(error.exit_code(), 3);
    let said = error.to_string();
    assert!(
        said.contains("loader.efi") && said.contains("signature already"),
        "{said}"
    );
}

#[test]
fn a_certificate_verifies_what_sbsign_signed_and_no_changed_program() {
    let (owner, other) = (EfiOwner::rsa(), EfiOwner::ecdsa());
    let (plain, theirs) = (owner.path("plain.efi"), owner.path("theirs.efi"));
    fs::write(&plain, program()).expect("writable");
    let (key, certificate) = (owner.path("key.pem"), owner.path("cert.pem"));
    let options = ["--key", text(&key), "--cert", text(&certificate)];
    let files = ["--output", text(&theirs), text(&plain)];
    run("sbsign", &[&options[..], &files].concat());
    let theirs = fs::read(theirs).expect("written");
    let ours = sign(&program(), &owner.signer()).expect("a program");
    let of_other = sign(&program(), &other.signer()).expect("a program");
    let (certificate, of_ecdsa) = (owner.certificate(), other.certificate());
    certificate.verify(&theirs).expect("sbsign signed it");
    certificate.verify(&ours).expect("we signed it");
    of_ecdsa.verify(&of_other).expect("we signed it");
    let says = |certificate: &EfiCertificate, program: &[u8]| {
        let refused = certificate.verify(program).expect_err("it must be refused");
        refused.to_string()
    };
    let another = "none of its signatures";
    assert!(says(&of_ecdsa, &ours).contains(another));
    assert!(says(&certificate, &of_other).contains(another));
    assert!(says(&certificate, &program()).contains("no signature"));
    // Within the program, in the digest of the program, and at the end of the signature, which padding of at most seven
    // bytes follows.
    let start = program().len().next_multiple_of(8);
    for at in [ours.len() / 2, start + 0x98, ours.len() - 16] {
        let mut changed = ours.clone();
        changed[at] ^= 1;
        assert!(certificate.verify(&changed).is_err(), "{at:#x}");
    }
    // The signature of this program behind another one of the same length.
    let mut moved = program();
    moved[start / 2] ^= 1;
    let mut moved = sign(&moved, &other.signer()).expect("a program");
    moved.truncate(start);
    moved.extend(&ours[start..]);
    let directory = directory_of(&moved);
    moved[directory..directory + 8].copy_from_slice(&ours[directory..directory + 8]);
    assert!(says(&certificate, &moved).contains(another));
}

/// Firmware reads fields of a signature that no key signs. sbverify checks it by OpenSSL, as firmware does.
#[test]
fn a_signature_with_a_changed_byte_that_sbverify_refuses_does_not_hold() {
    let folder = InputFolder::new();
    let loader = folder.inputs.loader.clone().expect("there is one");
    let program = fs::read(&loader).expect("readable");
    let start = program.len().next_multiple_of(8);
    for owner in [EfiOwner::rsa(), EfiOwner::ecdsa()] {
        let (key, pem) = (owner.path("key.pem"), owner.path("cert.pem"));
        let (theirs, tried) = (owner.path("theirs.efi"), owner.path("tried.efi"));
        let options = ["--key", text(&key), "--cert", text(&pem)];
        let files = ["--output", text(&theirs), text(&loader)];
        run("sbsign", &[&options[..], &files].concat());
        let theirs = fs::read(theirs).expect("written");
        let ours = sign(&program, &owner.signer()).expect("a program");
        let certificate = owner.certificate();
        for signed in [theirs, ours] {
            certificate.verify(&signed).expect("it is signed");
            for (at, bit) in (start..signed.len()).flat_map(|at| [(at, 1), (at, 0x80)]) {
                let mut changed = signed.clone();
                changed[at] ^= bit;
                // This asks sbverify only where it matters: each call takes a process.
                if certificate.verify(&changed).is_ok() {
                    fs::write(&tried, &changed).expect("writable");
                    assert!(accepts(&pem, &tried), "byte {at:#x}, bit {bit:#x}");
                }
            }
        }
    }
}

/// The attacks: the data partition has a volume that firmware reads, and another partition has the type by which firmware
/// looks for programs.
#[test]
fn a_disk_with_another_partition_table_or_volume_does_not_count_as_signed() {
    let owner = EfiOwner::rsa();
    let out = owner.path("out");
    let manifest = owner.build(&InputFolder::new().inputs, &[ImageForm::Raw], &out);
    let raw = manifest
        .expect("the form builds")
        .path(&out, ImageForm::Raw, OutputRole::Disk);
    let raw = raw.expect("it was built");
    let verify = || verify_programs(&raw, &owner.certificate());
    verify().expect("both are signed");
    let disk = File::options().read(true).write(true).open(&raw);
    let disk = disk.expect("ours");
    let other_part = || match verify().expect_err("another layout") {
        SignedProgramsError::OtherLayout { part, .. } => part,
        refused => panic!("{refused}"),
    };
    // The boot sector of the EFI system partition, at the beginning of the data partition.
    let mut sector = [0; 512];
    disk.read_exact_at(&mut sector, ESP_FIRST_LBA * LBA_BYTES)
        .expect("readable");
    let put = |content: &[u8]| {
        let put = disk.write_all_at(content, DATA_FIRST_LBA * LBA_BYTES);
        put.expect("writable");
    };
    put(&sector);
    let part = other_part();
    assert!(part.starts_with("data partition: "), "{part}");
    put(&[0; 512]);
    verify().expect("the volume is gone");
    let last = disk.metadata().expect("ours").len() / 512 - 1;
    // Both copies, with their checksums.
    for (header_at, entries_at) in [(1, 2), (last, last - 32)] {
        let (mut header, mut entries) = ([0; 92], [0; 128 * 128]);
        disk.read_exact_at(&mut entries, entries_at * 512)
            .expect("readable");
        // The first block of the second partition.
        entries[128 + 32] ^= 8;
        disk.write_all_at(&entries, entries_at * 512)
            .expect("writable");
        disk.read_exact_at(&mut header, header_at * 512)
            .expect("readable");
        header[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
        header[16..20].fill(0);
        let sum = crc32(&header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        disk.write_all_at(&header, header_at * 512)
            .expect("writable");
    }
    assert_eq!(other_part(), "place of partition 2");
}

/// Where the PE header of a program is.
fn header_of(program: &[u8]) -> usize {
    u32::from_le_bytes(program[0x3c..0x40].try_into().expect("four bytes")) as usize
}

/// Where the entry of a program's header is that says where its signatures are.
pub(crate) fn directory_of(program: &[u8]) -> usize {
    header_of(program) + 24 + 112 + 32
}

#[test]
fn each_program_of_a_disk_must_be_signed() {
    let (owner, other) = (EfiOwner::rsa(), EfiOwner::rsa());
    let out = owner.path("out");
    let folder = InputFolder::new();
    let manifest = owner.build(&folder.inputs, &[ImageForm::Raw], &out);
    let manifest = manifest.expect("the form builds");
    let raw = manifest.path(&out, ImageForm::Raw, OutputRole::Disk);
    let raw = raw.expect("it was built");
    let verify = || verify_programs(&raw, &owner.certificate());
    assert_eq!(verify().expect("both are signed").checked.len(), 2);
    let volume = format!("{}@@1M", text(&raw));
    let put = |program: &[u8], path: &str| {
        let file = owner.path("put.efi");
        fs::write(&file, program).expect("writable");
        let to = format!("::/{path}");
        run("mcopy", &["-o", "-i", &volume, text(&file), &to]);
    };
    let loader = on_disk(&raw, ON_DISK[1]);
    // The second boot slot, as an update leaves it.
    let unsigned = program();
    let foreign = sign(&unsigned, &other.signer()).expect("a program");
    let own = sign(&unsigned, &owner.signer()).expect("a program");
    for (program, path) in [
        (&unsigned, "EFI/ALKNET/B.EFI"),
        (&foreign, "EFI/ALKNET/B.EFI"),
        (&foreign, "EFI/BOOT/BOOTX64.EFI"),
    ] {
        put(program, path);
        let refused = verify().expect_err("it must be refused");
        assert!(refused.to_string().contains(path), "{refused}");
        let restored = if path == ON_DISK[1] { &loader } else { &own };
        put(restored, path);
        let names = verify().expect("all are signed").checked;
        assert!(names.iter().any(|name| name.ends_with(path)), "{names:?}");
    }
    let remove = |path: &str| run("mdel", &["-i", &volume, &format!("::/{path}")]);
    // Programs that this project has not, for another processor and by another boot entry. EDK2 also loads a program that
    // begins with its PE header, and its library reads one with a TE header.
    let others = [
        (&unsigned[..], "EFI/BOOT/BOOTIA32.EFI"),
        (&foreign[..], "EFI/ALKNET/OTHER.BIN"),
        (&own[header_of(&own)..], "EFI/BOOT/BOOTAA64.EFI"),
        (&b"VZ\x64\x86\0\x0b"[..], "EFI/BOOT/SHORT.EFI"),
    ];
    for (program, path) in others {
        put(program, path);
        let alone = verify_programs(&owner.path("put.efi"), &owner.certificate());
        let alone = alone.expect_err("it is not signed");
        assert!(
            matches!(alone, SignedProgramsError::NotSigned { .. }),
            "{path}: {alone}"
        );
    }
    put(b"text", "TEXT.TXT");
    let refused = verify().expect_err("four are not signed").to_string();
    for (_, path) in others {
        assert!(refused.contains(&format!("{path}: ")), "{refused}");
        remove(path);
    }
    let without = refused.matches("without a DOS header").count();
    assert_eq!(without, 2, "{refused}");
    assert!(!refused.contains("TEXT.TXT"), "{refused}");
    verify().expect("all are signed");
    remove(ON_DISK[1]);
    let refused = verify().expect_err("no loader");
    assert!(
        matches!(refused, SignedProgramsError::Missing { .. }),
        "{refused}"
    );
    // A disk without the partition.
    let disk = File::options().write(true).open(&raw).expect("ours");
    disk.write_all_at(&[0; 512], 1 << 20).expect("writable");
    let refused = verify().expect_err("no partition");
    assert!(
        matches!(refused, SignedProgramsError::Unreadable { .. }),
        "{refused}"
    );
}
