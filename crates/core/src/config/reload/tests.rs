use super::*;
use crate::clock::SystemClock;
use crate::identity::IdentityProvider;

fn key(n: u8) -> PeerKey {
    PeerKey::Ed25519([n; 32])
}

/// `KEY1` and so on stand for keys.
fn document(text: &str) -> Vec<u8> {
    let text = (0..10).fold(text.to_owned(), |text, n| {
        text.replace(&format!("KEY{n}"), &key(n).to_string())
    });
    text.into_bytes()
}

const ONE_ADMIN: &str = "node.admin_keys = [\"KEY1\"]\n";

fn edge(keys: &str) -> String {
    format!("{ONE_ADMIN}[[peers]]\npeer_id = \"edge\"\nkeys = [{keys}]\nscopes = [\"fs:read\"]\n")
}

fn handle(text: &str) -> (ReloadHandle, Arc<Identities>) {
    let config = NodeConfig::parse(&document(text)).expect("a correct document");
    let clock = Arc::new(SystemClock { built_s: 0 });
    let identities = Arc::new(Identities::new(config.entries(), clock));
    let handle = ReloadHandle::new(config, identities.clone());
    handle.know_scopes(|| ["fs:read", "call:*"].map(str::to_owned).into());
    (handle, identities)
}

fn by(identities: &Identities, n: u8) -> Option<(Arc<Identity>, Option<PeerKey>)> {
    Some((identities.by_key(&key(n))?, Some(key(n))))
}

#[test]
fn a_document_comes_into_force_whole() {
    let (handle, identities) = handle(ONE_ADMIN);
    let watch = handle.watch();
    let text = document(&edge("\"KEY2\""));
    let applied = handle.apply(&ConfigChange::of_owner(&text, ConfigSource::File));
    let applied = applied.expect("a correct document");
    assert_eq!((applied.generation, applied.changed), (2, true));
    assert_eq!(applied.peers.added, ["edge"]);
    assert!(applied.restart_required.is_empty() && applied.warnings.is_empty());
    assert!(identities.by_key(&key(2)).is_some());
    assert_eq!(*watch.borrow(), 2);
    let current = handle.current();
    assert_eq!(
        (current.generation, &current.source),
        (2, &ConfigSource::File)
    );
}

#[test]
fn a_family_of_scopes_is_asked_for_by_all_that_begin_so() {
    let grants = |known, granted| is_granted_by(known, granted);
    for granted in [
        "tensor:read:a",
        "tensor:read:a/*",
        "tensor:read:*",
        "tensor:*",
        "*",
    ] {
        assert!(grants("tensor:read:*", granted), "{granted}");
    }
    for granted in ["tensor:write:a", "tensor:reads", "fs:*", "fs:read"] {
        assert!(!grants("tensor:read:*", granted), "{granted}");
    }
    assert!(grants("fs:read", "fs:*") && grants("fs:read", "fs:read"));
    assert!(!grants("fs:read", "fs:readonly"));
}

#[test]
fn the_same_again_changes_nothing() {
    let (handle, _) = handle(ONE_ADMIN);
    let watch = handle.watch();
    let text = document(&format!("# a comment\n{ONE_ADMIN}"));
    let applied = handle.apply(&ConfigChange::of_owner(&text, ConfigSource::Signal));
    let applied = applied.expect("a correct document");
    assert_eq!((applied.generation, applied.changed), (1, false));
    assert!(!watch.has_changed().expect("the handle lives"));
}

#[test]
fn a_mistake_refuses_all_of_it() {
    let (handle, identities) = handle(&edge("\"KEY2\""));
    let text = document(&format!("{}wrong = 1\n", edge("\"KEY3\"")));
    let refused = handle.apply(&ConfigChange::of_owner(&text, ConfigSource::File));
    assert!(matches!(&refused, Err(ApplyError::Refused(errors)) if errors.len() == 1));
    assert!(refused.is_err_and(|error| error.to_string().contains("line 6")));
    assert!(identities.by_key(&key(2)).is_some() && identities.by_key(&key(3)).is_none());
    assert_eq!(handle.current().generation, 1);
}

#[test]
fn a_dry_run_says_the_same_and_does_nothing() {
    let (handle, identities) = handle(ONE_ADMIN);
    let text = document(&edge("\"KEY2\""));
    let mut change = ConfigChange::of_owner(&text, ConfigSource::File);
    change.dry_run = true;
    let tried = handle.apply(&change).expect("a correct document");
    assert_eq!((tried.generation, tried.changed), (1, true));
    assert!(tried.dry_run && identities.by_key(&key(2)).is_none());
    change.dry_run = false;
    let done = handle.apply(&change).expect("a correct document");
    assert_eq!((done.peers, done.generation), (tried.peers, 2));
}

#[test]
fn a_change_to_what_is_no_longer_in_force_is_refused() {
    let (handle, _) = handle(ONE_ADMIN);
    let text = document(&edge("\"KEY2\""));
    let mut change = ConfigChange::of_owner(&text, ConfigSource::File);
    change.generation = Some(1);
    assert!(handle.apply(&change).is_ok());
    let conflict = ApplyError::Conflict {
        expected: 1,
        actual: 2,
    };
    assert_eq!(handle.apply(&change), Err(conflict));
}

