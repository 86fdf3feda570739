//! The commands of docs/hub.md and docs/promotion.md, as a reader follows them.

use std::fs;

use alknet_tests::{HostNode, eventually};
use serde_json::Value;

use super::page_commands::{NODE, ReferencePage, blocks};

const HUB: &str = include_str!("../../../docs/hub.md");
const PROMOTION: &str = include_str!("../../../docs/promotion.md");

/// The hub of the page, and what its own key and address are there.
const HUB_NODE: &str = "ed25519:…@hub.example.org";
const HUB_KEY: &str = "ed25519:d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

/// A row that a hub lists, once it has one with this name. Without a state each is right.
fn listed(page: &ReferencePage, hub: &HostNode, rows: &str, name: &str, state: &str) -> Value {
    let reader = page.user("reader");
    eventually(&format!("{name} {state}"), || {
        let said = reader.run(reader.command(&["hub", "list", hub.target()]));
        let all = said.json()[rows].as_array().cloned().unwrap_or_default();
        let is_wanted =
            |row: &Value| row["name"] == name && (state.is_empty() || row["state"] == state);
        all.into_iter().find(is_wanted)
    })
}

/// The join string among what a command said.
fn join_string(said: &str) -> String {
    let mut words = said.split_whitespace();
    let join = words.find(|word| word.starts_with("alkjoin1_"));
    join.unwrap_or_else(|| panic!("no join string: {said}"))
        .to_owned()
}

#[test]
fn the_commands_of_the_page_of_hubs_work() {
    let mut page = ReferencePage::open(HUB);
    let roles = page.next_block("toml");
    // Keys by hand as well, which the page comes to later.
    let config = roles.replacen("enabled = true", "enabled = true\nenroll = \"approve\"", 1);
    let hub = page.node_with("hub", &config);
    let (key, address) = hub.target().split_once('@').expect("a pinned target");
    let target = hub.target().to_owned();
    page.shell("reader", &format!("alknet node add attic {target}"), "");
    page.put(HUB_NODE, &target);
    page.put(HUB_KEY, key);
    page.put("hub.example.org", address);
    let join = join_string(&page.follow());
    let of_laptop = format!("alknet hub invite {target} --role user");
    let of_laptop = join_string(&page.shell("reader", &of_laptop, ""));
    page.put(
        "alknet enroll alkjoin1_…",
        format!("alknet enroll {of_laptop}"),
    );
    page.put("alkjoin1_…", join);
    let kitchen = page.next_block("toml");
    let _kitchen = page.node_with("kitchen", &kitchen);
    listed(&page, &hub, "peers", "kitchen", "ready");
    let said = page.follow();
    assert!(said.contains("ready"), "{said}");

    // The page's entry has no token: the node waits for approval.
    let entry = page.next_block("toml");
    // The worker reads its file again, and dials the hub again.
    let admins = page.next_block("toml");
    let (_, join) = kitchen.split_once("[[join]]").expect("an entry");
    page.save("kitchen.toml", format!("{admins}[[join]]{join}"));
    eventually("an administrator's verb through the hub", || {
        let reader = page.user("reader");
        let list = ["token", "list", "kitchen", "--via", hub.target()];
        (reader.run(reader.command(&list)).status == 0).then_some(())
    });
    page.follow();
    let cellar = format!("[node]\nname = \"cellar\"\n{entry}");
    let _cellar = page.node_with("cellar", &cellar);
    page.follow_as("laptop", "");
    let said = page.follow();
    assert_eq!(
        said.matches("\"identity\": \"ed25519:").count(),
        2,
        "{said}"
    );
    let waiting = listed(&page, &hub, "waiting", "cellar", "");
    let words = waiting["fingerprint"].as_str().expect("six words");
    page.put("lusab-babad-gutih-tugad-bakuh-sojin", words);
    page.follow();
    listed(&page, &hub, "peers", "cellar", "");
    page.follow();
    let peers = hub.call("hub/peers", &Value::Null)["peers"].take();
    let removed = peers.as_array().expect("a list").iter();
    let removed: Vec<_> = removed.filter(|row| row["state"] == "removed").collect();
    assert_eq!(removed.len(), 1, "{peers:#}");
    // The reader removes the peer a second time, by its id, as the page says.
    let id = removed[0]["peer_id"].as_str().expect("an id");
    page.put(
        "kitchen --close-invitations",
        format!("{id} --close-invitations"),
    );
    let another = format!("alknet hub invite {target} --count 3");
    page.shell("reader", &another, "");
    let open = || hub.call("hub/peers", &Value::Null)["invitations"].take();
    assert_ne!(open(), Value::Array(Vec::new()));
    page.follow();
    assert_eq!(open(), Value::Array(Vec::new()));
    page.close();
}

/// Writes the files of the page of promotion, whose names are behind the languages of the blocks. The record is what a
/// command writes.
fn write_files(page: &ReferencePage) {
    let all = blocks(PROMOTION).into_iter();
    let files = all.filter_map(|(info, text)| Some((info.split_once(' ')?.1, text)));
    for (name, text) in files.filter(|(name, _)| *name != "total/two-items.json") {
        let file = page.work(name);
        let folder = file.parent().expect("each file is in a folder");
        fs::create_dir_all(folder).expect("the folder is ours");
        page.save(name, &text);
    }
}

#[test]
fn the_commands_of_the_page_of_promotion_work() {
    let mut page = ReferencePage::open(PROMOTION);
    let config = page.next_block("toml");
    let node = page.node_with("node", &config);
    write_files(&page);
    let target = node.target();
    let id = format!("$(alknet ops proposals {target} --only proposed | cut -d ' ' -f 1)");
    page.put(NODE, target);
    page.put("ed25519:1f2e…", page.user("rev").identity());
    page.put("3f0912ab77c4", id);
    let said = page.follow();
    assert!(
        said.contains("'rev' decides by 'alknet ops promote"),
        "{said}"
    );
    let said = page.follow_as("rev", "");
    assert!(said.contains("js/tax/rate is external: "), "{said}");
    let said = page.follow();
    assert!(said.contains("\"percent\": 50"), "{said}");
    assert!(said.contains("Version 1 was the only one"), "{said}");
    // The administrator alone, and the answer that the page has.
    let said = page.follow();
    assert!(said.contains("js/invoice/total is external: "), "{said}");
    assert_eq!(said.lines().last(), Some(page.next_block("text").trim()));
    // The record is the one on the page.
    let said = page.follow();
    assert_eq!(said, page.next_block("text"));
    let shown = page.next_block("json total/two-items.json");
    let [shown, recorded] = [shown, read(&page, "total/two-items.json")];
    let [shown, recorded] = [shown, recorded].map(|text| serde_json::from_str::<Value>(&text));
    assert_eq!(shown.expect("JSON"), recorded.expect("JSON"));
    page.close();
}

fn read(page: &ReferencePage, name: &str) -> String {
    fs::read_to_string(page.work(name)).expect("a command wrote it")
}
