//! What the command refuses, what it never prints, and what its options do.

use std::fs;

use alknet_provision_cli::ProvisionError;

use crate::workstation::{AdminWorkstation, IDENTITY, OWN_KEY, WORDS};

#[track_caller]
fn refused(workstation: &AdminWorkstation, line: &str, exit: u8, word: &str) {
    let error = workstation.run(line, true).expect_err(line);
    let text = error.to_string();
    assert_eq!(error.exit(), exit, "{line}: {text}");
    assert!(text.contains(word), "{line}: {text}");
    assert!(!text.contains("abandon"), "{text}");
    assert!(!workstation.path("seed").exists(), "{line}");
}

#[test]
fn mistakes_of_the_command_line_write_nothing() {
    let workstation = AdminWorkstation::new();
    for (line, word) in [
        ("--words-file @words.txt", "name it with --out FILE"),
        ("--form text --words-file @words.txt", "--json"),
        ("--out @seed", "this host has none: add --words-out"),
        (
            "--out @seed --name Edge_1 --words-file @words.txt",
            "node.name",
        ),
        (
            "--out @seed --unlock pin --words-file @words.txt",
            "vault.unlock[0]",
        ),
        (
            "--out @seed --network match=eth0,speed=1 --words-file @words.txt",
            "speed=1",
        ),
        (
            "--out @seed --network match=eth0,match=eth1 --words-file @words.txt",
            "twice",
        ),
        ("--out @seed --words-file @nowhere", "cannot read"),
        (
            "--out @seed --init generate --words-file @words.txt",
            "leave --words-file",
        ),
        (
            "--out @seed --init prompt --show-words",
            "leave --words-file",
        ),
        ("--out @seed --words-to age1x", "vault.words_to[0]"),
        ("--out @seed --config @nowhere", "cannot read"),
        (
            "--out @nowhere/boot --form esp --words-file @words.txt",
            "where the boot partition",
        ),
        (
            "--out @words.txt --form esp --words-file @words.txt",
            "no folder",
        ),
        ("--out @words.txt --words-file @words.txt", "--force"),
        (
            "--out @seed --config - --words-file -",
            "standard input is one file",
        ),
    ] {
        refused(&workstation, line, 2, word);
    }
    let age = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";
    refused(
        &workstation,
        &format!("--out @seed --init prompt --words-to {age}"),
        2,
        "--init generate",
    );
}

#[test]
fn words_that_are_none_have_an_exit_code_of_their_own() {
    for words in [
        "abandon about",
        &WORDS.replace("about", "abandon"),
        &WORDS.replace("about", "xyzzy"),
        "",
    ] {
        let mut workstation = AdminWorkstation::new();
        fs::write(workstation.path("words.txt"), words).expect("writable");
        refused(&workstation, "--out @seed --words-file @words.txt", 12, "");
        workstation.input = words.as_bytes().to_vec();
        refused(&workstation, "--out @seed --words-file -", 12, "");
    }
}

#[test]
fn mistakes_of_the_base_are_listed_with_their_lines() {
    let workstation = AdminWorkstation::new();
    fs::write(
        workstation.path("base.toml"),
        "[node]\nnmae = \"a\"\n[listen]\nport = 0\n",
    )
    .expect("writable");
    let error = workstation.run(
        "--out @seed --config @base.toml --words-file @words.txt",
        false,
    );
    let text = error.expect_err("two mistakes").to_string();
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.contains("line 2, node.nmae") && text.contains("line 4, listen.port"));
}

#[test]
fn no_secret_is_said_unless_it_is_asked_for() {
    let mut workstation = AdminWorkstation::new();
    workstation.input = WORDS.as_bytes().to_vec();
    for json in [false, true] {
        let line = "--words-file - --domain edge.example.org --force --out @seed";
        let said = workstation.run(line, json).expect("written");
        assert!(
            !said.contains("abandon") && !said.contains("alknet-seed"),
            "{said}"
        );
        assert!(said.contains(IDENTITY));
        assert_eq!(said.contains("QR of alknet:"), !json);
        let said = workstation
            .run(&format!("{line} --show-words"), json)
            .expect("written");
        assert!(said.contains(WORDS));
    }
    let [one, two] = [(), ()].map(|()| {
        let answer = workstation.json("--show-words --words 12 --force --out @seed");
        answer["words"].as_str().map(str::to_owned).expect("words")
    });
    assert_eq!(one.split(' ').count(), 12);
    assert_ne!(one, two);
}

