//! What the command line will call.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;

use alknet_tensor::tools::{ArrayFormat, KindRow, Npy, RewriteOptions, cat, convert, list, pack};
use alknet_tensor::{
    AtomicFile, ContainerLimits, ContainerReader, Dtype, TensorErrorCode, TensorKind, VerifyDepth,
    verify,
};

use crate::common::{TEXTS, file, open, sample};

/// A fresh folder that goes with the build.
fn folder(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join("tools")
        .join(name);
    fs::remove_dir_all(&path).ok();
    fs::create_dir_all(&path).expect("writable");
    path
}

fn array(descr: &str, shape: &str, elements: &[u8]) -> Vec<u8> {
    let literal = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut array = b"\x93NUMPY\x01\0".to_vec();
    array.extend((literal.len() as u16).to_le_bytes());
    array.extend(literal.as_bytes());
    array.extend(elements);
    array
}

#[test]
fn a_listing_says_what_is_in_a_file() {
    let bytes = sample();
    let listing = list(&open(&bytes).expect("good"));
    assert_eq!((listing.level, listing.file_len), (1, bytes.len() as u64));
    assert_eq!(listing.metadata, [("format".to_owned(), "pt".to_owned())]);
    let names: Vec<_> = listing
        .tensors
        .iter()
        .map(|row| row.name.as_str())
        .collect();
    assert_eq!(
        names,
        ["weights", "things", "texts", "nothing", "one", "flags"]
    );
    assert!(matches!(
        &listing.tensors[2].kind,
        KindRow::Blob { count: 4, .. }
    ));
    let json = serde_json::to_value(&listing).expect("it can be said");
    assert_eq!(json["tensors"][1]["kind"], "struct");
    assert_eq!(json["tensors"][1]["fields"][2]["type"], "Float32");
}

#[test]
fn a_tensor_is_written_as_bytes_or_as_an_array() {
    let bytes = sample();
    let reader = open(&bytes).expect("good");
    let out = |name: &str, rows, npy| {
        let mut out = Vec::new();
        cat(&reader, name, rows, npy, &mut out).map(|()| out)
    };
    assert_eq!(
        out("texts", None, false).expect("bytes"),
        TEXTS.concat().as_bytes()
    );
    assert_eq!(out("weights", Some(1..2), false).expect("a row").len(), 12);
    let array = out("weights", Some(1..2), true).expect("an array");
    let npy = Npy::read(&array[..]).expect("an array");
    assert_eq!(
        (npy.header.dtype, &npy.header.shape[..]),
        (Dtype::F32, &[1, 3][..])
    );
    assert_eq!(
        out("weights", Some(1..3), true)
            .expect_err("two rows")
            .code(),
        TensorErrorCode::Shape
    );
    assert_eq!(
        out("nobody", None, true).expect_err("nobody").code(),
        TensorErrorCode::NotFound
    );
}

#[test]
fn files_become_each_other() {
    let folder = folder("convert");
    let go = |from: &str, to: &str| {
        let (from, to) = (folder.join(from), folder.join(to));
        let formats = [&from, &to].map(|path| ArrayFormat::from_path(path).expect("a known name"));
        let limits = ContainerLimits::safetensors();
        convert(
            (&from, formats[0]),
            (&to, formats[1]),
            RewriteOptions::default(),
            &limits,
        )
    };
    let bytes = |name: &str| fs::read(folder.join(name)).expect("there");
    fs::write(folder.join("a.mt"), sample()).expect("writable");
    go("a.mt", "a.safetensors").expect("stripped");
    let plain = open(&bytes("a.safetensors")).expect("good").meta().level();
    assert_eq!(plain, 0);
    go("a.mt", "again.mt").expect("written again");
    assert!(bytes("again.mt") == bytes("a.mt"));
    go("a.mt", "a.npz").expect("an archive");
    go("a.npz", "back.safetensors").expect("a container");
    // The archive has no place for the metadata.
    let (back, plain) = (bytes("back.safetensors"), bytes("a.safetensors"));
    let (back, plain) = (open(&back).expect("good"), open(&plain).expect("good"));
    assert_eq!(
        back.names().collect::<Vec<_>>(),
        plain.names().collect::<Vec<_>>()
    );
    for name in plain.names() {
        assert_eq!(
            back.view(name).expect("there").bytes(),
            plain.view(name).expect("there").bytes()
        );
    }
    fs::write(folder.join("x.npy"), array(">u2", "(2,)", &[1, 2, 3, 4])).expect("writable");
    go("x.npy", "x.mt").expect("a container");
    let x = bytes("x.mt");
    assert_eq!(
        open(&x).expect("good").view("x").expect("there").bytes(),
        [2, 1, 4, 3]
    );
    go("x.mt", "y.npy").expect("an array");
    let y = bytes("y.npy");
    assert_eq!(Npy::read(&y[..]).expect("an array").header.shape, [2]);

    for (from, to, code) in [
        ("a.mt", "z.npy", TensorErrorCode::Shape),
        ("x.npy", "z.npz", TensorErrorCode::Dtype),
        ("x.npy", "x.npy", TensorErrorCode::Dtype),
        ("nobody.mt", "z.mt", TensorErrorCode::Io),
        ("x.npy.mt", "z.mt", TensorErrorCode::Io),
    ] {
        let error = go(from, to).expect_err("refused");
        assert_eq!(error.code(), code, "{error}");
        assert!(!folder.join(to).exists() || to == from, "{to}");
    }
    fs::write(folder.join("no.npz"), "no archive").expect("writable");
    assert_eq!(
        go("no.npz", "z.mt").expect_err("no archive").code(),
        TensorErrorCode::Header
    );
    assert_eq!(
        ArrayFormat::from_path("a.txt".as_ref())
            .expect_err("unknown")
            .code(),
        TensorErrorCode::NotFound
    );
}

