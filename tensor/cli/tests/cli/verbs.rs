//! Each verb with what it is for.

use std::fs;

use alknet_tensor_cli::TensorCliOutcome;
use serde_json::json;

use crate::shell::TensorShell;

#[test]
fn ls_names_what_is_there() {
    let shell = TensorShell::new();
    shell.sample();
    let text = shell.good("ls /sample.mt");
    assert!(text.starts_with("level 1, 3 tensors, "), "{text}");
    assert!(text.contains("format = pt\n"), "{text}");
    assert!(
        text.contains("          24  weights: F32 [2, 3]\n"),
        "{text}"
    );
    assert!(
        text.contains("points: struct [2] of 8 bytes, 2 fields\n"),
        "{text}"
    );
    assert!(text.contains("names: blob [3] of utf8\n"), "{text}");
    let listing = shell.json("ls /sample.mt");
    assert_eq!(listing["tensors"][0]["name"], "weights");
    assert_eq!(listing["tensors"][1]["fields"][1]["type"], "Uint16");
}

#[test]
fn cat_gives_bytes_arrays_and_values() {
    let shell = TensorShell::new();
    shell.sample();
    let mut bytes = Vec::new();
    shell
        .run_to("cat /sample.mt weights --rows 1:2", &mut bytes)
        .expect("there");
    assert_eq!(bytes, [3.0_f32, 4.0, 5.0].map(f32::to_le_bytes).concat());
    let mut array = Vec::new();
    shell
        .run_to("cat /sample.mt weights --npy", &mut array)
        .expect("there");
    assert!(array.starts_with(b"\x93NUMPY\x01\x00"));
    assert_eq!(array.len() % 64, 24);
    let values = shell.json("cat /sample.mt weights --rows 0:1");
    assert_eq!(values["values"], json!([0.0, 1.0, 2.0]));
    assert_eq!(values["shape"], json!([1, 3]));
    let values = shell.json("cat /sample.mt points");
    let expected = json!([{ "/x": 0.5, "/n": 7 }, { "/x": "Infinity", "/n": 8 }]);
    assert_eq!(values["values"], expected);
    let values = shell.json("cat /sample.mt names --rows 1:3");
    assert_eq!(values["values"], json!(["", "three"]));
}

#[test]
fn verify_says_what_is_wrong_and_exits_with_one() {
    let shell = TensorShell::new();
    let path = shell.sample();
    for level in ["", " --meta", " --full"] {
        let text = shell.good(&format!("verify /sample.mt{level}"));
        assert!(text.starts_with("good: "), "{text}");
    }
    let mut file = fs::read(&path).expect("there");
    let last = file.len() - 1;
    file[last] ^= 1;
    fs::write(&path, file).expect("writable");
    let (ended, text) = shell.run("verify /sample.mt --json");
    assert_eq!(ended.expect("it can be read"), TensorCliOutcome::Found);
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(report["good"], false);
    assert_eq!(report["problems"][0]["code"], "E_HASH");
    let (ended, text) = shell.run("verify /sample.mt");
    assert_eq!(ended.expect("it can be read"), TensorCliOutcome::Found);
    assert!(
        text.starts_with("E_HASH: ") && text.contains("not good: "),
        "{text}"
    );
}

#[test]
fn formats_become_each_other_and_come_back() {
    let shell = TensorShell::new();
    shell.sample();
    let made = shell.json("strip /sample.mt /plain.safetensors");
    assert_eq!(made["id"].as_str().map(str::len), Some(64));
    shell.good("convert /sample.mt /same.safetensors");
    let [stripped, same] = ["plain.safetensors", "same.safetensors"]
        .map(|name| fs::read(shell.path(name)).expect("made"));
    assert!(stripped == same);
    shell.good("convert /sample.mt /arrays.npz");
    // The archive has the offsets as an array, whose name means something in a metatensor.
    let (ended, _) = shell.run("convert /arrays.npz /again.mt");
    assert_eq!(ended.expect_err("a reserved name").code(), "E_HEADER");
    fs::create_dir(shell.path("one")).expect("a folder");
    let mut array = Vec::new();
    shell
        .run_to("cat /sample.mt weights --npy", &mut array)
        .expect("there");
    fs::write(shell.path("one/w.npy"), &array).expect("writable");
    fs::write(shell.path("one/readme.txt"), "hello").expect("writable");
    let packed = shell.json("pack /one /packed.mt --gpu");
    let hashes = shell.json("hash /packed.mt");
    assert_eq!(packed["id"], hashes["id"]);
    shell.good("verify /packed.mt --full");
    shell.good("convert /one/w.npy /w.odd --to metatensor");
    assert_eq!(shell.json("ls /w.odd")["tensors"][0]["name"], "w");
    shell.good("convert /w.odd /w.npz --from metatensor");
    shell.good("convert /w.npz /again.mt");
    let values = shell.json("cat /again.mt w");
    assert_eq!(values["values"], json!([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]));
    let folder = shell.names();
    assert!(
        !folder.iter().any(|name| name.starts_with('.')),
        "{folder:?}"
    );
}

#[test]
fn hash_is_blake3_of_each_part() {
    let shell = TensorShell::new();
    let path = shell.sample();
    let file = fs::read(&path).expect("there");
    let hashes = shell.json("hash /sample.mt");
    let hash = |bytes: &[u8]| alknet_tensor::Hash::to_hex(&blake3::hash(bytes)).to_string();
    assert_eq!(hashes["id"], hash(&file));
    let weights = [0.0_f32, 1.0, 2.0, 3.0, 4.0, 5.0]
        .map(f32::to_le_bytes)
        .concat();
    assert_eq!(hashes["tensors"]["weights"], hash(&weights));
    let text = shell.good("hash /sample.mt");
    assert!(
        text.contains(&format!("{}  weights\n", hash(&weights))),
        "{text}"
    );
}

#[test]
fn diff_lists_the_steps_and_exits_with_one() {
    let shell = TensorShell::new();
    shell.sample();
    assert_eq!(shell.good("diff /sample.mt /sample.mt"), "");
    shell.good("strip /sample.mt /plain.safetensors");
    let (ended, text) = shell.run("diff /sample.mt /plain.safetensors");
    assert_eq!(ended.expect("both can be read"), TensorCliOutcome::Found);
    assert!(
        text.contains("retype  points: struct of 8 bytes [2] -> U8 [2, 8]\n"),
        "{text}"
    );
    assert!(text.contains("add     names.__off__: U64 [4]\n"), "{text}");
    assert!(text.contains("remove  points#/x: Float32 at 0\n"), "{text}");
    let (_, text) = shell.run("diff /sample.mt /plain.safetensors --json");
    let changes: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let steps = changes["changes"].as_array().expect("a list");
    assert!(
        steps.iter().any(|step| {
            *step == json!({ "op": "add", "path": "names.__off__", "to": "U64 [4]" })
        })
    );
}