/// Without a terminal one option is enough, and the error names it.
#[test]
fn new_words_are_kept_in_a_file_of_their_own() {
    let workstation = AdminWorkstation::new();
    let alone = workstation
        .run("--out @seed", false)
        .expect_err("no terminal");
    assert_eq!(alone.exit(), 2);
    assert!(
        alone.to_string().contains("--words-out words.txt"),
        "{alone}"
    );
    assert!(!workstation.path("seed").exists());
    let made = workstation.json("--words-out @kept.txt --words 12 --out @seed");
    let kept = fs::read_to_string(workstation.path("kept.txt")).expect("it was made");
    assert_eq!(kept.split_whitespace().count(), 12, "{}", kept.len());
    let mode = fs::metadata(workstation.path("kept.txt"))
        .expect("there")
        .permissions();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
        0o600
    );
    assert!(made["words"].is_null(), "the answer has no secret");
    // They are that node's words.
    let again = workstation.json("--words-file @kept.txt --out @again");
    assert_eq!(again["identity"], made["identity"]);
    // Words are never overwritten.
    let twice = workstation.run("--words-out @kept.txt --force --out @seed", false);
    assert_eq!(twice.expect_err("it is there").exit(), 2);
    let still = fs::read_to_string(workstation.path("kept.txt")).expect("it was made");
    assert_eq!(still, kept);
}

#[test]
fn a_node_that_makes_its_words_has_no_key_yet() {
    let workstation = AdminWorkstation::new();
    let age = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";
    let answer = workstation.json(&format!("--words-to {age} --out @seed"));
    assert_eq!(
        (&answer["init"], &answer["identity"]),
        (&"generate".into(), &().into())
    );
    let loaded = workstation.boot_with(&workstation.path("seed"));
    assert_eq!(loaded.config.vault.words_to, [age]);
    assert!(loaded.secrets.words.is_none());
    for (init, has_key) in [("prompt", true), ("off", false)] {
        let answer = workstation.json(&format!("--init {init} --force --out @seed"));
        assert_eq!(
            (&answer["init"], answer["vault"].is_string()),
            (&init.into(), has_key)
        );
    }
}

#[test]
fn options_win_over_the_base_and_its_comments_stay() {
    let workstation = AdminWorkstation::new();
    let key = OWN_KEY.replace("11", "22");
    let base = format!(
        "# my node\n[node] # who\nname = \"old\" # a name\nadmin_keys = [\"{key}\"]\n\n[vault]\ninit = \"prompt\"\n"
    );
    fs::write(workstation.path("base.toml"), base).expect("writable");
    let line = "--config @base.toml --name new --network match=eth0,method=static,address=192.0.2.10/24,\
                address=2001:db8::10/64,gateway=192.0.2.1,dns=192.0.2.53 --form text --out @seed";
    let answer = workstation.json(line);
    assert_eq!(answer["init"], "prompt");
    assert_eq!(answer["admin_keys"][0], key);
    let text = fs::read_to_string(workstation.path("seed")).expect("made");
    for there in [
        "# my node",
        "# who",
        "# a name",
        "name = \"new\"",
        "[[network]]",
        "2001:db8::10/64",
    ] {
        assert!(text.contains(there), "{text}");
    }
    let other = OWN_KEY.replace("11", "33");
    let answer = workstation.json(&format!(
        "--config @base.toml --admin {other} --force --form text --out @seed"
    ));
    assert_eq!(answer["admin_keys"], serde_json::json!([other]));
}

#[test]
fn the_address_of_the_node_is_where_it_will_be() {
    let workstation = AdminWorkstation::new();
    let uri = |more: &str| {
        let answer = workstation.json(&format!(
            "--words-file @words.txt --force --out @seed {more}"
        ));
        answer["uri"]
            .as_str()
            .map(|uri| uri.rsplit_once('@').expect("a place").1.to_owned())
    };
    assert_eq!(uri(""), None);
    assert_eq!(
        uri("--domain a.example.org").as_deref(),
        Some("a.example.org:443")
    );
    assert_eq!(
        uri("--domain a.example.org --address 192.0.2.7").as_deref(),
        Some("192.0.2.7:443")
    );
    assert_eq!(
        uri("--address 192.0.2.7:8443").as_deref(),
        Some("192.0.2.7:8443")
    );
    assert_eq!(
        uri("--address 2001:db8::7").as_deref(),
        Some("[2001:db8::7]:443")
    );
    assert_eq!(
        uri("--address [2001:db8::7]:8443").as_deref(),
        Some("[2001:db8::7]:8443")
    );
    let card = "--network match=eth0,method=static,address=192.0.2.10/24";
    assert_eq!(uri(card).as_deref(), Some("192.0.2.10:443"));
}

#[test]
fn what_does_not_fit_a_command_line_is_refused() {
    let workstation = AdminWorkstation::new();
    fs::write(
        workstation.path("base.toml"),
        format!("# {}\n", "x".repeat(1500)),
    )
    .expect("writable");
    refused(
        &workstation,
        "--config @base.toml --init off --form cmdline --out @seed",
        2,
        "too long",
    );
}

#[test]
fn a_reader_that_went_away_is_no_failure() {
    assert_eq!(ProvisionError::Pipe.exit(), 0);
}
