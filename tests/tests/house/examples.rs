//! The examples for libvirt, KubeVirt, LinuxKit and Terraform, judged by programs of others where these are at hand.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use alknet_test_support::{limited, skip};
use alknet_tests::tools::{client, tool_says, variable};

use super::tree::{others, root};

/// Longest run of a judge.
const LIMIT: Duration = Duration::from_secs(60);

/// Settings of TypeScript's compiler.
const TYPESCRIPT: &str = r#"{
    "compilerOptions": {
        "lib": ["ES2023", "DOM"],
        "module": "ESNext",
        "moduleResolution": "bundler",
        "noEmit": true,
        "skipLibCheck": true,
        "strict": true,
        "target": "ES2023",
        "types": []
    },
    "files": ["manifests.ts"]
}"#;

fn example(name: &str) -> PathBuf {
    root().join("docs/examples").join(name)
}

#[test]
fn libvirt_accepts_its_example() {
    let domain = example("libvirt.xml").display().to_string();
    let said = tool_says("virt-xml-validate", &[domain.as_str(), "domain"]);
    assert!(said.contains("validates"), "{said}");
}

#[test]
fn the_examples_for_kubevirt_have_the_members_of_its_api() {
    judged_by_python(
        "kubevirt.py",
        &["kubevirt.yaml", "kubevirt-kernelboot.yaml"],
    );
}

/// LinuxKit itself builds the service of the example in `image/tests/image/linuxkit.rs`, if it is at hand.
#[test]
fn the_example_for_linuxkit_has_the_members_of_its_files() {
    judged_by_python("linuxkit.py", &["linuxkit-service.yml"]);
}

/// A program of `tests/clients` reads examples and finds nothing wrong.
fn judged_by_python(program: &str, examples: &[&str]) {
    let files: Vec<_> = examples.iter().copied().map(example).collect();
    let output = python(program, "ALKNET_TEST_SCHEMATHESIS", &files);
    assert_eq!(output.stdout, b"fine\n", "{output:?}");
}

/// Runs a program of `tests/clients` with the Python packages in the folder that this variable has.
fn python(program: &str, packages: &str, paths: &[PathBuf]) -> Output {
    let mut python = limited(LIMIT, "python3");
    python
        .env("PYTHONPATH", variable(packages))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(client(program))
        .args(paths);
    python.output().expect("the set-up installs Python")
}

/// The compiler's types say which members there are and which of them must be there. Values and names that lead from one
/// part to another are the business of `kubevirt.py`.
#[test]
fn the_examples_for_kubevirt_have_the_types_of_its_api() {
    let mut paths = vec![PathBuf::from(variable("ALKNET_TEST_KUBEVIRT_TYPES"))];
    paths.extend(["kubevirt.yaml", "kubevirt-kernelboot.yaml"].map(example));
    let program = python("kubevirt_types.py", "ALKNET_TEST_SCHEMATHESIS", &paths);
    let program = String::from_utf8(program.stdout).expect("text");
    assert_eq!(program.matches("kubevirt.V1VirtualMachine").count(), 2);
    assert_eq!(compiled(&program), "");
    for (right, wrong, mistake) in [
        ("masquerade", "masqerade", "TS2353"),
        ("\"template\"", "\"templates\"", "TS2353"),
        ("\"Always\"", "1", "TS2322"),
    ] {
        let said = compiled(&program.replace(right, wrong));
        assert!(said.contains(mistake), "{wrong}: {said}");
    }
}

/// What TypeScript's compiler finds wrong in a program.
fn compiled(program: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in [("manifests.ts", program), ("tsconfig.json", TYPESCRIPT)] {
        fs::write(folder.path().join(name), text).expect("the folder is ours");
    }
    let compiler = PathBuf::from(variable("ALKNET_TEST_TYPESCRIPT")).join("lib/tsc.js");
    let output = limited(LIMIT, "node")
        .arg(compiler)
        .args(["--pretty", "false", "--project", "."])
        .current_dir(folder.path())
        .output()
        .expect("the set-up has Node");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert_eq!(output.status.success(), said.is_empty(), "{said}");
    said
}

/// What the program of `tests/clients` about Terraform says of a file.
fn terraform_program(file: &Path) -> Output {
    python("terraform.py", "ALKNET_TEST_HCL2", &[file.to_owned()])
}

/// A parser by other authors reads them, and each name leads to a block of the file.
#[test]
fn a_parser_reads_the_examples_for_terraform() {
    let files = others(&["tf"]);
    assert_eq!(files.len(), 2);
    for file in files {
        let output = terraform_program(&root().join(&file.path));
        assert_eq!(output.stdout, b"fine\n", "{}: {output:?}", file.path);
    }
}

#[test]
fn a_mistake_in_an_example_for_terraform_is_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let copy = folder.path().join("copy.tf");
    let text = fs::read_to_string(example("terraform-openstack.tf")).expect("it is there");
    for (right, wrong, mistake) in [
        ("var.image", "var.image)", "Unexpected token"),
        ("= \"bare\"", "= \"bare", "Unexpected token"),
        (
            "[\"tcp\", \"udp\"]",
            "[\"tcp\", \"udp\"",
            "Unexpected token",
        ),
        ("var.flavor", "var.flavour", "no block for ['var.flavour']"),
    ] {
        assert!(text.contains(right), "{right}");
        fs::write(&copy, text.replace(right, wrong)).expect("the folder is ours");
        let output = terraform_program(&copy);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.stdout, b"", "{wrong}: {output:?}");
        assert!(said.contains(mistake), "{wrong}: {said}");
    }
}

#[test]
fn terraform_itself_reads_the_examples() {
    let Some(terraform) = terraform() else {
        skip!("Terraform", "no terraform on the search path");
    };
    for file in others(&["tf"]) {
        let mut format = Command::new(&terraform);
        let format = format.args(["fmt", "-check", "-diff"]);
        let output = format.arg(root().join(&file.path)).output();
        let output = output.expect("it was found");
        assert!(output.status.success(), "{}: {output:?}", file.path);
    }
}

fn terraform() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders = std::env::split_paths(&path);
    let mut programs = folders.map(|folder| folder.join("terraform"));
    programs.find(|program| program.is_file())
}
