//! The commands of pages in docs/ as a reader follows them: every block for a shell in order, with the nodes and keys of
//! the reader in the place of the page's.

mod backup_and_service;
mod files;
mod joined;
mod sync;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use alknet_test_support::limited;
use alknet_tests::{CliRunner, HostNode, TestBench, binary, run_with_input};

const CALLS: &str = include_str!("../../../docs/calls.md");
const CERTIFICATES: &str = include_str!("../../../docs/certificates.md");
const CONFIGURATION: &str = include_str!("../../../docs/configuration.md");
const CREDENTIALS: &str = include_str!("../../../docs/credentials.md");
const HTTP: &str = include_str!("../../../docs/http.md");
const MCP: &str = include_str!("../../../docs/mcp.md");
const OBSERVABILITY: &str = include_str!("../../../docs/observability.md");
const PEERS: &str = include_str!("../../../docs/peers.md");
const STATUS_PAGE: &str = include_str!("../../../docs/page.md");
const STORED_FILES: &str = include_str!("../../../docs/stored-files.md");
const TENSOR_STORE: &str = include_str!("../../../docs/tensor-store.md");
const TOKENS: &str = include_str!("../../../docs/tokens.md");

/// The node of the pages.
pub(crate) const NODE: &str = "ed25519:…@192.0.2.7:443";

/// Texts that no command contains after the reader's own values are inserted.
const PLACEHOLDERS: [&str; 4] = ["…", "192.0.2.", "example.org", "OLD"];

/// The set-up of the tests installs Python, and neither jq nor xxd.
const JQ_TEXT: &str = "python3 -c 'import json, sys; print(json.load(sys.stdin)[\"text\"])'";
const JQ_LIMITS: &str =
    "python3 -c 'import json, sys; print(json.load(sys.stdin)[\"config\"][\"limits\"])'";
const XXD: &str =
    "python3 -c 'import sys; sys.stdout.buffer.write(bytes.fromhex(sys.stdin.read()))'";

/// Limit for one block.
const BLOCK_MAX: Duration = Duration::from_secs(120);

