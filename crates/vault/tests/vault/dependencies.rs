//! No network, no asynchronous runtime and no other crate of the project lies beneath the vault.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// A dependency on one of these gives code that reaches the network a way to the words.
const BANNED: [&str; 26] = [
    "async-io",
    "async-std",
    "async-trait",
    "curl",
    "futures-channel",
    "futures-core",
    "futures-util",
    "h2",
    "http",
    "hyper",
    "iroh",
    "mio",
    "native-tls",
    "openssl-sys",
    "polling",
    "quinn",
    "quinn-proto",
    "reqwest",
    "rustix",
    "rustls",
    "smol",
    "socket2",
    "tokio",
    "tokio-util",
    "url",
    "ureq",
];

fn metadata() -> Value {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .args([
            "--manifest-path",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
        ])
        .args(["--features", "secp256k1"])
        .output()
        .expect("cargo runs");
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{errors}");
    serde_json::from_slice(&out.stdout).expect("cargo metadata is JSON")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Everything that the crate needs at run time and to be built, features included, tests excluded.
fn tree(meta: &Value) -> BTreeSet<&str> {
    let names: BTreeMap<_, _> = list(&meta["packages"])
        .iter()
        .map(|package| (text(&package["id"]), text(&package["name"])))
        .collect();
    let needs = |node: &Value| {
        let kept = list(&node["deps"]).iter().filter(|dep| {
            let kinds = list(&dep["dep_kinds"]);
            kinds.iter().any(|kind| text(&kind["kind"]) != "dev")
        });
        let ids = kept.map(|dep| text(&dep["pkg"]).to_owned());
        ids.collect::<Vec<_>>()
    };
    let nodes: BTreeMap<_, _> = list(&meta["resolve"]["nodes"])
        .iter()
        .map(|node| (text(&node["id"]), needs(node)))
        .collect();
    let own = nodes.keys().find(|id| names[**id] == "alknet-vault");
    let mut open = vec![*own.expect("the crate is in its own graph")];
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        for next in nodes[id].iter() {
            let (next, _) = nodes.get_key_value(next.as_str()).expect("resolved");
            if seen.insert(*next) {
                open.push(next);
            }
        }
    }
    seen.into_iter().map(|id| names[id]).collect()
}

#[test]
fn nothing_that_reaches_the_network_or_waits_is_beneath_the_vault() {
    let meta = metadata();
    let tree = tree(&meta);
    // If the walk went wrong there would be nothing to find.
    for known in ["aes-gcm", "ed25519-dalek", "k256", "sha2", "typenum"] {
        assert!(tree.contains(known), "{known} is missing from {tree:?}");
    }
    let found: Vec<_> = BANNED.iter().filter(|name| tree.contains(**name)).collect();
    assert!(found.is_empty(), "the vault must not depend on {found:?}");
}

#[test]
fn no_other_crate_of_the_project_is_beneath_the_vault() {
    let meta = metadata();
    let members: BTreeSet<_> = list(&meta["workspace_members"]).iter().map(text).collect();
    let ours: BTreeSet<_> = list(&meta["packages"])
        .iter()
        .filter(|package| members.contains(text(&package["id"])))
        .map(|package| text(&package["name"]))
        .collect();
    assert!(ours.contains("alknet-vault"), "{ours:?}");
    let tree = tree(&meta);
    let found: Vec<_> = ours.intersection(&tree).collect();
    assert!(found.is_empty(), "the vault must not depend on {found:?}");
}
