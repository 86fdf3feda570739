//! Files on a disk: read by offset, mapped, cut short, replaced.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;

use alknet_tensor::{
    AtomicFile, ContainerLimits, ContainerReader, ContainerWriter, Dtype, FileId,
    HEADER_SIGNATURE_CONTEXT, TensorContent, TensorErrorCode, VerifyDepth,
    header_signature_message, verify,
};
use alknet_test_support::skip;

use crate::common::{open, sample};

/// A folder that goes away.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::remove_dir_all(&path).ok();
        fs::create_dir_all(&path).expect("writable");
        Self(path)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).expect("readable");
        let name = |e: std::io::Result<fs::DirEntry>| e.expect("readable").file_name();
        entries
            .map(|e| name(e).into_string().expect("UTF-8"))
            .collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

#[test]
fn a_file_is_read_by_offset_and_mapped() {
    let folder = Folder::new("read");
    let path = folder.0.join("sample.mt");
    fs::write(&path, sample()).expect("writable");
    let reader = ContainerReader::open(
        File::open(&path).expect("there"),
        &ContainerLimits::default(),
    );
    let reader = reader.expect("a good file");
    let view = reader.view("weights").expect("readable");
    assert_eq!(
        view.as_slice::<f32>().expect("aligned"),
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    );
    let rows = reader.rows("weights", 1..2).expect("a row");
    assert_eq!(rows.as_slice::<f32>().expect("aligned"), [3.0, 4.0, 5.0]);
    assert_eq!(
        &*reader.item("texts", 2).expect("an item"),
        "größe".as_bytes()
    );
    assert!(
        verify(&reader, VerifyDepth::Full, None)
            .expect("readable")
            .is_good()
    );

    let file = File::open(&path).expect("there");
    // SAFETY: no other process has a name for the file, and it stays as it is until the folder goes.
    let mapped =
        unsafe { ContainerReader::map(&file, &ContainerLimits::default()) }.expect("a good file");
    let view = mapped.view("weights").expect("mapped");
    assert_eq!(
        view.as_slice::<f32>().expect("aligned"),
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    );
    assert!(
        verify(&mapped, VerifyDepth::Full, None)
            .expect("readable")
            .is_good()
    );
}

#[test]
fn a_file_that_is_cut_short_is_an_error() {
    let folder = Folder::new("cut");
    let path = folder.0.join("sample.mt");
    fs::write(&path, sample()).expect("writable");
    let reader = ContainerReader::open(
        File::open(&path).expect("there"),
        &ContainerLimits::default(),
    );
    let reader = reader.expect("a good file");
    let cut = File::options().write(true).open(&path).expect("there");
    cut.set_len(reader.meta().data_start() + 4)
        .expect("writable");
    for error in [
        reader.view("weights").expect_err("cut").code(),
        reader.item("texts", 0).expect_err("cut").code(),
        verify(&reader, VerifyDepth::Hash, None)
            .expect_err("cut")
            .code(),
    ] {
        assert_eq!(error, TensorErrorCode::Io);
    }
    let again = ContainerReader::open(
        File::open(&path).expect("there"),
        &ContainerLimits::default(),
    );
    assert_eq!(again.expect_err("cut").code(), TensorErrorCode::Tiling);
    let folder = ContainerReader::open(
        File::open(&folder.0).expect("there"),
        &ContainerLimits::default(),
    );
    assert_eq!(folder.expect_err("no file").code(), TensorErrorCode::Io);
}

#[test]
fn a_file_is_there_whole_or_not_at_all() {
    let folder = Folder::new("whole");
    let path = folder.0.join("out.mt");
    fs::write(&path, "before").expect("writable");
    let write = |shape: u64| {
        let mut writer = ContainerWriter::create(&path).expect("writable");
        writer
            .flat(
                "a",
                Dtype::U8,
                &[shape],
                TensorContent::reader(&[1, 2, 3][..]),
            )
            .expect("it fits");
        writer.save()
    };
    for (shape, code) in [(2, TensorErrorCode::Shape), (4, TensorErrorCode::Shape)] {
        assert_eq!(write(shape).expect_err("another size").code(), code);
        assert_eq!(fs::read(&path).expect("there"), b"before");
    }
    let written = write(3).expect("the right size");
    let file = fs::read(&path).expect("there");
    assert_eq!(written.id, FileId(blake3::hash(&file)));
    assert_eq!(written.file_len, file.len() as u64);
    assert_eq!(
        open(&file).expect("good").view("a").expect("there").bytes(),
        [1, 2, 3]
    );
    assert_eq!(folder.names(), ["out.mt"]);
    drop(AtomicFile::create(folder.0.join("never")).expect("writable"));
    assert_eq!(folder.names(), ["out.mt"]);
    let nowhere = AtomicFile::create(folder.0.join("no/such/folder"));
    assert_eq!(nowhere.expect_err("no folder").code(), TensorErrorCode::Io);
}

