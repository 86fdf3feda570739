//! The standard tools open the files: Debian's age, with keys from age-keygen and ssh-keygen.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use alknet_handover::{AgeRecipient, CONTENT_BYTES_MAX, encrypt};

const WORDS: &[u8] = b"abandon abandon ability able about above absent absorb\n";

/// Path of the standard tool: in the folder that `ALKNET_TEST_AGE` names, or else the machine's
/// own.
fn age(program: &str) -> PathBuf {
    match std::env::var_os("ALKNET_TEST_AGE") {
        Some(folder) => Path::new(&folder).join(program),
        None => program.into(),
    }
}

fn run(program: impl AsRef<Path>, args: &[&str], dir: &Path) -> Output {
    let program = program.as_ref();
    let ran = Command::new(program).args(args).current_dir(dir).output();
    ran.unwrap_or_else(|error| panic!("{}: {error}", program.display()))
}

fn good(output: Output) -> Vec<u8> {
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

fn read(path: PathBuf) -> String {
    fs::read_to_string(path).expect("the tool wrote it")
}

fn age_key(dir: &Path, name: &str) -> AgeRecipient {
    good(run(age("age-keygen"), &["-o", name], dir));
    let text = read(dir.join(name));
    let line = text
        .lines()
        .find_map(|it| it.strip_prefix("# public key: "));
    line.expect("a public key").parse().expect("a recipient")
}

fn ssh_key(dir: &Path, name: &str, kind: &[&str]) -> AgeRecipient {
    let args = [kind, &["-q", "-N", "", "-C", "ada@laptop", "-f", name]].concat();
    good(run("ssh-keygen", &args, dir));
    let line = read(dir.join(format!("{name}.pub")));
    line.parse().expect("a recipient")
}

fn opened(dir: &Path, key: &str) -> Output {
    run(age("age"), &["-d", "-i", key, "file.age"], dir)
}

#[test]
fn only_each_recipient_opens_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let dir = dir.path();
    let recipients = [
        age_key(dir, "age"),
        ssh_key(dir, "ed25519", &["-t", "ed25519"]),
        ssh_key(dir, "rsa2048", &["-t", "rsa", "-b", "2048"]),
        ssh_key(dir, "rsa3072", &["-t", "rsa", "-b", "3072"]),
    ];
    age_key(dir, "other");
    let file = encrypt(WORDS, &recipients).expect("encrypted");
    fs::write(dir.join("file.age"), file).expect("a writable directory");
    for key in ["age", "ed25519", "rsa2048", "rsa3072"] {
        assert_eq!(good(opened(dir, key)), WORDS, "{key}");
    }
    assert!(!opened(dir, "other").status.success());
}

#[test]
fn contents_of_every_length_come_out() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let dir = dir.path();
    let ada = [age_key(dir, "age")];
    for length in [0, 1, 47, 48, 49, CONTENT_BYTES_MAX] {
        let content: Vec<u8> = (0..length).map(|n| n as u8).collect();
        let file = encrypt(&content, &ada).expect("encrypted");
        fs::write(dir.join("file.age"), file).expect("a writable directory");
        assert_eq!(good(opened(dir, "age")), content, "{length}");
    }
}

#[test]
fn two_files_of_the_same_words_have_nothing_in_common() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let ada = [age_key(dir.path(), "age")];
    let [one, two] = [(), ()].map(|()| encrypt(WORDS, &ada).expect("encrypted"));
    let common = one.lines().zip(two.lines()).filter(|(a, b)| a == b).count();
    // The two lines of the armor, and the first line, with the version and the beginning of a
    // stanza.
    assert!(common <= 3, "{one}{two}");
}