#[test]
fn archives_that_lie_are_refused() {
    let folder = folder("archives");
    let write = |files: &[(&str, Vec<u8>)]| {
        let path = folder.join("a.npz");
        let mut archive = zip::ZipWriter::new(File::create(&path).expect("writable"));
        for (name, bytes) in files {
            let options = zip::write::SimpleFileOptions::default();
            archive.start_file(*name, options).expect("writable");
            archive.write_all(bytes).expect("writable");
        }
        archive.finish().expect("writable");
        let to = (&*folder.join("a.mt"), ArrayFormat::Metatensor);
        convert(
            (&path, ArrayFormat::Npz),
            to,
            RewriteOptions::default(),
            &ContainerLimits::default(),
        )
    };
    let good = array("|u1", "(3,)", &[1, 2, 3]);
    write(&[("a.npy", good.clone())]).expect("good");
    write(&[]).expect("nothing in it");
    let refused = |files: &[(&str, Vec<u8>)]| write(files).expect_err("refused").code();
    assert_eq!(refused(&[("a.txt", good.clone())]), TensorErrorCode::Header);
    assert_eq!(
        refused(&[("a.npy", b"no array".to_vec())]),
        TensorErrorCode::Header
    );
    assert_eq!(
        refused(&[("a.npy", array("|u1", "(4,)", &[1, 2, 3]))]),
        TensorErrorCode::Io
    );
    assert_eq!(
        refused(&[("a.npy", array("|u1", "(2,)", &[1, 2, 3]))]),
        TensorErrorCode::Shape
    );
    let huge = array("<f8", "(18014398509481984,)", &[0; 8]);
    assert_eq!(refused(&[("a.npy", huge)]), TensorErrorCode::Io);
    let beyond = array("<f8", "(4611686018427387904,)", &[0; 8]);
    assert_eq!(refused(&[("a.npy", beyond)]), TensorErrorCode::Overflow);
    assert_eq!(refused(&[("__pad__.0.npy", good)]), TensorErrorCode::Header);
}

#[test]
fn a_folder_is_packed() {
    let folder = folder("pack");
    let (input, output) = (folder.join("in"), folder.join("out.mt"));
    fs::create_dir_all(input.join("sub")).expect("writable");
    fs::write(input.join("w.npy"), array("<f4", "(1,)", &[0, 0, 128, 63])).expect("writable");
    fs::write(input.join("sub/config.json"), "{\"a\":1}").expect("writable");
    fs::write(input.join("sub/raw.bin"), [0, 255]).expect("writable");
    fs::write(input.join("empty.txt"), "").expect("writable");
    std::os::unix::fs::symlink("../w.npy", input.join("sub/link.npy")).expect("writable");
    let write = || {
        let sink = AtomicFile::create(&output)?;
        pack(&input, sink, RewriteOptions::default())?.1.commit()
    };
    write().expect("packed");
    let file = File::open(&output).expect("there");
    let reader = ContainerReader::open(file, &ContainerLimits::default()).expect("good");
    let names: Vec<_> = reader.names().collect();
    assert_eq!(
        names,
        [
            "empty.txt",
            "sub/config.json",
            "sub/link",
            "sub/raw.bin",
            "w"
        ]
    );
    assert_eq!(
        reader
            .view("sub/link")
            .expect("there")
            .to_f32()
            .expect("real"),
        [1.0]
    );
    assert_eq!(
        &*reader.item("sub/config.json", 0).expect("there"),
        b"{\"a\":1}"
    );
    let enc = |name: &str| match reader.tensor(name).expect("there").kind() {
        TensorKind::Blob(blob) => blob.enc().to_owned(),
        _ => "none".to_owned(),
    };
    assert_eq!(
        ["sub/config.json", "sub/raw.bin", "empty.txt"].map(enc),
        ["json", "bytes", "utf8"]
    );
    assert!(
        verify(&reader, VerifyDepth::Full, None)
            .expect("readable")
            .is_good()
    );

    std::os::unix::fs::symlink(".", input.join("circle")).expect("writable");
    assert_eq!(
        write().expect_err("a folder through a link").code(),
        TensorErrorCode::Io
    );
    fs::remove_file(input.join("circle")).expect("there");
    std::os::unix::fs::symlink("nothing", input.join("lost")).expect("writable");
    let error = write().expect_err("a link to nothing");
    assert_eq!(error.code(), TensorErrorCode::Io);
    assert!(error.what().contains("No such file"), "{error}");
}

#[test]
fn unknown_types_survive_being_written_again() {
    let header = r#"{"a":{"dtype":"F2","shape":[7],"data_offsets":[0,3]},"b":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}}"#;
    let folder = folder("opaque");
    let [plain, mt, back] = ["a.safetensors", "a.mt", "b.safetensors"].map(|n| folder.join(n));
    fs::write(&plain, file(header, 4)).expect("writable");
    let limits = ContainerLimits::default();
    let go = |from: (&_, _), to: (&_, _)| convert(from, to, RewriteOptions::default(), &limits);
    go(
        (&*plain, ArrayFormat::Safetensors),
        (&*mt, ArrayFormat::Metatensor),
    )
    .expect("written");
    go(
        (&*mt, ArrayFormat::Metatensor),
        (&*back, ArrayFormat::Safetensors),
    )
    .expect("stripped");
    let reader = ContainerReader::open(fs::read(&back).expect("there"), &limits).expect("good");
    let entry = reader.meta().entry("a").expect("there");
    assert_eq!(
        (entry.dtype().to_string(), entry.byte_len()),
        ("F2".to_owned(), 3)
    );
}
