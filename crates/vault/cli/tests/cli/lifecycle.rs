//! Whole lives of vaults, by a script.

use std::process::{Command, Stdio};

use alknet_vault::Successor;

use crate::shell::{CHEAP, CommandFolder, WORDS};

const NODE: &str = "e78c2766a792f09bfccb51493968ac322283e8d021a30063784d806929762ecc";

#[test]
fn a_vault_is_made_used_rotated_and_looked_at() {
    let shell = CommandFolder::new();
    let init = format!(
        "init --dir vault --slot passphrase --slot provisioning --passphrase-stdin {CHEAP}"
    );
    let made = shell.json(&init, "right\n");
    let words = made["words"].as_str().expect("they are shown once");
    assert_eq!(words.split(' ').count(), 24);
    assert_eq!(made["sealed"], true);
    let id = made["vault"].as_str().expect("an id");
    let seed = std::fs::read_to_string(shell.path("vault/seed.key")).expect("made");
    assert!(seed.starts_with(&format!("alknet-seed-1 {id} ")));

    // The seed opens it; without it the passphrase does.
    shell.good("record add cred:openai --dir vault", "sk-test-123");
    assert_eq!(
        shell.good("record show cred:openai --dir vault", ""),
        "sk-test-123"
    );
    std::fs::rename(shell.path("vault/seed.key"), shell.path("seed.key")).expect("moved");
    let open = "record show cred:openai --dir vault --passphrase-stdin";
    assert_eq!(shell.good(open, "right\n"), "sk-test-123");
    assert_eq!(
        shell.fails(open, "wrong\n"),
        (11, "WRONG_PASSPHRASE".to_owned())
    );
    assert_eq!(shell.fails(open, "").0, 2);
    let with_seed = "--dir vault --seed-key seed.key";
    shell.good(&format!("record add wifi:home {with_seed}"), "");
    let data = shell.json(&format!("record show cred:openai {with_seed}"), "");
    assert_eq!(data["data"], "c2stdGVzdC0xMjM=");

    let listed = shell.json("record list --dir vault", "");
    assert_eq!(listed["records"][1]["label"], "wifi:home");
    assert_eq!(listed["records"][0]["key_version"], 2);
    shell.good(&format!("record rotate --to 4 {with_seed}"), "");
    assert_eq!(shell.json("status --dir vault", "")["key_version"], 4);
    assert_eq!(
        shell.good(&format!("record show cred:openai {with_seed}"), ""),
        "sk-test-123"
    );
    // A record for somewhere else, kept nowhere here.
    let record = shell.json(
        &format!("record add cred:far --print {with_seed}"),
        "sk-far",
    )["record"]
        .take();
    assert_eq!(
        (&record["alg"], &record["key_version"]),
        (&"ALK1".into(), &4.into())
    );
    let table = shell.good(
        &format!("record add cred:far --print {with_seed}"),
        "sk-far",
    );
    for line in [
        "[credentials.record]\n",
        "alg = \"ALK1\"",
        "key_version = 4",
    ] {
        assert!(table.contains(line), "{table}");
    }
    assert!(!table.contains("sk-far"), "{table}");
    assert_eq!(
        shell
            .fails(&format!("record show cred:far {with_seed}"), "")
            .1,
        "NOT_FOUND"
    );
    shell.good(&format!("record add cred:b {with_seed}"), "x");
    assert_eq!(
        shell.json("record list --dir vault", "")["records"][0]["key_version"],
        4
    );
    assert_eq!(
        shell
            .fails(&format!("record rotate --to 3 {with_seed}"), "")
            .0,
        2
    );
    shell.good("record remove cred:b --dir vault", "");
    assert_eq!(
        shell.fails("record remove cred:b --dir vault", ""),
        (1, "NOT_FOUND".to_owned())
    );
    assert_eq!(
        shell
            .fails(&format!("record show cred:b {with_seed}"), "")
            .0,
        1
    );

    let verified = shell.json(&format!("audit verify {with_seed}"), "");
    assert!(
        verified["lines"].as_u64().is_some_and(|lines| lines > 10),
        "{verified}"
    );
    let shown = shell.good("audit show --dir vault", "");
    assert!(
        shown.contains("created") && shown.contains("rotated"),
        "{shown}"
    );
    assert!(!shown.contains("sk-test"));
    let last = shell.good("audit show --dir vault --last 1 --json", "");
    assert_eq!(last.lines().count(), 1);
    let word = words.split(' ').next().expect("a word");
    assert!(!shown.contains(&format!(" {word} ")));
}

