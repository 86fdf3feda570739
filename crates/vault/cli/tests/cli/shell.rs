//! A folder, and the program that is started in it.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

/// The words of the published table of vectors.
pub(crate) const WORDS: &str = "abandon abandon abandon abandon abandon abandon \
                                abandon abandon abandon abandon abandon about";

/// The cheapest passphrase slot, so that tests do not wait for Argon2id.
pub(crate) const CHEAP: &str = "--memory-mib 19 --passes 2";

/// How a command ended.
pub(crate) struct ShellExit {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// A folder that goes away.
pub(crate) struct CommandFolder(tempfile::TempDir);

impl CommandFolder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder can be made"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a line in the folder, with that on standard input. Words are parted by spaces.
    pub(crate) fn run(&self, line: &str, input: &str) -> ShellExit {
        let words = line.split(' ').filter(|word| !word.is_empty());
        self.run_words(&words.collect::<Vec<_>>(), input)
    }

    pub(crate) fn run_words(&self, words: &[&str], input: &str) -> ShellExit {
        let mut child = Command::new(env!("CARGO_BIN_EXE_alknet-vault-tool"))
            .args(words)
            .current_dir(self.0.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut stdin = child.stdin.take().expect("piped");
        // A command that fails early reads nothing of it.
        stdin.write_all(input.as_bytes()).ok();
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        ShellExit {
            code: output.status.code().expect("no signal ended it"),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }

    /// What a line prints that ends well.
    pub(crate) fn good(&self, line: &str, input: &str) -> String {
        let ended = self.run(line, input);
        assert_eq!(ended.code, 0, "{line}: {}", ended.err);
        ended.out
    }

    /// The same as JSON, which is one line.
    pub(crate) fn json(&self, line: &str, input: &str) -> Value {
        let text = self.good(&format!("{line} --json"), input);
        assert_eq!(text.lines().count(), 1, "{text}");
        serde_json::from_str(&text).expect("JSON")
    }

    /// The exit code of a line that fails, with the code that it says.
    pub(crate) fn fails(&self, line: &str, input: &str) -> (i32, String) {
        let ended = self.run(&format!("{line} --json"), input);
        assert_ne!(ended.code, 0, "{line}: {}", ended.out);
        let last = ended.err.lines().last().unwrap_or_default();
        let error: Value = serde_json::from_str(last).unwrap_or_default();
        let code = error["error"]["code"].as_str().unwrap_or_default();
        (ended.code, code.to_owned())
    }

    /// A vault of the table's words in `vault`, with a passphrase slot that "right" opens.
    pub(crate) fn with_vault(&self) {
        let line = format!("import --dir vault --mnemonic-stdin --passphrase-stdin {CHEAP}");
        self.good(&line, &format!("{WORDS}\nright\n"));
    }
}
