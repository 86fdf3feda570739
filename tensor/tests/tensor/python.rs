//! The stock Python package, on both ends.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alknet_tensor::tools::{RewriteOptions, rewrite, strip};
use alknet_tensor::{Dtype, TensorView};
use alknet_test_support::limited;
use serde_json::{Value, json};

use crate::common::{RECORDS, TEXTS, open, sample};

/// Where the set-up put the packages.
const PACKAGES_VARIABLE: &str = "ALKNET_TEST_PYTHONPATH";
/// How long Python may take.
const PATIENCE: Duration = Duration::from_secs(120);

fn python(verb: &str, folder: &Path) {
    let packages = std::env::var_os(PACKAGES_VARIABLE).unwrap_or_else(|| {
        panic!("{PACKAGES_VARIABLE} is not set; run these tests with `cargo xtask test`")
    });
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tensor/interop.py");
    let output = limited(PATIENCE, "python3")
        .arg(script)
        .arg(verb)
        .arg(folder)
        .env("PYTHONPATH", packages)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("timeout is part of every Debian");
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{verb}: {why}");
}

fn folder(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join("python")
        .join(name);
    fs::remove_dir_all(&path).ok();
    fs::create_dir_all(&path).expect("writable");
    path
}

fn bytes(text: &Value) -> Vec<u8> {
    let digits = text.as_str().expect("hex digits").as_bytes().chunks(2);
    let byte = |two: &[u8]| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok();
    digits.map(|two| byte(two).expect("hex digits")).collect()
}

/// The same numbers, and none where they have none.
fn same(ours: &[f32], theirs: &Value, what: &str) {
    let theirs = bytes(theirs);
    let (words, rest) = theirs.as_chunks::<4>();
    assert!(
        rest.is_empty() && words.len() == ours.len(),
        "{what}: {} {}",
        words.len(),
        ours.len()
    );
    for (at, (ours, word)) in ours.iter().zip(words).enumerate() {
        let theirs = f32::from_le_bytes(*word);
        let equal = ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan());
        assert!(equal, "{what}: element {at} is {ours}, theirs {theirs}");
    }
}

#[test]
fn what_python_makes_is_read_and_given_back() {
    let folder = folder("theirs");
    python("make", &folder);
    let facts = fs::read(folder.join("facts.json")).expect("there");
    let facts: Value = serde_json::from_slice(&facts).expect("JSON");
    let file = fs::read(folder.join("all.safetensors")).expect("there");
    let reader = open(&file).expect("a safetensors file");
    let arrays = facts["arrays"].as_object().expect("an object");
    assert_eq!(reader.names().count(), arrays.len());
    assert_eq!(arrays.len(), 13 + 6 + 2);
    for (name, array) in arrays {
        let view = reader.view(name).expect("there");
        assert_eq!(json!(view.shape()), array["shape"], "{name}");
        assert!(view.bytes() == bytes(&array["bytes"]), "{name}");
        match &array["f32"] {
            Value::Null => assert!(view.to_f32().is_err(), "{name}"),
            theirs => same(&view.to_f32().expect("real"), theirs, name),
        }
    }
    for (name, packed) in facts["packed"].as_object().expect("an object") {
        let dtype = Dtype::from_name(name).expect("one of ours");
        let count = packed["shape"][0].as_u64().expect("a size");
        let bytes = bytes(&packed["bytes"]);
        let view = TensorView::new(dtype, vec![count], &bytes).expect("it fits");
        same(&view.to_f32().expect("real"), &packed["f32"], name);
    }
    // With everything this format adds, and without it again: their own bytes.
    let written = rewrite(&reader, Cursor::new(Vec::new()), RewriteOptions::default());
    let metatensor = written.expect("written").1.into_inner();
    let reader = open(&metatensor).expect("good");
    let plain = strip(&reader, Cursor::new(Vec::new()))
        .expect("stripped")
        .1
        .into_inner();
    assert!(plain == file);
}

#[test]
fn what_we_make_is_read_by_python() {
    let folder = folder("ours");
    let file = sample();
    let plain = strip(&open(&file).expect("good"), Cursor::new(Vec::new())).expect("stripped");
    fs::write(folder.join("sample.mt"), &file).expect("writable");
    fs::write(folder.join("stripped.safetensors"), plain.1.into_inner()).expect("writable");
    let expected = json!({ "things": RECORDS, "texts": TEXTS });
    fs::write(folder.join("sample.json"), expected.to_string()).expect("writable");
    python("check", &folder);
}

/// The weights of an ONNX model, by its own package: into a file, through ours, and into a model again.
#[test]
fn weights_of_a_model_are_read_and_given_back() {
    let folder = folder("onnx");
    python("onnx", &folder);
    let facts = fs::read(folder.join("facts.json")).expect("there");
    let facts: Value = serde_json::from_slice(&facts).expect("JSON");
    let facts = facts.as_object().expect("an object");
    let file = fs::read(folder.join("model.safetensors")).expect("there");
    let reader = open(&file).expect("a safetensors file");
    assert_eq!((reader.names().count(), facts.len()), (13, 13));
    for (name, weights) in facts {
        let view = reader.view(name).expect("there");
        assert_eq!(json!(view.shape()), weights["shape"], "{name}");
        assert!(view.bytes() == bytes(&weights["bytes"]), "{name}");
    }
    let written = rewrite(&reader, Cursor::new(Vec::new()), RewriteOptions::default());
    let metatensor = written.expect("written").1.into_inner();
    fs::write(folder.join("model.mt"), metatensor).expect("writable");
    python("onnx-check", &folder);
}
