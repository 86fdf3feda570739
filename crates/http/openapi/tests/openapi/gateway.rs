//! What others say of the gateway's own document.

use std::path::{Path, PathBuf};
use std::process::Command;

use alknet_openapi::{OpenApiContract, document};
use tempfile::TempDir;

use crate::common::folder;

/// A folder that is gone afterwards, with the document in it.
struct DocumentFolder(TempDir);

impl DocumentFolder {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder of this test's own");
        let text = document(&OpenApiContract {
            operations_digest: "d41d8cd9",
            is_public: false,
        });
        std::fs::write(folder.path().join("openapi.json"), text.to_string()).expect("a file");
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn document(&self) -> PathBuf {
        self.path().join("openapi.json")
    }
}

fn says(command: &mut Command) -> String {
    let output = command
        .output()
        .expect("it runs; cargo xtask test installs it");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

fn python(folder_of: &Path) -> Command {
    let packages = folder("ALKNET_TEST_OPENAPI_PYTHONPATH");
    let mut command = Command::new("python3");
    // Programs that the packages bring, one of which calls another.
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", packages.join("bin").display());
    command
        .env("PYTHONPATH", packages)
        .env("PATH", path)
        .current_dir(folder_of);
    command
}

#[test]
fn a_validator_finds_nothing_wrong() {
    let scratch = DocumentFolder::new();
    let text = says(
        python(scratch.path())
            .args(["-m", "openapi_spec_validator"])
            .arg(scratch.document()),
    );
    assert!(text.contains("OK"), "{text}");
}

#[test]
fn a_generator_makes_one_function_of_every_path() {
    let scratch = DocumentFolder::new();
    let text = says(
        python(scratch.path())
            .args([
                "-m",
                "openapi_python_client",
                "generate",
                "--fail-on-warning",
            ])
            .args(["--meta", "none", "--output-path", "client", "--path"])
            .arg(scratch.document()),
    );
    assert!(!text.contains("warning"), "{text}");
    for (tag, name) in [
        ("node", "healthz"),
        ("node", "metrics"),
        ("node", "openapi"),
        ("operations", "batch"),
        ("operations", "call"),
        ("operations", "schema"),
        ("operations", "search"),
        ("operations", "subscribe"),
    ] {
        let module = scratch.path().join(format!("client/api/{tag}/{name}.py"));
        assert!(module.exists(), "{}: {text}", module.display());
    }
    // Names are those of the document: none was invented.
    let models = std::fs::read_dir(scratch.path().join("client/models")).expect("models");
    for model in models {
        let name = model.expect("a file").file_name();
        let name = name.to_string_lossy();
        let invented = ["200", "response_", "_type_0", "_item"];
        assert!(!invented.iter().any(|word| name.contains(word)), "{name}");
    }
    says(python(scratch.path()).args(["-c", "import client.api.operations.call, client.models"]));
}

#[test]
fn a_linter_has_nothing_to_say() {
    let scratch = DocumentFolder::new();
    let program = folder("ALKNET_TEST_OPENAPI_NODE").join("node_modules/@redocly/cli/bin/cli.js");
    let text = says(
        Command::new("node")
            .arg(program)
            .args(["lint", "--extends", "recommended", "--max-problems", "50"])
            .arg(scratch.document())
            .env("REDOCLY_TELEMETRY", "off")
            .env("REDOCLY_SUPPRESS_UPDATE_NOTICE", "true")
            .env("HOME", scratch.path())
            .current_dir(scratch.path()),
    );
    assert!(!text.contains("warning"), "{text}");
}
