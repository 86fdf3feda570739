//! The bill of materials, read by SPDX's own tools.

use std::env;
use std::fs;
use std::process::Command;

use alknet_image::{BuildProvenance, ImageForm, Manifest, ManifestSource, OutputRole};
use alknet_licenses::LicenseInventory;
use serde_json::Value;

use crate::support::{InputFolder, text};

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
fn inputs() -> InputFolder {
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
    let packages = env::var_os(SPDX_VAR)
        .unwrap_or_else(|| panic!("{SPDX_VAR} is not set: start the tests by cargo xtask test"));
    let judged = Command::new("python3")
        .args(["-c", JUDGE, text(&bill)])
        .env("PYTHONPATH", packages)
        .output()
        .expect("python3 runs");
    let said = String::from_utf8_lossy(&judged.stdout);
    let errors = String::from_utf8_lossy(&judged.stderr);
    // With the image itself; as many relationships, the first about the document.
    let count = source.inputs.provenance.components.len() + 1;
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
