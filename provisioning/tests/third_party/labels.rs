//! Volumes made by the tools people make them with. A tool this machine lacks is named and left
//! out: the formats themselves are covered by the unit tests.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use alknet_provisioning::{FileSystem, volume_label};

/// Whether the command ran; a missing program is announced.
fn ran(program: &str, args: &[&str], dir: &Path) -> bool {
    let path = format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    );
    let output = Command::new(program)
        .args(args)
        .env("PATH", path)
        .current_dir(dir)
        .output();
    match output {
        Ok(output) => {
            assert!(output.status.success(), "{program}: {output:?}");
            true
        }
        Err(error) => {
            eprintln!("left out: {program}: {error}");
            false
        }
    }
}

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
        if ran(
            "mkfs.vfat",
            &["-F", bits, "-n", "CIDATA", "seed"],
            dir.path(),
        ) {
            check(&image, FileSystem::Vfat, "CIDATA");
        }
    }
}

#[test]
fn mtools() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let args = ["-C", "-f", "1440", "-v", "cidata", "-i", "seed", "::"];
    if ran("mformat", &args, dir.path()) {
        check(&dir.path().join("seed"), FileSystem::Vfat, "CIDATA");
    }
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
    if ran("xorriso", &args, dir.path()) {
        check(&dir.path().join("seed"), FileSystem::Iso9660, "cidata");
    }
}