#[test]
fn the_words_alone_make_the_same_keys_again() {
    let shell = CommandFolder::new();
    shell.with_vault();
    let open = "--dir vault --passphrase-stdin";
    assert_eq!(
        shell
            .good(&format!("key show node-identity {open}"), "right\n")
            .trim(),
        NODE
    );
    let offline = "key show node-identity --mnemonic-stdin";
    assert_eq!(
        shell
            .good(offline, &format!("{}\n", WORDS.to_uppercase()))
            .trim(),
        NODE
    );
    let device = "key show ssh-host --mnemonic-stdin --device 1";
    let host = "e21db52decc1387a5ac6e8db38623807646f7a2ef9254b84ab58ba7bcf775e0c";
    assert_eq!(shell.good(device, WORDS).trim(), host);
    let key = shell.good("recovery-key show --mnemonic-stdin", WORDS);
    assert_eq!(
        key,
        shell.good(&format!("recovery-key show {open}"), "right\n")
    );
    assert_eq!(key.len(), 43);
    assert_eq!(
        shell.json("recovery-key show --mnemonic-stdin", WORDS)["recovery_key"],
        key.as_str()
    );
    assert_eq!(
        shell.good(&format!("words show {open}"), "right\n").trim(),
        WORDS
    );
    assert_eq!(
        shell
            .fails("words show --dir vault --passphrase-stdin", "wrong\n")
            .0,
        11
    );
    let with = "key show node-identity --mnemonic-stdin --bip39-passphrase";
    assert_ne!(shell.good(with, &format!("{WORDS}\nTREZOR\n")).trim(), NODE);
}

#[test]
fn slots_are_made_tested_changed_and_removed() {
    let shell = CommandFolder::new();
    shell.with_vault();
    let open = "--dir vault --passphrase-stdin";
    let added = shell.json(&format!("slot add provisioning {open}"), "right\n");
    assert_eq!(
        (added["slot"].as_u64(), added["type"].as_str()),
        (Some(1), Some("provisioning"))
    );
    assert_eq!(shell.fails("slot add provisioning --dir vault", "").0, 4);
    shell.good("slot add none --dir vault", "");
    let listed = shell.json("slot list --dir vault", "");
    let kinds: Vec<_> = listed["slots"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|slot| slot["type"].as_str().expect("a type"))
        .collect();
    assert_eq!(kinds, ["passphrase", "provisioning", "none"]);
    assert_eq!(shell.json("status --dir vault", "")["sealed"], false);
    assert!(shell.good("status --dir vault", "").contains("UNSEALED"));
    assert_eq!(
        shell.json(&format!("slot test {open}"), "right\n")["opens"]
            .as_array()
            .map(Vec::len),
        Some(3)
    );
    shell.good("slot test 1 --dir vault", "");
    assert_eq!(shell.fails(&format!("slot test 0 {open}"), "wrong\n").0, 11);
    assert_eq!(shell.fails("slot test 9 --dir vault", "").0, 2);

    let changed = shell.json(&format!("slot set {open} {CHEAP}"), "right\nbetter\n");
    assert_eq!(
        (changed["was"].as_u64(), changed["slot"].as_u64()),
        (Some(0), Some(3))
    );
    assert_eq!(shell.fails(&format!("slot test 3 {open}"), "right\n").0, 11);
    shell.good(&format!("slot test 3 {open}"), "better\n");
    assert_eq!(shell.fails("slot remove 3 --dir vault", "").0, 4);
    assert_eq!(shell.fails("slot remove 0 --dir vault", "").0, 2);
    shell.good("slot remove 3 --dir vault --i-have-the-mnemonic", "");
    shell.good("slot remove 2 --dir vault", "");
    assert_eq!(shell.fails("slot remove 1 --dir vault", "").0, 4);
    // No slot opens by typing now, and without the seed no slot opens at all.
    assert_eq!(shell.fails("words show --dir vault", "").0, 4);
    std::fs::remove_file(shell.path("vault/seed.key")).expect("there");
    assert_eq!(
        shell.fails("key show node-identity --dir vault", ""),
        (10, "VAULT_LOCKED".to_owned())
    );
    assert_eq!(shell.fails("slot test 1 --dir vault", "").0, 10);
}

