//! The bill of materials, read by SPDX's own tools.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use alknet_image::{
    BuildProvenance, ImageError, ImageForm, InputFacts, Manifest, ManifestSource, OutputRole,
};
use alknet_licenses::LicenseInventory;
use alknet_test_support::deadline;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;

use crate::support::{InputFolder, RELEASE, run, text};

/// The variable that names the folder with SPDX's own tools in Python.
const SPDX_VAR: &str = "ALKNET_TEST_SPDX";

/// Prints what is wrong in a document, and then how many packages and relationships it has.
const JUDGE: &str = "\
import sys
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document
document = parse_file(sys.argv[1])
for message in validate_full_spdx_document(document, 'SPDX-2.3'):
    print(message.validation_message, message.context.spdx_id)
print(len(document.packages), len(document.relationships))
";

/// Inputs with the components of the binary in the tree.
pub(crate) fn inputs() -> InputFolder {
    let mut source = InputFolder::new();
    let inventory = LicenseInventory::own().expect("whole");
    let lock = ManifestSource::new("Cargo.lock", None, Some("0".repeat(64)));
    source.inputs.provenance =
        BuildProvenance::new(inventory.components, vec![lock], 1_764_115_200);
    source
}

#[test]
fn the_bill_of_materials_is_valid_for_the_tools_of_spdx() {
    let source = inputs();
    let out = tempfile::tempdir().expect("a temporary folder");
    let manifest = source.build(&[ImageForm::Direct], out.path());
    let bill = manifest.path(out.path(), ImageForm::Direct, OutputRole::Sbom);
    let bill = bill.expect("it is an output");
    assert!(bill.ends_with("alknet_0.1.0.spdx.json"), "{bill:?}");
    accepts(&bill, source.inputs.provenance.components.len());
}

/// SPDX's own tools find nothing wrong, and read this number of components.
fn accepts(bill: &Path, components: usize) {
    let packages = env::var_os(SPDX_VAR)
        .unwrap_or_else(|| panic!("{SPDX_VAR} is not set: start the tests by cargo xtask test"));
    let judged = Command::new("python3")
        .args(["-c", JUDGE, text(bill)])
        .env("PYTHONPATH", packages)
        .output()
        .expect("python3 runs");
    let said = String::from_utf8_lossy(&judged.stdout);
    let errors = String::from_utf8_lossy(&judged.stderr);
    // With the image itself; as many relationships, the first about the document.
    let count = components + 1;
    assert_eq!(said.trim(), format!("{count} {count}"), "{errors}");
}

#[test]
fn each_form_lists_the_one_bill_and_the_manifest_the_sources() {
    let source = inputs();
    let out = tempfile::tempdir().expect("a temporary folder");
    let forms = [ImageForm::Direct, ImageForm::Erofs];
    let manifest = source.build(&forms, out.path());
    let bills = manifest.outputs.iter();
    let bills: Vec<_> = bills.filter(|it| it.role == OutputRole::Sbom).collect();
    let named: Vec<_> = bills.iter().map(|it| it.form).collect();
    assert_eq!(named, forms);
    assert_eq!(bills[0].sha256, bills[1].sha256);
    let json: Value = fs::read(out.path().join(alknet_image::MANIFEST_FILE))
        .map(|bytes| serde_json::from_slice(&bytes).expect("JSON"))
        .expect("written");
    assert_eq!(
        json["outputs"][6]["role"], "sbom",
        "behind the files of the forms"
    );
    let names: Vec<_> = manifest.sources.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["Cargo.lock", "mkfs.erofs"]);
    let tool = &manifest.sources[1];
    assert!(tool.version.is_some() && tool.sha256.is_some(), "{tool:?}");
}

#[test]
fn an_image_of_unknown_components_has_no_bill() {
    let source = InputFolder::new();
    let out = tempfile::tempdir().expect("a temporary folder");
    let manifest: Manifest = source.build(&[ImageForm::Direct], out.path());
    let mut roles = manifest.outputs.iter().map(|output| output.role);
    assert!(roles.all(|role| role != OutputRole::Sbom));
    assert!(manifest.sources.is_empty());
}

/// A finished image with its bill, for the owner of its files.
fn shipped() -> (InputFolder, tempfile::TempDir) {
    let source = inputs();
    let out = tempfile::tempdir().expect("a temporary folder");
    source.build(&[ImageForm::Raw], out.path());
    (source, out)
}

/// Builds the inputs again as an owner does, who knows what the shipped image says, and returns the bill.
fn built_by_owner(source: &mut InputFolder, facts: Vec<InputFacts>) -> Vec<u8> {
    source.inputs.provenance = BuildProvenance::of_facts(facts, 1_764_115_200);
    let out = tempfile::tempdir().expect("a temporary folder");
    let manifest = source.build(&[ImageForm::Raw], out.path());
    let bill = manifest.path(out.path(), ImageForm::Raw, OutputRole::Sbom);
    let bill = bill.expect("it is an output");
    let document = fs::read(&bill).expect("written");
    let parsed: Value = serde_json::from_slice(&document).expect("JSON");
    let packages = parsed["packages"].as_array().expect("a list").len();
    accepts(&bill, packages - 1);
    document
}

/// The package of this name.
fn package<'a>(document: &'a Value, name: &str) -> Option<&'a Value> {
    let packages = document["packages"].as_array().expect("a list");
    packages.iter().find(|it| it["name"] == name)
}