#[test]
fn an_administrator_keeps_its_own_access() {
    let two = "node.admin_keys = [\"KEY1\", \"KEY2\"]\n";
    let (handle, identities) = handle(two);
    let without_first = document("node.admin_keys = [\"KEY2\"]\n");
    let mut change =
        ConfigChange::of_owner(&without_first, ConfigSource::Operation("admin".into()));
    change.admin = by(&identities, 1);
    assert!(change.admin.is_some());
    let refused = handle.apply(&change);
    assert!(refused.is_err_and(|error| error.to_string().contains("admin_keys")));
    // Another administrator may, and keeps its name.
    change.admin = by(&identities, 2);
    let applied = handle.apply(&change).expect("the other one stays");
    assert_eq!(applied.peers.removed, ["admin"]);
    assert!(applied.peers.changed.is_empty());
    let stays = identities.by_key(&key(2)).expect("an administrator");
    assert_eq!(stays.id.as_str(), "admin-2");
    // The next administrator gets the name that is free.
    let three = document("node.admin_keys = [\"KEY2\", \"KEY3\", \"KEY4\"]\n");
    let applied = handle.apply(&ConfigChange::of_owner(&three, ConfigSource::File));
    assert_eq!(applied.expect("correct").peers.added, ["admin", "admin-3"]);
    let third = identities.by_key(&key(3)).expect("an administrator");
    assert_eq!(third.id.as_str(), "admin");
    // The owner of the machine may shut out every administrator.
    let unknown_peer = ConfigChange::of_owner(b"", ConfigSource::File);
    assert!(handle.apply(&unknown_peer).is_ok());
}

#[test]
fn what_waits_for_a_restart_is_named_until_it_is_taken_back() {
    let (handle, _) = handle(ONE_ADMIN);
    let text = document(&format!(
        "runtime.min_sandbox = \"full\"\ncompute.driver = \"none\"\nlisten.port = 4433\n\
         fs.enabled = false\nnode.name = \"edge\"\n{ONE_ADMIN}[[network]]\nmatch = \"eth0\"\n"
    ));
    let applied = handle.apply(&ConfigChange::of_owner(&text, ConfigSource::File));
    let waiting = [
        "listen.port",
        "node.name",
        "network",
        "runtime",
        "compute",
        "fs",
    ];
    assert_eq!(applied.expect("correct").restart_required, waiting);
    assert_eq!(handle.current().restart_required, waiting);
    let back = document(ONE_ADMIN);
    let applied = handle.apply(&ConfigChange::of_owner(&back, ConfigSource::File));
    assert!(applied.expect("correct").restart_required.is_empty());
}

#[test]
fn what_a_restarted_node_runs_with_waits_for_nothing() {
    let parse = |text: &str| NodeConfig::parse(&document(text)).expect("a correct document");
    let running = parse(
        "listen.port = 4433\nruntime.min_sandbox = \"full\"\ncompute.host_kernels = false\nfs.staging_mib = 1\n[node]\nname = \"a\"\nadmin_keys = [\"KEY1\"]",
    );
    let next = parse(&format!(
        "node.name = \"b\"\nlog.level = \"debug\"\n{}",
        edge("\"KEY2\"")
    ));
    let both = next.clone().running_as(&running);
    assert!(static_keys(&running, &both).is_empty());
    assert_eq!(both.entries(), next.entries());
    assert_eq!((both.log, both.limits), (next.log, next.limits));
}

#[test]
fn unused_scopes_give_a_warning() {
    let (handle, _) = handle(ONE_ADMIN);
    let text = edge("\"KEY2\"").replace("\"fs:read\"", "\"fs:read\", \"fs:*\", \"fs:reed\"");
    let applied = handle.apply(&ConfigChange::of_owner(
        &document(&text),
        ConfigSource::File,
    ));
    let warnings = applied.expect("correct").warnings;
    assert_eq!(warnings.len(), 1);
    let message = warnings[0].to_string();
    assert!(
        message.contains("edge") && message.contains("'fs:reed'"),
        "{message}"
    );
}

#[test]
fn a_warning_about_a_scope_names_the_nearest_one() {
    let (handle, _) = handle(ONE_ADMIN);
    for (scope, meant) in [
        ("fs:reed", Some("'fs:read'")),
        ("cal:js:total", Some("'call:js:total'")),
        ("cal", Some("'call:*'")),
        ("reports:send", None),
    ] {
        let granted = [scope].into_iter().collect();
        let warnings = handle.scope_warnings("ada", &granted);
        assert_eq!(warnings.len(), 1, "{scope}: {warnings:?}");
        let said = &warnings[0].what;
        match meant {
            Some(meant) => assert!(said.ends_with(&format!("did you mean {meant}?")), "{said}"),
            None => assert!(said.ends_with(&format!("'{scope}'")), "{said}"),
        }
    }
    let known = ["fs:*", "call:js:total"].into_iter().collect();
    assert!(handle.scope_warnings("ada", &known).is_empty());
}

#[test]
fn options_of_the_command_line_win() {
    let (handle, identities) = handle(ONE_ADMIN);
    let handle = handle.with_overlay(|config| {
        config.node.admin_keys.push(key(9).to_string());
    });
    let text = document(&edge("\"KEY2\""));
    let applied = handle.apply(&ConfigChange::of_owner(&text, ConfigSource::File));
    assert_eq!(applied.expect("correct").peers.added, ["admin-2", "edge"]);
    assert!(identities.by_key(&key(9)).is_some());
}

#[test]
fn rotation_keeps_the_name_and_changes_the_keys() {
    let (handle, identities) = handle(&edge("\"KEY2\""));
    for (keys, known) in [
        ("\"KEY2\", \"KEY3\"", [true, true]),
        ("\"KEY3\"", [false, true]),
    ] {
        let text = document(&edge(keys));
        let applied = handle.apply(&ConfigChange::of_owner(&text, ConfigSource::File));
        assert_eq!(applied.expect("correct").peers.changed, ["edge"]);
        let held = [2, 3].map(|n| identities.by_key(&key(n)).is_some());
        assert_eq!(held, known);
    }
}