#[test]
fn a_new_master_key_leaves_old_copies_behind() {
    let shell = CommandFolder::new();
    shell.with_vault();
    let open = "--dir vault --passphrase-stdin";
    shell.good(&format!("slot add provisioning {open}"), "right\n");
    shell.good("slot add none --dir vault", "");
    let old = std::fs::read(shell.path("vault/vault.a")).expect("there");
    // The provisioning slot has its seed, the other two are named or typed.
    let rekeyed = shell.json(&format!("rekey {open} --lose 2"), "right\n");
    assert_eq!(rekeyed["lost"][0], 2);
    shell.good(&format!("slot test {open}"), "right\n");
    assert_eq!(
        shell.good("key show node-identity --dir vault", "").trim(),
        NODE
    );
    std::fs::rename(shell.path("vault/seed.key"), shell.path("seed.key")).expect("moved");
    assert_eq!(shell.fails(&format!("rekey {open}"), "right\nright\n").0, 2);
    assert_eq!(
        shell.fails(&format!("rekey {open} --lose 0"), "right\n").0,
        2
    );
    // An attacker puts the old file back in the place of one copy: the newer one counts.
    std::fs::write(shell.path("vault/vault.b"), old).expect("written");
    assert_eq!(
        shell
            .good(&format!("key show node-identity {open}"), "right\n")
            .trim(),
        NODE
    );
    let (a, b) = ("vault/vault.a", "vault/vault.b");
    let read = |name| std::fs::read(shell.path(name)).expect("there");
    assert!(read(a) == read(b));
}

#[test]
fn words_that_leaked_are_replaced_and_the_old_identity_says_by_what() {
    let shell = CommandFolder::new();
    shell.with_vault();
    let open = "--dir vault --passphrase-stdin";
    shell.good(&format!("record add cred:a {open}"), "right\nsecret of old");
    let line = format!("migrate {open} --to next --words 12 {CHEAP}");
    let moved = shell.json(&line, "right\nother\n");
    assert_eq!(moved["records"], 1);
    assert_eq!(moved["old"], format!("ed25519:{NODE}"));
    assert_eq!(
        moved["words"]
            .as_str()
            .map(|words| words.split(' ').count()),
        Some(12)
    );
    let next = "--dir next --passphrase-stdin";
    assert_eq!(
        shell.good(&format!("record show cred:a {next}"), "other\n"),
        "secret of old"
    );
    assert_eq!(
        shell.good(&format!("record show cred:a {open}"), "right\n"),
        "secret of old"
    );
    let key = shell.good(&format!("key show node-identity {next}"), "other\n");
    assert_eq!(moved["new"], format!("ed25519:{}", key.trim()));
    let text = std::fs::read(shell.path("next/successor.json")).expect("made");
    let stated = Successor::parse(&text).expect("both signed it");
    assert_eq!(
        shell.json("successor verify next/successor.json", "")["t"],
        stated.time_s()
    );
    let changed = String::from_utf8(text)
        .expect("text")
        .replace("\"t\":1", "\"t\":2");
    std::fs::write(shell.path("bad.json"), changed).expect("written");
    assert_eq!(shell.fails("successor verify bad.json", "").0, 13);
    assert_eq!(shell.fails(&line, "right\nother\n").0, 4);
    let shown = shell.good("audit show --dir vault", "");
    assert!(
        shown.contains("migrated") && shown.contains(key.trim()),
        "{shown}"
    );
}

#[test]
fn without_a_terminal_nothing_is_prompted() {
    let shell = CommandFolder::new();
    let alone = |words: &[&str]| {
        // In a session of its own there is no terminal, wherever the tests run.
        let output = Command::new("setsid")
            .args(["--wait", env!("CARGO_BIN_EXE_alknet-vault-tool")])
            .args(words)
            .current_dir(shell.path(""))
            .stdin(Stdio::null())
            .output()
            .expect("setsid is part of every Debian");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), text)
    };
    let (code, text) = alone(&["init", "--dir", "vault", "--slot", "none"]);
    assert_eq!(code, Some(0));
    assert!(
        text.contains("  24  ") && text.contains("UNSEALED"),
        "{text}"
    );
    assert_eq!(
        alone(&["key", "show", "ssh-host", "--dir", "vault"]).0,
        Some(0)
    );
    assert_eq!(alone(&["init", "--dir", "other"]).0, Some(2));
    assert_eq!(alone(&["recovery-key", "show", "--mnemonic"]).0, Some(2));
}
