//! The commands of docs/hub.md and docs/command-line.md, at a hub, its workers and a person who enrols.

use alknet_core::PeerKey;
use alknet_hub::fingerprint;
use alknet_tests::{HostNode, eventually};
use serde_json::Value;

use super::{NODE, ReferencePage, address};

const COMMAND_LINE: &str = include_str!("../../../../docs/command-line.md");
const HUB_PAGE: &str = include_str!("../../../../docs/hub.md");

/// The hub of the page.
const HUB: &str = "ed25519:…@hub.example.org";

/// The fingerprint of the page.
const WORDS: &str = "lusab-babad-gutih-tugad-bakuh-sojin";

/// The join string among what `alknet hub invite` printed.
fn join_string(said: &str) -> &str {
    let code = said.lines().find(|line| line.starts_with("alkjoin1_"));
    code.unwrap_or_else(|| panic!("no join string: {said}"))
}

/// Starts a node of the reader with this configuration.
fn start(page: &ReferencePage, name: &str, config: &str) -> HostNode {
    let file = format!("{name}.toml");
    page.save(&file, config);
    let state = page.bench.path().join(name);
    HostNode::start_with(&state, &page.user("reader"), Some(&page.work(&file)))
}

/// Waits until what the hub says of its peers has all of these texts.
fn until_listed(hub: &HostNode, wanted: &[&str]) {
    eventually(&format!("the hub lists {wanted:?}"), || {
        let listed = hub.call("hub/peers", &Value::Null).to_string();
        wanted.iter().all(|it| listed.contains(it)).then_some(())
    });
}

/// Whether the reader's call of a peer of the hub is answered.
fn reaches(page: &ReferencePage, hub: &HostNode, peer: &str) -> bool {
    let reader = page.user("reader");
    let called = reader.call(hub.target(), "node/info", &Value::Null, &["--peer", peer]);
    called.status == 0
}

#[test]
fn the_commands_of_the_page_of_the_hub_work() {
    let mut page = ReferencePage::open(HUB_PAGE);
    let config = page.next_block("toml");
    // The page has both ways to let nodes in.
    let config = config.replace("enabled = true", "enabled = true\nenroll = \"approve\"");
    let hub = start(&page, "hub", &config);
    page.put(HUB, hub.target());
    page.put("hub.example.org", address(&hub));
    let add = format!("alknet node add attic {}", hub.target());
    page.shell("reader", &add, "");

    let said = page.follow();
    let config = page.next_block("toml");
    let config = config.replace("alkjoin1_…", join_string(&said));
    let _kitchen = start(&page, "kitchen", &config);
    until_listed(&hub, &["\"kitchen\"", "\"ready\""]);
    let said = page.follow();
    assert!(said.contains("\"name\": \"kitchen\""), "{said}");

    // A node without a join string asks by hand.
    let (key, _) = hub.target().split_once('@').expect("a pinned target");
    let entry = page.next_block("toml");
    let written = entry.lines().find(|line| line.starts_with("key = "));
    let entry = entry.replace(written.expect("a key"), &format!("key = \"{key}\""));
    let cellar = start(
        &page,
        "cellar",
        &format!("[node]\nname = \"cellar\"\n{entry}"),
    );
    let (key, _) = cellar.target().split_once('@').expect("a pinned target");
    let words = fingerprint(&key.parse::<PeerKey>().expect("a key"));

    let invite = format!("alknet hub invite {} --role user", hub.target());
    let said = page.shell("reader", &invite, "");
    page.put("alkjoin1_…", join_string(&said));
    let said = page.follow_as("ada", "");
    assert!(said.contains("\"name\": \"kitchen\""), "{said}");
    let said = page.follow();
    let seen = said.matches("\"name\": \"kitchen\"").count();
    assert_eq!(seen, 2, "once for each call: {said}");

    until_listed(&hub, &[&words]);
    page.put(WORDS, words);
    page.follow();
    eventually("the approved worker is called", || {
        reaches(&page, &hub, "cellar").then_some(())
    });
    assert!(reaches(&page, &hub, "kitchen"));
    page.follow();
    assert!(!reaches(&page, &hub, "kitchen"), "the worker was removed");
    page.close();
}

#[test]
fn the_commands_of_the_page_of_the_command_line_work() {
    let mut page = ReferencePage::open(COMMAND_LINE);
    let hub = start(
        &page,
        "hub",
        "[hub]\nenabled = true\n[[hub.role]]\nname = \"worker\"\n",
    );
    let other = page.node("other");
    page.put(NODE, other.target());
    let invite = format!(
        "alknet node add attic {}; alknet hub invite attic --role worker",
        hub.target()
    );
    let said = page.shell("reader", &invite, "");
    let config = format!(
        "[node]\nname = \"kitchen\"\n[[join]]\ncode = \"{}\"\nscopes = [\"node:read\", \"runtime:debug\"]\n",
        join_string(&said)
    );
    let _kitchen = start(&page, "kitchen", &config);
    until_listed(&hub, &["\"kitchen\"", "\"ready\""]);

    let said = page.follow();
    let last = said.lines().last();
    assert_eq!(last, Some("forgot hall"), "{said}");
    assert!(said.contains("kitchen@attic"), "{said}");

    // The comments of the page say which node is the default.
    page.shell("reader", "alknet node use attic", "");
    page.save("report.ts", "export default 6 * 7;\n");
    let said = page.follow();
    assert_eq!(said.matches("name       kitchen\n").count(), 3, "{said}");
    assert!(said.ends_with("\n42\n"), "{said}");

    page.follow();
    let share = page.bench.path().join("reader/.local/share");
    for made in [
        "man/man1/alknet-token-add.1",
        "bash-completion/completions/alknet",
    ] {
        assert!(share.join(made).exists(), "{made}");
    }
    page.close();
}
