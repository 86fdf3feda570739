//! What is wrong is said once, by the exit code that belongs to it, and makes nothing worse.

use std::fs;

use crate::shell::{CHEAP, CommandFolder, WORDS};

fn copies(shell: &CommandFolder) -> [Vec<u8>; 2] {
    ["vault/vault.a", "vault/vault.b"].map(|name| fs::read(shell.path(name)).expect("there"))
}

fn write(shell: &CommandFolder, copies: &[Vec<u8>; 2]) {
    for (name, bytes) in ["vault/vault.a", "vault/vault.b"].into_iter().zip(copies) {
        fs::write(shell.path(name), bytes).expect("written");
    }
}

#[test]
fn a_flipped_bit_costs_one_copy_and_two_cost_the_vault_and_nothing_is_overwritten() {
    let shell = CommandFolder::new();
    shell.with_vault();
    shell.good("slot add none --dir vault --passphrase-stdin", "right\n");
    let good = copies(&shell);
    let used = good[0].iter().rposition(|byte| *byte != 0).expect("text");
    for bit in (0..used * 8).step_by(997).chain([8 * used + 3, 8 * 65_535]) {
        let mut bad = good.clone();
        bad[0][bit / 8] ^= 1 << (bit % 8);
        write(&shell, &bad);
        let status = shell.json("status --dir vault", "");
        assert_eq!(status["damaged_copy"], "A", "bit {bit}");
        assert_eq!(copies(&shell), bad, "looking changes nothing");
        bad[1][bit / 8] ^= 1 << (bit % 8);
        write(&shell, &bad);
        for line in ["status --dir vault", "pub node-identity --dir vault"] {
            assert_eq!(
                shell.fails(line, ""),
                (13, "CORRUPT".to_owned()),
                "bit {bit}"
            );
        }
        let init = format!("init --dir vault --passphrase-stdin {CHEAP}");
        assert_eq!(shell.fails(&init, "right\n").0, 13);
        assert_eq!(copies(&shell), bad, "what is damaged is kept");
    }
    // Opening repairs the copy.
    let mut bad = good.clone();
    bad[1][100] ^= 1;
    write(&shell, &bad);
    shell.good("pub node-identity --dir vault", "");
    assert_eq!(copies(&shell), good);
}

#[test]
fn a_command_that_made_no_vault_leaves_no_folder() {
    let shell = CommandFolder::new();
    fs::create_dir(shell.path("kept")).expect("writable");
    for (folder, stays) in [("vault", false), ("kept", true)] {
        let init = format!("init --dir {folder} --passphrase-stdin {CHEAP}");
        // No passphrase comes.
        assert_eq!(shell.fails(&init, "").0, 2);
        assert_eq!(shell.path(folder).exists(), stays, "{folder}");
        shell.good(&init, "right\n");
        shell.fails(&init, "right\n");
        assert!(shell.path(folder).join("vault.a").exists(), "{folder}");
    }
}

#[test]
fn records_and_logs_that_were_changed_are_corrupt() {
    let shell = CommandFolder::new();
    shell.good("import --dir vault --slot none --mnemonic-stdin", WORDS);
    shell.good("seal cred:a --dir vault", "one");
    shell.good("seal cred:b --dir vault", "two");
    let set = shell.path("vault/credentials/set-1");
    let mut files: Vec<_> = fs::read_dir(&set)
        .expect("there")
        .map(|entry| entry.expect("readable").path())
        .collect();
    files.sort_by_key(|path| fs::read(path).expect("readable"));
    let [a, b] = [&files[0], &files[1]];
    let text = |path| fs::read_to_string(path).expect("text");
    let (one, two) = (text(a), text(b));
    // The record of one label under the other.
    fs::write(a, two.replace("cred:b", "cred:a")).expect("written");
    assert_eq!(
        shell.fails("open cred:a --dir vault", ""),
        (13, "CORRUPT".to_owned())
    );
    fs::write(a, one.replace("\"alg\":\"ALK1\"", "\"alg\":\"ALK2\"")).expect("written");
    assert_eq!(shell.fails("open cred:a --dir vault", "").0, 13);
    assert_eq!(shell.fails("rotate --to 3 --dir vault", "").0, 13);
    fs::write(a, one).expect("written");
    assert_eq!(shell.good("open cred:a --dir vault", ""), "one");

    let log = shell.path("vault/audit/vault.log");
    let good = text(&log);
    shell.good("audit verify --dir vault", "");
    fs::write(&log, good.replacen("cred:a", "cred:c", 1)).expect("written");
    let broken = shell.run("audit verify --dir vault", "");
    assert_eq!(broken.code, 13);
    assert!(broken.err.contains("vault.log, line "), "{}", broken.err);
    // A log whose end is no line does not keep the owner from the vault, and is found ever after.
    fs::write(&log, format!("{good}no line\n")).expect("written");
    assert_eq!(shell.good("open cred:a --dir vault", ""), "one");
    assert_eq!(shell.fails("audit verify --dir vault", "").0, 13);
    let aside = shell.path("vault/audit/vault.log.1");
    assert!(text(&aside).ends_with("no line\n"));
    assert!(text(&log).contains("opened"));
}

