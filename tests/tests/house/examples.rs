//! The examples for libvirt, KubeVirt, LinuxKit and Terraform, judged by programs of others where these are at hand.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use alknet_test_support::{limited, skip};
use alknet_tests::tools::{client, tool_says, variable};

use super::tree::{others, root};

/// Longest run of a judge.
const LIMIT: Duration = Duration::from_secs(60);

/// Terraform's own names for what a file declares or counts.
const OWN_NAMES: [&str; 4] = ["each", "local", "terraform", "var"];

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
    let mut python = limited(LIMIT, "python3");
    python
        .env("PYTHONPATH", variable("ALKNET_TEST_SCHEMATHESIS"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(client(program))
        .args(examples.iter().copied().map(example));
    let output = python.output().expect("the set-up installs Python");
    assert_eq!(output.stdout, b"fine\n", "{output:?}");
}

/// Brackets and quotation marks are closed, and each name leads to a block of the file.
#[test]
fn the_examples_for_terraform_are_whole() {
    let files = others(&["tf"]);
    assert_eq!(files.len(), 2);
    for file in files {
        let is_code = |line: &&str| !line.trim_start().starts_with('#');
        let lines = file.text.lines().filter(is_code);
        let text = lines.collect::<Vec<_>>().join("\n");
        assert_eq!(unclosed(&text), "", "{}", file.path);
        let (declared, used) = (declared(&text), used(&text));
        assert!(used.len() > 3, "{used:?}");
        let unknown: Vec<_> = used.difference(&declared).collect();
        assert!(unknown.is_empty(), "{}: {unknown:?}", file.path);
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

#[test]
fn names_and_brackets_of_terraform_are_found() {
    let text = "variable \"size\" {\n  default = { a = [1] }\n}\nresource \"a_b\" \"c\" {\n  size = var.size\n  of   = a_b.c.id\n  \
                each = each.key\n  text = \"x.y\"\n}";
    assert_eq!(unclosed(text), "");
    let expected = ["a_b.c", "var.size"].map(str::to_owned);
    assert_eq!(declared(text), BTreeSet::from(expected.clone()));
    assert_eq!(used(text), BTreeSet::from(expected));
    assert_eq!(unclosed("a { b = [1 }"), "{}");
    assert_eq!(unclosed("a = \"b"), "\"");
}

/// Brackets and quotation marks that are open at the end, or at a bracket that closes another one.
fn unclosed(text: &str) -> String {
    let mut open = String::new();
    for letter in text.chars() {
        let is_text = open.ends_with('"');
        match letter {
            '"' if is_text => {
                open.pop();
            }
            _ if is_text => {}
            '"' | '{' | '[' | '(' => open.push(letter),
            '}' | ']' | ')' => {
                let pair = matches!(
                    (open.pop(), letter),
                    (Some('{'), '}') | (Some('['), ']') | (Some('('), ')')
                );
                if !pair {
                    return format!("{open}{letter}");
                }
            }
            _ => {}
        }
    }
    open
}

/// Names that blocks declare: `var.NAME`, and `TYPE.NAME` of a resource.
fn declared(text: &str) -> BTreeSet<String> {
    let name = |line: &str| {
        let words: Vec<&str> = line.split('"').collect();
        match words[..] {
            ["variable ", name, _] => Some(format!("var.{name}")),
            ["resource ", kind, _, name, _] => Some(format!("{kind}.{name}")),
            _ => None,
        }
    };
    text.lines().filter_map(name).collect()
}

/// The first two parts of each name with dots outside of texts, unless it is one of Terraform's own.
fn used(text: &str) -> BTreeSet<String> {
    let code = text.split('"').step_by(2);
    let is_name = |c: char| c.is_ascii_alphanumeric() || ['_', '.'].contains(&c);
    let words = code.flat_map(|code| code.split(move |c| !is_name(c)));
    let name = |word: &str| {
        let mut parts = word.split('.');
        let (first, second) = (parts.next()?, parts.next()?);
        let is_number = first.starts_with(|c: char| c.is_ascii_digit());
        let is_own = OWN_NAMES.contains(&first) && first != "var";
        let is_reference = !first.is_empty() && !is_number && !is_own;
        is_reference.then(|| format!("{first}.{second}"))
    };
    words.filter_map(name).collect()
}

fn terraform() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders = std::env::split_paths(&path);
    let mut programs = folders.map(|folder| folder.join("terraform"));
    programs.find(|program| program.is_file())
}
