//! Files that are added to the EFI system partition, read by mtools and fsck.

use std::process::Command;

use super::*;
use crate::disk::{self, DISK_BYTES};

const PROGRAM: [u8; 5000] = [7; 5000];

fn written() -> File {
    disk::tests::written(&PROGRAM, "a")
}

fn content(volume: &EspVolume<'_>, path: &str) -> Vec<u8> {
    let files = volume.files().expect("readable");
    let file = files.iter().find(|file| file.path == path);
    let mut out = Vec::new();
    let file = file.unwrap_or_else(|| panic!("{path} of {files:?}"));
    volume.copy(file, &mut out).expect("readable");
    out
}

/// The partition as a file, which other programs read.
fn cut_out(disk: &File) -> tempfile::NamedTempFile {
    let out = tempfile::NamedTempFile::new().expect("a temporary file");
    let mut bytes = vec![0; ESP_BYTES as usize];
    disk.read_exact_at(&mut bytes, ESP_FIRST_LBA * LBA_BYTES)
        .expect("readable");
    out.as_file().write_all_at(&bytes, 0).expect("writable");
    out
}

#[test]
fn added_files_are_read_by_mtools_and_accepted_by_fsck() {
    let disk = written();
    let mut volume = EspVolume::open(&disk).expect("ours");
    let program = volume.files().expect("readable")[0].path.clone();
    volume.add("alknet.toml", b"[node]\n").expect("room");
    let words = vec![b'w'; 9000];
    volume.add("alknet/vault.words", &words).expect("room");
    volume.add("alknet/seed.key", b"").expect("room");
    let again = EspVolume::open(&disk).expect("ours");
    assert_eq!(content(&again, "alknet.toml"), b"[node]\n");
    assert_eq!(content(&again, "alknet/vault.words"), words);
    assert_eq!(content(&again, "alknet/seed.key"), b"");
    assert_eq!(content(&again, &program), PROGRAM);
    let esp = cut_out(&disk);
    let checked = Command::new("/usr/sbin/fsck.vfat")
        .arg("-n")
        .arg(esp.path())
        .output();
    let checked = checked.expect("dosfstools is installed");
    let said = String::from_utf8_lossy(&checked.stdout);
    assert!(checked.status.success(), "{said}");
    let read = Command::new("mtype")
        .args(["-i".as_ref(), esp.path().as_os_str()])
        .arg("::/alknet.toml")
        .output();
    assert_eq!(read.expect("mtools is installed").stdout, b"[node]\n");
}

#[test]
fn a_second_file_of_a_name_is_refused_in_any_case() {
    let disk = written();
    let mut volume = EspVolume::open(&disk).expect("ours");
    volume.add("alknet.toml", b"a").expect("room");
    let error = volume.add("ALKNET.TOML", b"b").expect_err("it exists");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let error = volume.add("alknet.toml/x", b"b").expect_err("a file");
    assert_eq!(error.kind(), ErrorKind::NotADirectory);
}

#[test]
fn a_folder_grows_beyond_its_cluster() {
    let disk = written();
    let mut volume = EspVolume::open(&disk).expect("ours");
    for number in 0..60 {
        let name = format!("{number}.a-name-of-two-parts-{number}");
        volume.add(&name, name.as_bytes()).expect("room");
    }
    let again = EspVolume::open(&disk).expect("ours");
    for number in [0, 59] {
        let name = format!("{number}.a-name-of-two-parts-{number}");
        assert_eq!(content(&again, &name), name.as_bytes());
    }
}

#[test]
fn what_does_not_fit_and_what_is_no_volume_is_refused() {
    let disk = written();
    let mut volume = EspVolume::open(&disk).expect("ours");
    let error = volume
        .add("a", &vec![1; ESP_BYTES as usize])
        .expect_err("full");
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    for name in ["", "a:b", "a\nb"] {
        let error = volume.add(name, b"x").expect_err(name);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name:?}");
    }
    let empty = tempfile::tempfile().expect("a temporary file");
    empty.set_len(DISK_BYTES).expect("sparse");
    let error = EspVolume::open(&empty).expect_err("no volume");
    assert_eq!(error.kind(), ErrorKind::InvalidData);
}

#[test]
fn a_chain_with_a_loop_is_damage() {
    let disk = written();
    let mut volume = EspVolume::open(&disk).expect("ours");
    let root = volume.root as usize;
    volume.table[root] = volume.root;
    let error = volume.files().expect_err("a loop");
    assert_eq!(error.kind(), ErrorKind::InvalidData);
}
