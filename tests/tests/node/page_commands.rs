//! The commands of docs/calls.md, credentials.md, peers.md, stored-files.md and tokens.md, as a
//! reader runs them: every shell block in order, with the reader's nodes and keys instead of the
//! page's.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use alknet_test_support::limited;
use alknet_tests::{CliRunner, HostNode, TestBench, binary, run_with_input};

const CALLS: &str = include_str!("../../../docs/calls.md");
const CREDENTIALS: &str = include_str!("../../../docs/credentials.md");
const PEERS: &str = include_str!("../../../docs/peers.md");
const STORED_FILES: &str = include_str!("../../../docs/stored-files.md");
const TOKENS: &str = include_str!("../../../docs/tokens.md");

/// The node of the pages.
const NODE: &str = "ed25519:…@192.0.2.7:443";

/// Texts that no command contains after the reader's own values are inserted.
const PLACEHOLDERS: [&str; 4] = ["…", "192.0.2.", "example.org", "OLD"];

/// Limit for one block.
const BLOCK_MAX: Duration = Duration::from_secs(120);

/// A page, and the computer of a reader who follows it.
struct ReferencePage {
    bench: TestBench,
    /// Blocks that were not run yet: language and text.
    blocks: std::vec::IntoIter<(&'static str, String)>,
    /// Each text of the page with the reader's replacement, and whether the page contained it.
    values: Vec<(&'static str, String, bool)>,
}

/// Every block between fences: the language, and the text.
fn blocks(page: &'static str) -> Vec<(&'static str, String)> {
    let mut blocks = Vec::new();
    // Blocks have odd numbers.
    for block in page.split("\n```").skip(1).step_by(2) {
        let (info, text) = block.split_once('\n').expect("a block has lines");
        blocks.push((info, format!("{text}\n")));
    }
    blocks
}

impl ReferencePage {
    fn open(page: &'static str) -> Self {
        let bench = TestBench::new();
        for folder in ["bin", "work"] {
            fs::create_dir(bench.path().join(folder)).expect("the folder is ours");
        }
        let program = bench.path().join("bin/alknet");
        std::os::unix::fs::symlink(binary(), program).expect("the folder is ours");
        Self {
            bench,
            blocks: blocks(page).into_iter(),
            values: Vec::new(),
        }
    }

    /// The command line of a user of this computer. The reader is `reader`.
    fn user(&self, name: &str) -> CliRunner {
        CliRunner::new(self.bench.path().join(name).join("alknet"))
    }

    /// A node whose administrator is the reader.
    fn node(&self, name: &str) -> HostNode {
        HostNode::start(&self.bench.path().join(name), &self.user("reader"))
    }

    fn work(&self, file: &str) -> PathBuf {
        self.bench.path().join("work").join(file)
    }

    fn save(&self, file: &str, text: &str) {
        fs::write(self.work(file), text).expect("the folder is ours");
    }

    /// Writes `value` wherever the page has `written`. Replacements are made in the order in which
    /// they were given.
    fn put(&mut self, written: &'static str, value: impl Into<String>) {
        self.values.push((written, value.into(), false));
    }

    /// The next block of a language, with the reader's values. Blocks of other languages before it
    /// are skipped, but no shell block is.
    fn next_block(&mut self, language: &str) -> String {
        let found = self
            .blocks
            .find(|(info, _)| *info == language || *info == "sh");
        let (info, mut text) = found.unwrap_or_else(|| panic!("no block {language} is left"));
        assert_eq!(info, language, "commands were passed over: {text}");
        for (written, value, is_used) in &mut self.values {
            *is_used |= text.contains(*written);
            text = text.replace(*written, value);
        }
        text
    }

    /// Runs the commands of the next block as this user, with this text on standard input, and
    /// returns their output.
    fn follow_as(&mut self, user: &str, input: &str) -> String {
        let code = self.next_block("sh");
        let code = code
            .lines()
            .map(|line| line.split(" # ").next().unwrap_or_default());
        let code = code.collect::<Vec<_>>().join("\n");
        let left = PLACEHOLDERS.iter().find(|it| code.contains(**it));
        assert_eq!(left, None, "nothing stands for a placeholder of\n{code}");
        let said = self.shell(user, &code, input);
        println!("{code}\n{said}");
        said
    }

    /// Runs the commands of the next block as the reader.
    fn follow(&mut self) -> String {
        self.follow_as("reader", "")
    }

    /// Both outputs of commands that must succeed.
    fn shell(&self, user: &str, code: &str, input: &str) -> String {
        let path = std::env::var("PATH").expect("a search path");
        let programs = self.bench.path().join("bin");
        let mut shell = limited(BLOCK_MAX, "bash");
        shell
            .args(["-euo", "pipefail", "-c", &format!("exec 2>&1\n{code}")])
            .current_dir(self.bench.path().join("work"))
            .env_clear()
            .env("HOME", self.bench.path().join(user))
            .env("XDG_STATE_HOME", self.bench.path().join(user))
            .env("LANG", "C.UTF-8")
            .env("PATH", format!("{}:{path}", programs.display()));
        let said = run_with_input(shell, input);
        assert_eq!(said.status, 0, "the commands\n{code}\nsaid {said:?}");
        said.output
    }

    /// Every command was run, and every replacement was used.
    fn close(mut self) {
        let left = self.blocks.find(|(info, _)| *info == "sh");
        assert_eq!(left, None, "the page has more commands");
        let unused = self.values.iter().find(|(.., is_used)| !is_used);
        assert_eq!(unused, None, "the page does not write this");
    }
}

#[test]
fn the_commands_of_the_page_of_calls_work() {
    let mut page = ReferencePage::open(CALLS);
    let [node, other] = ["node", "other"].map(|name| page.node(name));
    page.put(NODE, node.target());
    page.put("ed25519:…@192.0.2.8:443", other.target());
    page.put("generate-input", "cat input.json");
    page.save("input.json", "{\"name\":\"node/info\"}");
    let said = page.follow();
    let schemas = ["node/log", "node/info"].map(|name| {
        let line = format!("\"name\": \"{name}\"");
        said.matches(&line).count()
    });
    assert_eq!(schemas, [1, 2], "{said}");

    let said = page.follow();
    for target in [node.target(), other.target()] {
        let (key, _) = target.split_once('@').expect("a pinned target");
        assert!(said.contains(key), "{said}");
    }

    // On the page, the batch comes after the command that sends it.
    let (_, batch) = blocks(CALLS)
        .into_iter()
        .find(|(info, _)| *info == "json")
        .expect("the batch");
    page.save("calls.jsonl", &batch);
    let said = page.follow();
    assert_eq!(said.lines().count(), batch.lines().count(), "{said}");
    page.close();
}

#[test]
fn the_commands_of_the_page_of_credentials_work() {
    let mut page = ReferencePage::open(CREDENTIALS);
    page.save("forge.key", "from-the-file\n");
    // The first command reads from standard input, because there is no terminal.
    let said = page.follow_as("reader", "from-the-input\n");
    let said: Vec<_> = said
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    // Both values were set, list and show have the second one, and it is removed.
    assert_eq!(said.len(), 5, "{said:?}");
    assert_eq!(said[2..], ["forge", "forge", "removed"], "{said:?}");
    page.close();
}

/// Files of a reader: a site, a certificate with its key, an authority's certificate, and a
/// document.
const READER_FILES: &str = r#"
mkdir public
echo hello >public/index.html
make='openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 9'
$make -subj /CN=edge.example -addext subjectAltName=DNS:edge.example -keyout key.pem -out chain.pem
$make -subj /CN=lab -keyout lab.key -out authority.pem
printf 'openapi: 3.1.0\ninfo: {title: forge, version: "1"}\npaths: {}\n' >forge.yaml
"#;

#[test]
fn the_commands_of_the_page_of_stored_files_work() {
    let mut page = ReferencePage::open(STORED_FILES);
    let node = page.node("node");
    page.shell("reader", READER_FILES, "");
    let target = node.target();
    page.shell("reader", &format!("alknet node add attic {target}"), "");
    page.follow();
    let stored = || {
        let listed = node.call("config/list-files", &serde_json::Value::Null);
        let files = listed["files"].as_array().cloned().unwrap_or_default();
        files.len()
    };
    assert_eq!(stored(), 4, "one of each kind");

    // The page removes a second site.
    page.shell("reader", "alknet file add attic site/old ./public", "");
    assert_eq!(stored(), 5);
    let said = page.follow();
    assert!(said.contains("index.html"), "{said}");
    assert_eq!(stored(), 4);

    // A tar block with a header begins with its file's name.
    let archive = page.follow();
    let archive = data_encoding::BASE64.decode(archive.as_bytes());
    let archive = archive.expect("base64");
    let name = b"index.html\0";
    assert!(archive.windows(name.len()).any(|part| part == name));
    page.close();
}

#[test]
fn the_commands_of_the_page_of_tokens_work() {
    let mut page = ReferencePage::open(TOKENS);
    let node = page.node("node");
    page.put(NODE, node.target());
    let listed = format!("$(alknet token list {} | cut -d ' ' -f 1)", node.target());
    page.put("k3v9a2mb", listed);
    let said = page.follow();
    assert!(said.starts_with("alk_"), "{said}");
    let kept = node.call("token/list", &serde_json::Value::Null);
    assert_eq!(kept["tokens"], serde_json::json!([]), "the page removes it");

    let said = page.follow();
    assert!(said.starts_with("alk_") && said.contains("[[api_keys]]"));
    page.close();
}

#[test]
fn the_commands_of_the_page_of_peers_work() {
    let mut page = ReferencePage::open(PEERS);
    let [node, hub] = ["node", "hub"].map(|name| page.node(name));
    let [ada, other] = ["ada", "other"].map(|name| page.user(name).identity());
    page.put(NODE, node.target());
    page.put("ed25519:…@hub.example.org", hub.target());
    page.put("ed25519:OLD@192.0.2.7:443", node.target());
    page.put("ed25519:1f2e…", &ada);
    page.put("--key ed25519:…", format!("--key {other}"));
    let said = page.follow();
    assert!(
        said.contains(&ada) && said.contains("Ada's laptop"),
        "{said}"
    );

    // The other way to let the peer in. Afterwards only the store's entry exists again.
    let entry = page.next_block("toml");
    page.save("alknet.toml", &entry);
    let said = page.follow();
    assert!(said.contains("ada-laptop"), "{said}");
    let target = node.target();
    let back = format!(
        ": >none.toml; alknet config apply {target} none.toml; alknet node add attic {target}"
    );
    page.shell("reader", &back, "");

    let said = page.follow();
    assert!(said.contains(&other) && said.contains("disabled"), "{said}");
    let peers = node.call("peer/list", &serde_json::Value::Null);
    assert!(!peers.to_string().contains("ada-laptop"), "{peers:#}");

    // The configuration's key is changed there, so a peer in both nodes' stores changes its own.
    let key = page.user("traveller").identity();
    for node in [&node, &hub] {
        let enrol = format!("alknet peer add {} traveller --key {key}", node.target());
        page.shell("reader", &enrol, "");
    }
    page.follow_as("traveller", "");
    assert_ne!(page.user("traveller").identity(), key);

    let said = page.follow();
    assert!(said.contains("\"replaced\": true"), "{said}");
    page.close();
}
