//! The examples for libvirt, KubeVirt, LinuxKit and Terraform, and those that an image has beside its files, judged by
//! programs of others where these are at hand.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use alknet_image::ImageForm;
use alknet_test_support::{limited, skip};
use alknet_tests::BuiltImageFolder;
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

/// The example of this kind beside the built image.
fn built(form: ImageForm, ending: &str) -> PathBuf {
    BuiltImageFolder::get().example(form, ending)
}

/// The forms with a disk that libvirt and OpenStack take as it is.
const DISKS: [ImageForm; 2] = [ImageForm::Qcow2, ImageForm::Raw];

#[test]
fn libvirt_accepts_its_examples() {
    let built = DISKS.map(|form| built(form, "-libvirt.xml"));
    for domain in built.into_iter().chain([example("libvirt.xml")]) {
        let domain = domain.display().to_string();
        let said = tool_says("virt-xml-validate", &[domain.as_str(), "domain"]);
        assert!(said.contains("validates"), "{domain}: {said}");
    }
}

#[test]
fn the_examples_for_kubevirt_have_the_members_of_its_api() {
    let examples = ["kubevirt.yaml", "kubevirt-kernelboot.yaml"].map(example);
    judged_by_python("kubevirt.py", &examples);
}

/// Each of them has every document that its machine needs.
#[test]
fn the_built_examples_for_kubevirt_have_the_members_of_its_api() {
    for form in [ImageForm::Containerdisk, ImageForm::Kernelboot] {
        judged_by_python("kubevirt.py", &[built(form, ".yaml")]);
    }
}

/// LinuxKit itself builds the service of the example in `image/tests/image/linuxkit.rs`, if it is at hand.
#[test]
fn the_example_for_linuxkit_has_the_members_of_its_files() {
    judged_by_python("linuxkit.py", &[example("linuxkit-service.yml")]);
}

/// A program of `tests/clients` reads examples and finds nothing wrong.
fn judged_by_python(program: &str, files: &[PathBuf]) {
    let output = python(program, "ALKNET_TEST_SCHEMATHESIS", files);
    assert_eq!(output.stdout, b"fine\n", "{files:?}: {output:?}");
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
    let built = [ImageForm::Containerdisk, ImageForm::Kernelboot].map(|form| built(form, ".yaml"));
    let program = kubevirt_program(&built);
    assert_eq!(program.matches("kubevirt.V1VirtualMachine").count(), 2);
    assert_eq!(compiled(&program), "");
    let program = kubevirt_program(&["kubevirt.yaml", "kubevirt-kernelboot.yaml"].map(example));
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

/// The program in TypeScript that has the manifests in these files as values.
fn kubevirt_program(files: &[PathBuf]) -> String {
    let mut paths = vec![PathBuf::from(variable("ALKNET_TEST_KUBEVIRT_TYPES"))];
    paths.extend_from_slice(files);
    let program = python("kubevirt_types.py", "ALKNET_TEST_SCHEMATHESIS", &paths);
    String::from_utf8(program.stdout).expect("text")
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

/// The examples for Terraform: those of the documentation, and those beside the built image.
fn terraform_files() -> Vec<PathBuf> {
    let ours = others(&["tf"]);
    assert_eq!(ours.len(), 2);
    let ours = ours.iter().map(|file| root().join(&file.path));
    let endings = ["-libvirt.tf", "-openstack.tf"];
    let built = DISKS.map(|form| endings.map(|ending| built(form, ending)));
    ours.chain(built.into_iter().flatten()).collect()
}

/// A parser by other authors reads them, and each name leads to a block of the file.
#[test]
fn a_parser_reads_the_examples_for_terraform() {
    for file in terraform_files() {
        let output = terraform_program(&file);
        assert_eq!(output.stdout, b"fine\n", "{}: {output:?}", file.display());
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
        skip!(
            "Terraform",
            "no terraform on the search path: syntax and references are checked by python-hcl2 in \
             a_parser_reads_the_examples_for_terraform, and the layout by no test"
        );
    };
    for file in terraform_files() {
        let mut format = Command::new(&terraform);
        let format = format.args(["fmt", "-check", "-diff"]);
        let output = format.arg(&file).output().expect("it was found");
        assert!(output.status.success(), "{}: {output:?}", file.display());
    }
}

fn terraform() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders = std::env::split_paths(&path);
    let mut programs = folders.map(|folder| folder.join("terraform"));
    programs.find(|program| program.is_file())
}