#[test]
fn an_owner_of_the_shipped_files_gets_the_shipped_bill() {
    let (mut source, out) = shipped();
    let facts = InputFacts::of_image(out.path()).expect("a finished image");
    assert_eq!(facts.seconds(), Some(1_764_115_200));
    let bill = built_by_owner(&mut source, vec![facts]);
    let shipped = fs::read(out.path().join("alknet_0.1.0.spdx.json")).expect("written");
    assert!(bill == shipped, "another bill");
}

#[test]
fn a_file_of_another_maker_has_its_hash_and_no_licence_in_the_bill() {
    let (mut source, out) = shipped();
    let facts = InputFacts::of_image(out.path()).expect("a finished image");
    let mut kernel = fs::read(&source.inputs.kernel).expect("readable");
    kernel.push(0);
    fs::write(&source.inputs.kernel, kernel).expect("writable");
    let bill = built_by_owner(&mut source, vec![facts.clone()]);
    assert!(bill == built_by_owner(&mut source, vec![facts]));
    let bill: Value = serde_json::from_slice(&bill).expect("JSON");
    let sum = run("sha256sum", &[text(&source.inputs.kernel)]);
    let kernel = package(&bill, "kernel").expect("an entry");
    assert!(
        sum.starts_with(
            kernel["checksums"][0]["checksumValue"]
                .as_str()
                .expect("a hash")
        )
    );
    assert_eq!(kernel["licenseDeclared"], "NOASSERTION");
    assert_eq!(kernel["versionInfo"], RELEASE);
    assert_eq!(package(&bill, "Linux"), None);
    let shipped = fs::read(out.path().join("alknet_0.1.0.spdx.json")).expect("written");
    let shipped: Value = serde_json::from_slice(&shipped).expect("JSON");
    for name in ["GRUB", "systemd-stub", "tokio", "uefi"] {
        assert!(package(&bill, name).is_some(), "{name}");
        assert_eq!(package(&bill, name), package(&shipped, name));
    }
}

#[test]
fn a_binary_that_knows_itself_is_the_only_known_file_without_a_shipped_image() {
    let mut source = InputFolder::new();
    let inventory = LicenseInventory::own().expect("whole");
    let facts = InputFacts::of_binary(&source.inputs.binary, inventory);
    let facts = facts.expect("readable");
    assert_eq!(facts.seconds(), None);
    let bill = built_by_owner(&mut source, vec![facts]);
    let bill: Value = serde_json::from_slice(&bill).expect("JSON");
    assert!(package(&bill, "tokio").is_some());
    for name in ["kernel", "stub", "loader", "GRUB core image"] {
        let package = package(&bill, name).unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(package["licenseDeclared"], "NOASSERTION", "{name}");
    }
    for name in ["Linux", "systemd-stub", "GRUB", "uefi", "Mesa"] {
        assert_eq!(package(&bill, name), None);
    }
}

/// The owner would pass on a bill that another person wrote.
#[test]
fn a_bill_that_its_manifest_does_not_name_is_refused() {
    let (_source, out) = shipped();
    let bill = out.path().join("alknet_0.1.0.spdx.json");
    let mut document = fs::read(&bill).expect("written");
    document.push(b' ');
    fs::write(&bill, document).expect("writable");
    let refused = InputFacts::of_image(out.path()).expect_err("another bill");
    assert!(
        matches!(refused, ImageError::InputInvalid { .. }),
        "{refused}"
    );
    let without = tempfile::tempdir().expect("a temporary folder");
    InputFolder::new().build(&[ImageForm::Direct], without.path());
    let refused = InputFacts::of_image(without.path()).expect_err("it has no bill");
    assert!(matches!(refused, ImageError::Argument { .. }), "{refused}");
}

/// Why this folder is refused. A read that waits for another process fails the test.
fn refusal_of(folder: &Path) -> String {
    let (sender, refused) = mpsc::channel();
    let folder = folder.to_owned();
    std::thread::spawn(move || {
        let facts = InputFacts::of_image(&folder);
        sender.send(facts.map(drop).map_err(|error| error.to_string()))
    });
    let refused = refused.recv_timeout(deadline(Duration::from_secs(60)));
    let refused = refused.expect("the command waits for no other process");
    refused.expect_err("no image")
}

/// Another user put it into a folder with files of an image.
#[test]
fn a_shipped_folder_with_a_pipe_a_device_or_a_long_file_is_refused() {
    let (_source, out) = shipped();
    for name in ["alknet_0.1.0.spdx.json", "manifest.json"] {
        let path = out.path().join(name);
        let whole = fs::read(&path).expect("written");
        let replace = |put: &dyn Fn()| {
            fs::remove_file(&path).expect("removable");
            put();
            refusal_of(out.path())
        };
        let pipe = replace(&|| mkfifo(&path, Mode::S_IRWXU).expect("creatable"));
        assert!(pipe.contains("no regular file"), "{name}: {pipe}");
        let device = replace(&|| symlink("/dev/null", &path).expect("creatable"));
        assert!(device.contains("no regular file"), "{name}: {device}");
        let long = replace(&|| {
            let file = fs::File::create(&path).expect("creatable");
            file.set_len((16 << 20) + 1).expect("sparse");
        });
        assert!(long.contains("16777217 bytes, beyond "), "{name}: {long}");
        fs::remove_file(&path).expect("removable");
        fs::write(&path, whole).expect("writable");
    }
    InputFacts::of_image(out.path()).expect("it is whole again");
}
