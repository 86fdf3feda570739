//! Files for a disk that travels, read by the programs that they are for.

use std::fs;
use std::os::unix::fs::FileExt;

use alknet_image::{ImageError, ImageForm, Manifest, OutputRole, PackOptions, pack};
use serde_json::Value;

use crate::released::{ReleaseFolder, options};
use crate::support::{InputFolder, run, text};

#[test]
fn zstd_unpacks_the_disk_and_knows_its_size() {
    let release = ReleaseFolder::shared();
    let packed = release.file(OutputRole::PackedDisk);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let out = dir.path().join("disk");
    run("zstd", &["-d", "-q", "-o", text(&out), text(&packed)]);
    run("cmp", &[text(&out), text(&release.raw())]);
    let bytes = fs::metadata(release.raw()).expect("it exists").len();
    let facts = run("zstd", &["-lv", text(&packed)]);
    assert!(facts.contains(&format!("({bytes} B)")), "{facts}");
    assert!(facts.contains("XXH64"), "no checksum: {facts}");
}

#[test]
fn bmaptool_writes_the_disk_by_our_map() {
    let release = ReleaseFolder::shared();
    let map = release.file(OutputRole::BlockMap);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let out = dir.path().join("disk");
    // It compares the checksum of the map, and of each range that it reads.
    let said = run(
        "bmaptool",
        &[
            "copy",
            "--bmap",
            text(&map),
            text(&release.raw()),
            text(&out),
        ],
    );
    assert!(said.contains("block map format version 2.0"), "{said}");
    run("cmp", &[text(&out), text(&release.raw())]);
}

#[test]
fn bmaptool_refuses_a_disk_that_is_not_the_one_of_the_map() {
    let release = ReleaseFolder::shared();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let other = dir.path().join("other.raw");
    run(
        "cp",
        &["--sparse=always", text(&release.raw()), text(&other)],
    );
    let file = fs::File::options().write(true).open(&other).expect("ours");
    file.write_all_at(b"x", (1 << 20) + 100).expect("writable");
    let (map, out) = (release.file(OutputRole::BlockMap), dir.path().join("disk"));
    let refused = crate::support::output(
        "bmaptool",
        &["copy", "--bmap", text(&map), text(&other), text(&out)],
    );
    assert!(!refused.status.success());
}

/// The rules of `doc/json-schema/os-list-schema.json` of Raspberry Pi Imager, written by hand: no package with Imager
/// or its schema was found.
#[test]
fn the_list_for_imager_has_every_field_that_imager_demands() {
    let release = ReleaseFolder::shared();
    let list = fs::read(release.file(OutputRole::RpiImager)).expect("written");
    let list: Value = serde_json::from_slice(&list).expect("JSON");
    let entry = &list["os_list"][0];
    for field in [
        "name",
        "description",
        "icon",
        "url",
        "extract_sha256",
        "release_date",
    ] {
        assert!(
            entry[field].as_str().is_some_and(|text| !text.is_empty()),
            "{field}"
        );
    }
    let output = |role| {
        let mut outputs = release.manifest.outputs.iter();
        let found = outputs.find(|it| it.role == role && it.form == ImageForm::Raw);
        found.expect("it was packed")
    };
    let (disk, packed) = (output(OutputRole::Disk), output(OutputRole::PackedDisk));
    assert_eq!(entry["extract_size"], disk.bytes);
    assert_eq!(entry["extract_sha256"], *disk.sha256);
    assert_eq!(entry["image_download_size"], packed.bytes);
    assert_eq!(entry["image_download_sha256"], *packed.sha256);
    assert_eq!(
        entry["url"],
        format!("https://example.org/images/{}", packed.file)
    );
    assert_eq!(entry["release_date"], "2027-01-31");
    assert_eq!(entry["init_format"], "none");
    // The schema knows no other members here, and demands these of a device.
    let members = |value: &Value| -> Vec<String> {
        let object = value.as_object().expect("an object");
        object.keys().cloned().collect()
    };
    assert_eq!(members(&list), ["imager", "os_list"]);
    assert_eq!(members(&list["imager"]), ["devices"]);
    let device = &list["imager"]["devices"][0];
    for field in ["name", "description"] {
        assert!(device[field].is_string(), "{field} of {device}");
    }
    let tags = device["tags"].as_array().expect("a list");
    assert!(!tags.is_empty() && tags.iter().all(Value::is_string));
    assert_eq!(device["tags"], entry["devices"]);
}