/// A page, and the computer of a reader who follows it.
pub(crate) struct ReferencePage {
    bench: TestBench,
    /// Blocks that were not run yet: language and text.
    blocks: std::vec::IntoIter<(&'static str, String)>,
    /// Each text of the page with the reader's replacement, and whether the page contained it.
    values: Vec<(&'static str, String, bool)>,
}

/// Every block between fences: the language, and the text. A block of a numbered step loses the indentation of its
/// fence.
pub(crate) fn blocks(page: &'static str) -> Vec<(&'static str, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(&str, usize, String)> = None;
    for line in page.lines() {
        let text = line.trim_start();
        match (text.strip_prefix("```"), open.take()) {
            (Some(info), None) => open = Some((info, line.len() - text.len(), String::new())),
            (Some(_), Some((info, _, code))) => blocks.push((info, code)),
            (None, Some((info, indent, mut code))) => {
                // An empty line has no indentation.
                code.push_str(line.get(indent..).unwrap_or_default());
                code.push('\n');
                open = Some((info, indent, code));
            }
            (None, None) => {}
        }
    }
    blocks
}

/// What a shell runs behind a command that goes on until Ctrl-C: it ends the command once this was printed. If the
/// command ends by itself before that, the block fails.
fn until(printed: &str) -> String {
    format!(
        " >followed & until grep -qs '{printed}' followed; do kill -0 $!; sleep 0.1; done; kill $!; wait $! || true; \
         cat followed; rm followed"
    )
}

impl ReferencePage {
    pub(crate) fn open(page: &'static str) -> Self {
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
    pub(crate) fn user(&self, name: &str) -> CliRunner {
        CliRunner::new(self.bench.path().join(name).join("alknet"))
    }

    /// A node whose administrator is the reader.
    fn node(&self, name: &str) -> HostNode {
        HostNode::start(&self.bench.path().join(name), &self.user("reader"))
    }

    /// The same with this configuration.
    pub(crate) fn node_with(&self, name: &str, config: &str) -> HostNode {
        let file = self.work(&format!("{name}.toml"));
        fs::write(&file, config).expect("the folder is ours");
        let state = self.bench.path().join(name);
        HostNode::start_with(&state, &self.user("reader"), Some(&file))
    }

    pub(crate) fn work(&self, file: &str) -> PathBuf {
        self.bench.path().join("work").join(file)
    }

    pub(crate) fn save(&self, file: &str, content: impl AsRef<[u8]>) {
        fs::write(self.work(file), content).expect("the folder is ours");
    }

    /// Writes the file that curl reads its token from: every user of the host can read arguments.
    fn save_token(&self, node: &HostNode, scope: &str) {
        let target = node.target();
        let add = format!("alknet token add {target} --scope '{scope}' --expires 1d");
        let said = self.shell("reader", &add, "");
        let token = said.lines().find(|line| line.starts_with("alk_"));
        let token = token.unwrap_or_else(|| panic!("no token: {said}"));
        self.save("node.header", format!("Authorization: Bearer {token}\n"));
    }

    /// Writes `value` wherever the page has `written`. Replacements are made in the order in which
    /// they were given.
    pub(crate) fn put(&mut self, written: &'static str, value: impl Into<String>) {
        self.values.push((written, value.into(), false));
    }

    /// The next block of a language, with the reader's values. Blocks of other languages before it
    /// are skipped, but no shell block is.
    pub(crate) fn next_block(&mut self, language: &str) -> String {
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
    pub(crate) fn follow_as(&mut self, user: &str, input: &str) -> String {
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
    pub(crate) fn follow(&mut self) -> String {
        self.follow_as("reader", "")
    }

    /// Both outputs of commands that must succeed.
    pub(crate) fn shell(&self, user: &str, code: &str, input: &str) -> String {
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
    pub(crate) fn close(mut self) {
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

#[test]
fn a_block_of_a_numbered_step_is_read_without_its_indentation() {
    let page = "1. A\n\n   ```sh\n   a <<E\n     b\n\n   E\n   ```\n\n```toml\nc = 1\n```\n";
    let found = blocks(page);
    let expected = [("sh", "a <<E\n  b\n\nE\n"), ("toml", "c = 1\n")];
    assert_eq!(found, expected.map(|(info, text)| (info, text.to_owned())));
}

/// Where a node listens, without its key.
fn address(node: &HostNode) -> &str {
    let (_, address) = node.target().split_once('@').expect("a pinned target");
    address
}

#[test]
fn the_commands_of_the_page_of_certificates_work() {
    let mut page = ReferencePage::open(CERTIFICATES);
    let node = page.node("node");
    let (key, _) = node.target().split_once('@').expect("a pinned target");
    let hex = key.strip_prefix("ed25519:").expect("a key of that kind");
    page.put(NODE, node.target());
    page.put("xxd -r -p", XXD);
    page.put("' KEY |", format!("' {hex} |"));
    page.put("https://192.0.2.7/", format!("https://{}/", address(&node)));

    let said = page.follow();
    assert!(said.contains("--pinnedpubkey 'sha256//"), "{said}");

    let said = page.follow();
    assert!(said.starts_with("wrote node.pem"), "{said}");
    let text = fs::read_to_string(page.work("node.pem")).expect("the command wrote it");
    assert!(text.starts_with("-----BEGIN CERTIFICATE-----"), "{text}");

    // curl ends with an error if the server proves another key than the pin has.
    page.follow();
    page.close();
}

#[test]
fn the_commands_of_the_page_of_the_configuration_work() {
    let mut page = ReferencePage::open(CONFIGURATION);
    let node = page.node("node");
    let target = node.target();
    page.put(NODE, target);
    page.put("jq .config.limits", JQ_LIMITS);
    page.shell("reader", &format!("alknet node add attic {target}"), "");

    // The page changes generation 4, and the node begins with the first.
    let document = |burst: u32| format!("[limits]\nhandshake_burst = {burst}\n");
    let apply = format!("alknet config apply {target} alknet.toml");
    for burst in [61, 62, 63] {
        page.save("alknet.toml", document(burst));
        page.shell("reader", &apply, "");
    }
    let said = page.follow();
    assert!(said.contains("# generation 4, from: "), "{said}");
    assert!(said.contains("'handshake_burst': 63"), "{said}");

    page.save("alknet.toml", document(64));
    let said = page.follow();
    for line in [
        "alknet.toml: valid",
        "generation 4 would be replaced",
        "generation 5 is in force",
    ] {
        assert!(
            said.lines().any(|it| it.starts_with(line)),
            "{line}: {said}"
        );
    }
    page.close();
}

#[test]
fn the_commands_of_the_page_of_observability_work() {
    let mut page = ReferencePage::open(OBSERVABILITY);
    let node = page.node("node");
    page.put(NODE, node.target());
    // One of the first records of every node.
    let serves = until("serving ");
    page.put(" -f\n", format!(" -f{serves}\n"));
    let follow = " '{\"follow\": true}'";
    page.put(follow, format!("{follow}{serves}"));
    page.put("jq -r .text", JQ_TEXT);
    let said = page.follow();
    let seen = said.matches("serving ").count();
    assert!(seen >= 3, "once for each command: {said}");
    let said = page.follow();
    assert!(said.contains("\nalknet_connections{"), "{said}");
    page.close();
}

#[test]
fn the_commands_of_the_page_of_the_status_page_work() {
    let mut page = ReferencePage::open(STATUS_PAGE);
    let node = page.node("node");
    page.put(NODE, node.target());
    let begins = format!("https://{}/status/", address(&node));
    for _ in ["the page", "the action"] {
        // Without a terminal the command prints the link.
        let said = page.follow();
        let link = said.trim();
        assert!(link.starts_with(&begins), "{link}");
        let get = "curl --silent --insecure --output /dev/null --write-out %{http_code}";
        let said = page.shell("reader", &format!("{get} '{link}'"), "");
        assert!(["200", "303"].contains(&said.as_str()), "{link}: {said}");
    }
    page.close();
}

#[test]
fn the_commands_of_the_page_of_http_work() {
    let mut page = ReferencePage::open(HTTP);
    let node = page.node("node");
    page.save_token(&node, "*");
    let curl = "--insecure --header @node.header";
    let at = format!("https://{}/", address(&node));
    // This command goes on until the test ends it.
    let follows = "\"follow\":true}}' ";
    let ends = format!("{follows}{at}subscribe{}", until("event: data"));
    page.put("\"follow\":true}}' https://192.0.2.7/subscribe", ends);
    page.put(
        "--header \"Authorization: Bearer alk_…\"",
        "--header @node.header",
    );
    page.put("curl …", format!("curl {curl}"));
    page.put("--no-buffer …", format!("--no-buffer {curl}"));
    page.put("/t/…", "/t/TICKET");
    page.put("https://192.0.2.7/", &at);
    let said = page.follow();
    assert_eq!(said.matches("\"request_id\"").count(), 1, "{said}");
    let said = page.follow();
    assert_eq!(said.matches("\"request_id\"").count(), 1, "{said}");
    let said = page.follow();
    assert!(said.contains("event: data"), "{said}");
    let said = page.follow();
    assert!(said.contains("/subscribe/t/"), "{said}");
    page.close();
}

#[test]
fn the_commands_of_the_page_of_mcp_work() {
    let mut page = ReferencePage::open(MCP);
    let node = page.node("node");
    page.put(NODE, node.target());
    page.put(
        "https://node.example/",
        format!("https://{}/", address(&node)),
    );
    // As the page says of a node without a public certificate.
    page.put("curl --silent", "curl --insecure --silent");
    let said = page.follow();
    assert!(said.starts_with("alk_"), "{said}");
    page.save_token(&node, "node:read");
    let said = page.follow();
    assert!(said.contains("\"result\""), "{said}");
    page.close();
}

/// A list of numbers as NumPy writes it (format 1.0 of its NEP 1).
fn npy(numbers: &[f32]) -> Vec<u8> {
    let count = numbers.len();
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({count},), }}");
    // Magic, version and length have ten bytes, and the numbers begin at a multiple of 64.
    let header = format!("{header:<117}\n");
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    let length = u16::try_from(header.len()).expect("a short header");
    file.extend(length.to_le_bytes());
    file.extend(header.bytes());
    file.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    file
}

#[test]
fn the_commands_of_the_page_of_the_tensor_store_work() {
    let mut page = ReferencePage::open(TENSOR_STORE);
    let node = page.node("node");
    let target = node.target();
    page.put(NODE, target);
    page.put("https://192.0.2.7/", format!("https://{}/", address(&node)));
    page.put("curl …", "curl --insecure --header @node.header");
    // The last command serves until the test ends it.
    let admin = "--admin \"$(alknet identity)\"";
    let serves = format!("--listen 127.0.0.1 --port 0 {admin}{}", until("serving "));
    page.put(admin, serves);
    page.save_token(&node, "tensor:read:models");
    for folder in ["dataset", "models"] {
        fs::create_dir(page.work(folder)).expect("the folder is ours");
    }
    for name in ["model.layers.0.bias", "lm_head.weight"] {
        page.save(&format!("dataset/{name}.npy"), npy(&[0.5, 1.5, 2.5]));
    }
    let make = format!(
        "alknet node add attic {target}; alknet tensor pack dataset models/bert.mt; \
         alknet tensor push attic models/bert.mt models/bert"
    );
    page.shell("reader", &make, "");

    page.follow();
    let read = |file: &str| fs::read(page.work(file)).expect("the command wrote it");
    assert!(read("bert.mt") == read("models/bert.mt"));
    // What curl wrote is not written over.
    page.shell("reader", "rm bert.mt", "");
    page.follow();
    let read = |file: &str| fs::read(page.work(file)).expect("the command wrote it");
    assert!(read("bert.mt") == read("copy.mt"));
    assert!(read("part.mt").len() < read("copy.mt").len());

    let said = page.follow();
    let stored = node.call(
        "tensor/open",
        &serde_json::json!({ "src": { "path": "models/bert" } }),
    );
    assert!(
        said.contains(stored["id"].as_str().unwrap_or("no id")),
        "{said} {stored}"
    );
    let said = page.follow();
    assert!(said.contains("  models/bert"), "{said}");
    let said = page.follow();
    assert!(said.contains("models/bert is removed"), "{said}");
    let said = page.follow();
    assert!(said.contains("serving ed25519:"), "{said}");
    page.close();
}
