//! Labels of volumes made with the usual tools.

use std::fs::{self, File};
use std::path::Path;

use alknet_provisioning::{FileSystem, volume_label};

use crate::tools::tool;

fn check(image: &Path, file_system: FileSystem, label: &str) {
    let mut device = File::open(image).expect("the tool wrote it");
    let found = volume_label(&mut device).expect("readable");
    let found = found.expect("a volume");
    assert_eq!(
        (found.file_system, found.label.as_str()),
        (file_system, label)
    );
}

#[test]
fn mkfs_vfat_in_every_size() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let image = dir.path().join("seed");
    for (bits, megabytes) in [("12", 1), ("16", 20), ("32", 40)] {
        let file = File::create(&image).expect("a writable directory");
        file.set_len(megabytes << 20).expect("a sparse file");
        let args = ["-F", bits, "-n", "CIDATA", "seed"];
        tool("mkfs.vfat", &args, dir.path());
        check(&image, FileSystem::Vfat, "CIDATA");
    }
}

#[test]
fn mtools() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let args = ["-C", "-f", "1440", "-v", "cidata", "-i", "seed", "::"];
    tool("mformat", &args, dir.path());
    check(&dir.path().join("seed"), FileSystem::Vfat, "CIDATA");
}

#[test]
fn xorriso() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for name in ["user-data", "meta-data"] {
        fs::write(dir.path().join(name), "").expect("a writable directory");
    }
    let args = [
        "-as",
        "mkisofs",
        "-quiet",
        "-o",
        "seed",
        "-V",
        "cidata",
        "-J",
        "-r",
        "user-data",
        "meta-data",
    ];
    tool("xorriso", &args, dir.path());
    check(&dir.path().join("seed"), FileSystem::Iso9660, "cidata");
}