#[test]
fn what_is_typed_wrong_has_its_own_exit_code() {
    let shell = CommandFolder::new();
    let import = format!("import --dir vault --mnemonic-stdin {CHEAP}");
    for (words, said) in [
        ("abandon about\n", "2 words"),
        (&WORDS.replace("about", "abuot"), "about"),
        (&WORDS.replace("about", "abandon"), "checksum"),
    ] {
        let ended = shell.run(&import, words);
        assert_eq!(ended.code, 12, "{}", ended.err);
        assert!(ended.err.contains(said), "{}", ended.err);
        assert_eq!(shell.fails("recovery-key --mnemonic-stdin", words).0, 12);
    }
    assert!(!shell.path("vault/vault.a").exists());
    for line in [
        "status --dir nowhere",
        "pub node-identity --dir nowhere",
        "seal nocolon --dir vault",
        "rotate --to 1 --dir vault",
        "pub nothing --dir vault",
        "derive m/74 --mnemonic-stdin",
        "status ed25519:x",
        "init --words 13",
        "nothing",
    ] {
        assert_eq!(shell.run(line, WORDS).code, 2, "{line}");
    }
    let weak = "import --dir vault --mnemonic-stdin --memory-mib 1 --passes 2";
    assert_eq!(shell.fails(weak, &format!("{WORDS}\nright\n")).0, 2);
    let empty = format!("{WORDS}\n\n");
    assert_eq!(shell.fails(&import, &empty).0, 2);
    shell.with_vault();
    let again = format!("{import} --passphrase-stdin");
    assert_eq!(
        shell.fails(&again, &format!("{WORDS}\nright\n")),
        (4, "FORBIDDEN".to_owned())
    );
    let long = format!("right\n{}", "x".repeat((1 << 20) + 1));
    assert_eq!(
        shell
            .fails("seal cred:a --dir vault --passphrase-stdin", &long)
            .0,
        2
    );
    let full = format!("right\n{}", "x".repeat(1 << 20));
    shell.good("seal cred:a --dir vault --passphrase-stdin", &full);
}

#[test]
fn a_seed_of_another_vault_is_said_only_where_it_was_named() {
    let shell = CommandFolder::new();
    shell.with_vault();
    shell.good(
        "slot add provisioning --dir vault --passphrase-stdin",
        "right\n",
    );
    shell.good(
        "import --dir other --slot provisioning --mnemonic-stdin",
        WORDS,
    );
    fs::copy(shell.path("other/seed.key"), shell.path("vault/seed.key")).expect("copied");
    let named = "pub ssh-host --dir vault --seed-key other/seed.key";
    assert_eq!(shell.fails(named, "").0, 2);
    shell.good("pub ssh-host --dir vault --passphrase-stdin", "right\n");
    fs::write(shell.path("vault/seed.key"), "no seed").expect("written");
    shell.good("pub ssh-host --dir vault --passphrase-stdin", "right\n");
    assert_eq!(
        shell
            .fails("pub ssh-host --dir vault --seed-key vault/seed.key", "")
            .0,
        2
    );
}

#[test]
fn two_commands_do_not_use_one_vault_at_the_same_time() {
    let shell = CommandFolder::new();
    shell.with_vault();
    let lock = fs::File::open(shell.path("vault/lock")).expect("made");
    lock.lock().expect("it is free");
    let ended = shell.run("pub ssh-host --dir vault --passphrase-stdin", "right\n");
    assert_eq!(ended.code, 1);
    assert!(ended.err.contains("another command"), "{}", ended.err);
    shell.good("status --dir vault", "");
    // Closing the file would not do: a process that another test starts at this moment has it, too, until
    // it has become the program that it is to be.
    lock.unlock().expect("it is locked");
    shell.good("pub ssh-host --dir vault --passphrase-stdin", "right\n");
}

#[test]
fn a_rescued_log_is_checked_with_the_words() {
    let shell = CommandFolder::new();
    for device in [0, 3] {
        let import =
            format!("import --dir vault{device} --device {device} --slot none --mnemonic-stdin");
        shell.good(&import, WORDS);
        let seal = format!("seal cred:a --dir vault{device}");
        shell.good(&seal, "one");
        let log = shell.path(&format!("vault{device}/audit"));
        fs::rename(log, shell.path(&format!("rescued{device}"))).expect("renamed");
    }
    for (device, right, wrong) in [(0, "", "--device 3"), (3, "--device 3", "")] {
        let verify = format!("audit verify --log rescued{device} --mnemonic-stdin");
        let found = shell.json(&format!("{verify} {right}"), WORDS);
        assert_eq!(found["first"], 1, "{found}");
        assert!(found["last"].as_u64().is_some_and(|last| last >= 2));
        let other = shell.fails(&format!("{verify} {wrong}"), WORDS);
        assert_eq!(other, (13, "CORRUPT".to_owned()));
    }
    let shown = shell.good("audit show --log rescued0", "");
    assert!(
        shown.contains("imported") && shown.contains("cred:a"),
        "{shown}"
    );
    // A folder without a log is not a log without a break.
    for line in ["verify --mnemonic-stdin --log", "show --log"] {
        let nowhere = shell.fails(&format!("audit {line} nowhere"), WORDS);
        assert_eq!(nowhere, (2, "USAGE".to_owned()));
    }
}
