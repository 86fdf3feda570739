//! The commands of docs/command-line.md, at a hub and its worker.

use alknet_tests::{HostNode, eventually};
use serde_json::Value;

use super::{NODE, ReferencePage};

const COMMAND_LINE: &str = include_str!("../../../../docs/command-line.md");

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

    // A megabyte of texts, which no message should have.
    let said = page.follow();
    for part in ["Linux ", "\nserde_json 1.", "GNU GENERAL PUBLIC LICENSE"] {
        assert!(said.contains(part), "the lists and texts lack {part:?}");
    }
    page.close();
}
