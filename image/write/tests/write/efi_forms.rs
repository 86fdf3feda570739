//! Signed disks that another person makes into a file of another form as well, in which other programs find another disk.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use alknet_image::{ImageForm, MANIFEST_FILE, OutputRole};
use alknet_image_write::{SignedProgramsError, verify_programs};
use serde_json::{Value, json};

use crate::efi::EfiOwner;
use crate::support::InputFolder;

/// Bytes of a footer of a VHD, and places in it.
const FOOTER_BYTES: u64 = 512;
const FURTHER_HEADER_AT: usize = 16;
const DISK_BYTES_AT: usize = 48;
const KIND_AT: usize = 60;
const CHECKSUM_AT: usize = 64;

/// A signed disk in a folder with its manifest.
struct SignedDisk {
    owner: EfiOwner,
    path: PathBuf,
}

impl SignedDisk {
    fn new(form: ImageForm) -> Self {
        let owner = EfiOwner::rsa();
        let out = owner.path("out");
        let built = owner.build(&InputFolder::new().inputs, &[form], &out);
        let manifest = built.expect("the form builds");
        let path = manifest.path(&out, form, OutputRole::Disk);
        let path = path.expect("it was built");
        Self { owner, path }
    }

    /// Gives the disk another name, also in the manifest.
    fn rename(&mut self, name: &str) {
        let out = self.owner.path("out");
        let path = out.join(MANIFEST_FILE);
        let manifest = fs::read(&path).expect("it was built");
        let mut manifest: Value = serde_json::from_slice(&manifest).expect("ours");
        let outputs = manifest["outputs"].as_array_mut().expect("a list");
        let old = self.path.file_name().expect("a file").to_string_lossy();
        let output = outputs.iter_mut().find(|it| it["file"] == *old);
        output.expect("the manifest has it")["file"] = json!(name);
        fs::write(&path, manifest.to_string()).expect("writable");
        let renamed = out.join(name);
        fs::rename(&self.path, &renamed).expect("the folder is ours");
        self.path = renamed;
    }

    fn open(&self) -> File {
        let disk = File::options().read(true).write(true).open(&self.path);
        disk.expect("ours")
    }

    fn verify(&self, what: &Path) -> Result<usize, SignedProgramsError> {
        let programs = verify_programs(what, &self.owner.certificate())?;
        Ok(programs.checked.len())
    }

    /// The form that the disk also has, for which the command refuses it.
    fn other_form(&self, what: &Path) -> &'static str {
        match self.verify(what).expect_err("it has two forms") {
            SignedProgramsError::OtherForm { what, .. } => what,
            refused => panic!("{refused}"),
        }
    }
}

fn bytes_at(disk: &File, at: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    disk.read_exact_at(&mut bytes, at).expect("readable");
    bytes
}

/// The attack: the first bytes, which code for a BIOS has, are the header of a container with an unsigned disk. The
/// programs and the partition table stay as they are.
#[test]
fn a_signed_disk_with_the_header_of_a_container_does_not_count_as_signed() {
    let mut signed = SignedDisk::new(ImageForm::Raw);
    signed.rename("alknet_0.1.0.qcow2");
    let folder = signed.owner.path("out");
    let disk = signed.open();
    for (at, header, form) in [
        (0, &b"QFI\xfb\0\0\0\x03"[..], "qcow2"),
        (0, b"KDMV\x01\0\0\0", "VMDK"),
        (0, b"# Disk DescriptorFile\nversion=1\n", "VMDK"),
        (0, b"\nversion=1\ncreateType=\"monolithicFlat\"\n", "VMDK"),
        (0, b"conectix", "VHD"),
        (0x40, b"\x7f\x10\xda\xbe", "VDI"),
        (257, b"ustar\0", "tar"),
        // An empty frame, and one that is skipped up to the other disk.
        (
            0,
            b"\x28\xb5\x2f\xfd\x20\0\x01\0\0\x50\x2a\x4d\x18",
            "Zstandard",
        ),
    ] {
        let before = bytes_at(&disk, at, header.len());
        disk.write_all_at(header, at).expect("writable");
        for what in [&signed.path, &folder] {
            let found = signed.other_form(what);
            assert!(found.contains(form), "{form}: {found}");
        }
        disk.write_all_at(&before, at).expect("writable");
        for what in [&signed.path, &folder] {
            let checked = signed.verify(what).expect("it has one form again");
            assert_eq!(checked, 2, "{form}");
        }
    }
}

/// The attack: a signed disk with the end of a disk image of macOS, which names its blocks. Programs search it.
#[test]
fn a_signed_disk_with_the_end_of_a_macos_image_does_not_count_as_signed() {
    let signed = SignedDisk::new(ImageForm::Raw);
    let disk = signed.open();
    let bytes = disk.metadata().expect("ours").len();
    for (at, longer) in [(bytes, 512), (bytes + 88, 600)] {
        disk.set_len(bytes + longer).expect("writable");
        disk.write_all_at(b"koly", at).expect("writable");
        let found = signed.other_form(&signed.path);
        assert!(found.contains("macOS"), "{at}: {found}");
        disk.set_len(bytes).expect("writable");
    }
    let checked = signed.verify(&signed.path).expect("it has one form again");
    assert_eq!(checked, 2);
}

/// The attack: a footer that names tables of a VHD in the data partition, or another size.
#[test]
fn a_vhd_whose_footer_describes_another_disk_does_not_count_as_signed() {
    let signed = SignedDisk::new(ImageForm::Vhd);
    assert_eq!(signed.verify(&signed.path).expect("it is signed"), 2);
    let disk = signed.open();
    let bytes = disk.metadata().expect("ours").len();
    let at = bytes - FOOTER_BYTES;
    let footer = bytes_at(&disk, at, FOOTER_BYTES as usize);
    for (place, field) in [
        // A dynamic disk.
        (KIND_AT, &3_u32.to_be_bytes()[..]),
        (FURTHER_HEADER_AT, &(264_u64 << 20).to_be_bytes()[..]),
        (DISK_BYTES_AT, &(at - FOOTER_BYTES).to_be_bytes()[..]),
    ] {
        let mut changed = footer.clone();
        changed[place..place + field.len()].copy_from_slice(field);
        changed[CHECKSUM_AT..CHECKSUM_AT + 4].fill(0);
        let sum: u32 = changed.iter().map(|byte| u32::from(*byte)).sum();
        changed[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&(!sum).to_be_bytes());
        disk.write_all_at(&changed, at).expect("writable");
        let found = signed.other_form(&signed.path);
        assert!(found.contains("VHD"), "byte {place}: {found}");
    }
    // The last byte of the footer has no meaning, and old programs write none.
    disk.write_all_at(&footer, at).expect("writable");
    disk.set_len(bytes - 1).expect("writable");
    let found = signed.other_form(&signed.path);
    assert!(found.contains("VHD"), "{found}");
    disk.set_len(bytes).expect("writable");
    let checked = signed.verify(&signed.path).expect("the footer is whole");
    assert_eq!(checked, 2);
}