#[test]
fn packing_again_elsewhere_gives_the_same_files() {
    let release = ReleaseFolder::shared();
    let dir = tempfile::tempdir().expect("a temporary folder");
    for _ in 0..2 {
        InputFolder::new().build(&[ImageForm::Uki, ImageForm::Raw], dir.path());
        // Also where the files are there already.
        for _ in 0..2 {
            let manifest = pack(dir.path(), &options(), &mut |_| {}).expect("a disk is there");
            assert_eq!(manifest, release.manifest);
            assert_eq!(Manifest::read(dir.path()).expect("written"), manifest);
        }
    }
    let names = release.manifest.outputs.iter().map(|it| it.file.as_str());
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    names.dedup();
    let check = format!(
        "cd '{}' && sha256sum --strict -c ./*.sha256",
        text(dir.path())
    );
    assert_eq!(run("sh", &["-c", &check]).lines().count(), names.len());
}

#[test]
fn a_folder_without_a_disk_and_a_wrong_date_are_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    InputFolder::new().build(&[ImageForm::Uki], dir.path());
    let before = fs::read(dir.path().join("manifest.json")).expect("written");
    let refused = pack(dir.path(), &options(), &mut |_| {}).expect_err("no disk");
    assert_eq!(refused.exit_code(), 2);
    for date in ["2027-1-31", "today", "2027-01-31T", "2027/01/31"] {
        let options = PackOptions {
            release_date: Some(date.into()),
            ..PackOptions::default()
        };
        let refused = pack(dir.path(), &options, &mut |_| {}).expect_err(date);
        assert!(refused.to_string().contains("release date"), "{refused}");
    }
    let after = fs::read(dir.path().join("manifest.json")).expect("it stays");
    assert_eq!(before, after);
}

/// The attack: another person who can write to the folder exchanges the disk between the build and the packing.
#[test]
fn a_disk_that_is_not_the_one_of_the_manifest_is_not_packed() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let built = InputFolder::new().build(&[ImageForm::Raw], dir.path());
    let raw = built.path(dir.path(), ImageForm::Raw, OutputRole::Disk);
    let raw = raw.expect("it was built");
    let file = fs::File::options().write(true).open(&raw).expect("ours");
    file.write_all_at(b"x", (1 << 20) + 100).expect("writable");
    let refused = pack(dir.path(), &options(), &mut |_| {}).expect_err("another disk");
    match &refused {
        ImageError::OtherContent { path, .. } => assert_eq!(path, &raw),
        refused => panic!("{refused}"),
    }
    assert!(!raw.with_extension("raw.zst").exists());
    assert_eq!(Manifest::read(dir.path()).expect("it stays"), built);
}

/// The attack: another person has put a copy of the disk at its path, and still has it open to write to it when the
/// command has compared it.
#[test]
fn a_disk_that_is_changed_after_the_comparison_changes_no_map() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    InputFolder::new().build(&[ImageForm::Raw], dir.path());
    let packed = pack(dir.path(), &options(), &mut |_| {}).expect("a disk is there");
    let path = |role| {
        let path = packed.path(dir.path(), ImageForm::Raw, role);
        path.expect("it was packed")
    };
    let files = [OutputRole::PackedDisk, OutputRole::BlockMap].map(path);
    let before = files.clone().map(|file| fs::read(file).expect("written"));
    let mut opened = fs::File::options();
    let opened = opened.read(true).write(true);
    let disk = opened.open(path(OutputRole::Disk)).expect("ours");
    let at = (1 << 20) + 100;
    let mut right = [0];
    disk.read_exact_at(&mut right, at).expect("readable");
    for step in ["compressing the disk", "mapping the disk"] {
        disk.write_all_at(&right, at).expect("writable");
        let mut is_changed = false;
        let again = pack(dir.path(), &options(), &mut |now| {
            if now == step {
                disk.write_all_at(b"x", at).expect("writable");
                is_changed = true;
            }
        });
        assert!(is_changed, "{step}");
        assert_eq!(again.expect("it was the right disk"), packed, "{step}");
        let after = files.clone().map(|file| fs::read(file).expect("written"));
        assert!(after == before, "{step}");
    }
}
