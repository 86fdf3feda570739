//! `alknet vault` of the binary under test: the published vectors, and every exit code.

use std::path::Path;
use std::process::Command;

use alknet_tests::{CliOutput, TestBench, binary, run_with_input};
use serde_json::{Value, json};

/// The steps of the self-test, in this order.
const SUITES: [&str; 10] = [
    "bip39",
    "slip10",
    "paths",
    "blob",
    "ed25519-rfc8032",
    "ed25519-wycheproof",
    "aes-gcm-nist",
    "aes-gcm-wycheproof",
    "hkdf-rfc5869",
    "argon2id-rfc9106",
];

/// The words of the published tables, and the node that they make.
const WORDS: &str = "abandon abandon abandon abandon abandon abandon \
                     abandon abandon abandon abandon abandon about";
const IDENTITY: &str = "ed25519:e78c2766a792f09bfccb51493968ac322283e8d021a30063784d806929762ecc";

/// Makes a vault with the cheapest passphrase slot.
const IMPORT: &str =
    "import --dir vault --mnemonic-stdin --passphrase-stdin --memory-mib 19 --passes 2";

/// Runs `alknet vault` in a folder. Words are separated by spaces.
fn vault(folder: &Path, line: &str, input: &str) -> CliOutput {
    let mut command = Command::new(binary());
    let words = ["vault", "--json"].into_iter().chain(line.split(' '));
    command.args(words).current_dir(folder);
    run_with_input(command, input)
}

#[test]
fn every_official_vector_is_computed_by_the_binary() {
    let bench = TestBench::new();
    let told = vault(bench.path(), "selftest", "").json();
    let suites = told["suites"].as_array().expect("a list");
    let names: Vec<_> = suites
        .iter()
        .filter_map(|one| one["suite"].as_str())
        .collect();
    assert_eq!(names, SUITES, "{told:#}");
    assert!(
        suites.iter().all(|one| one["cases"].as_u64() > Some(0)),
        "{told:#}"
    );
}

#[test]
fn each_way_to_end_has_its_exit_code() {
    let bench = TestBench::new();
    let folder = bench.path();
    let run = |line: &str, input: &str| vault(folder, line, input);
    let both = format!("{WORDS}\nright\n");
    let made = run(IMPORT, &both).json();
    assert_eq!(
        (&made["node"], &made["sealed"]),
        (&json!(IDENTITY), &json!(true))
    );
    let far = "import --dir far --slot provisioning --mnemonic-stdin";
    assert_eq!(run(far, WORDS).json()["node"], IDENTITY);
    std::fs::remove_file(folder.join("far/seed.key")).expect("it was made");

    let fails = |line: &str, input: &str, exit: i32, code: &str| {
        let ended = run(line, input);
        let said = (ended.status, ended.code());
        assert_eq!(said, (exit, code.to_owned()), "{line}: {ended:?}");
    };
    let open = "--dir vault --passphrase-stdin";
    fails(&format!("open cred:none {open}"), "right\n", 1, "NOT_FOUND");
    fails("status --dir nowhere", "", 2, "USAGE");
    fails(IMPORT, &both, 4, "FORBIDDEN");
    fails("pub node-identity --dir far", "", 10, "VAULT_LOCKED");
    fails(
        &format!("slot test 0 {open}"),
        "wrong\n",
        11,
        "WRONG_PASSPHRASE",
    );
    fails(
        "recovery-key --mnemonic-stdin",
        "abandon about\n",
        12,
        "BAD_MNEMONIC",
    );
    for copy in ["vault/vault.a", "vault/vault.b"] {
        let mut bytes = std::fs::read(folder.join(copy)).expect("it was made");
        bytes[100] ^= 1;
        std::fs::write(folder.join(copy), bytes).expect("the folder is ours");
    }
    fails("status --dir vault", "", 13, "CORRUPT");
}

#[test]
fn a_host_has_no_vault_and_says_so() {
    let bench = TestBench::new();
    let host = bench.host();
    let status = host.call("vault/status", &Value::Null);
    assert_eq!(
        (&status["state"], &status["slots"]),
        (&json!("absent"), &json!([]))
    );
    let admin = bench.admin();
    let locked = admin.run(admin.command(&["vault", "lock", host.target()]));
    assert_eq!((locked.status, locked.code().as_str()), (1, "NOT_FOUND"));
}