#[test]
fn a_file_too_long_for_memory_is_an_error() {
    // File systems on disks end at some TiB. Files of the one in memory are as long as they can be, and
    // their holes take no memory.
    let folder = tempfile::tempdir_in("/dev/shm").expect("writable");
    let path = folder.path().join("long.safetensors");
    let len = 1_u64 << 52;
    let header = format!(r#"{{"a":{{"dtype":"U8","shape":[{len}],"data_offsets":[0,{len}]}}}}"#);
    let mut file = File::create(&path).expect("writable");
    file.write_all(&(header.len() as u64).to_le_bytes())
        .expect("writable");
    file.write_all(header.as_bytes()).expect("writable");
    let open = || {
        ContainerReader::open(
            File::open(&path).expect("there"),
            &ContainerLimits::default(),
        )
    };
    if let Err(error) = file.set_len(8 + header.len() as u64 + len) {
        assert_eq!(open().expect_err("cut").code(), TensorErrorCode::Tiling);
        skip!(
            "files of 4 PiB",
            "the file system has no such files: {error}"
        );
    }
    let reader = open().expect("it tiles");
    assert_eq!(
        reader.view("a").expect_err("no memory").code(),
        TensorErrorCode::Limit
    );
    assert_eq!(reader.rows("a", 5..9).expect("some").bytes(), [0; 4]);
}

#[test]
fn what_was_changed_is_found() {
    let good = sample();
    let reader = open(&good).expect("good");
    let report = verify(&reader, VerifyDepth::Full, None).expect("in memory");
    assert!(report.is_good() && report.unhashed == 0, "{report:?}");
    // Six tensors, the offsets of one, and the data.
    assert_eq!(report.hashes, 8);
    let found = |name: &str, at: u64, level| {
        let mut file = good.clone();
        let entry = reader.meta().entry(name).expect("there");
        file[(entry.file_range().start + at) as usize] ^= 0x80;
        let report = verify(&open(&file).expect("the header is whole"), level, None);
        let problems = report.expect("in memory").problems;
        problems
            .iter()
            .map(|problem| problem.code())
            .collect::<Vec<_>>()
    };
    for name in [
        "weights",
        "things",
        "texts",
        "texts.__off__",
        "one",
        "flags",
    ] {
        assert_eq!(found(name, 0, VerifyDepth::Meta), []);
        assert_eq!(
            found(name, 0, VerifyDepth::Hash),
            [TensorErrorCode::Hash, TensorErrorCode::Hash],
            "{name}"
        );
    }
    // Which bytes are no value of their type is found beside the hashes.
    let beside = [TensorErrorCode::Hash, TensorErrorCode::Hash];
    assert_eq!(
        found("flags", 1, VerifyDepth::Full),
        [&beside[..], &[TensorErrorCode::Value]].concat()
    );
    assert_eq!(
        found("things", 4, VerifyDepth::Full),
        [&beside[..], &[TensorErrorCode::Value]].concat()
    );
    assert_eq!(
        found("texts", 0, VerifyDepth::Full),
        [&beside[..], &[TensorErrorCode::Value]].concat()
    );
    assert_eq!(
        found("texts.__off__", 0, VerifyDepth::Full),
        [&beside[..], &[TensorErrorCode::Layout]].concat()
    );
    let pad = reader
        .meta()
        .entries()
        .find(|entry| entry.is_pad())
        .expect("there are pads");
    assert_eq!(
        found(pad.name(), 0, VerifyDepth::Hash),
        [TensorErrorCode::Hash]
    );
    assert_eq!(
        found(pad.name(), 0, VerifyDepth::Full),
        [TensorErrorCode::Hash, TensorErrorCode::Value]
    );
}

#[test]
fn a_header_is_signed_by_its_hash() {
    let file = sample();
    let reader = open(&file).expect("good");
    let hash = reader.header_hash().expect("in memory");
    let end = reader.meta().data_start() as usize;
    assert_eq!(hash, blake3::hash(&file[..end]));
    let message = header_signature_message(&hash);
    assert_eq!(
        message,
        [HEADER_SIGNATURE_CONTEXT, hash.as_bytes()].concat()
    );
    assert_eq!(message.len(), 24 + 32);
    let id = FileId(blake3::hash(&file));
    assert_eq!(id.to_string().parse::<FileId>().expect("it is one"), id);
    assert_eq!(
        "00".parse::<FileId>().expect_err("too short").code(),
        TensorErrorCode::Hash
    );
}
