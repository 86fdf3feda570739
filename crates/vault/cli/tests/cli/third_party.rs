//! Programs of other projects read the same keys.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use crate::shell::{CommandFolder, WORDS};

const SSH_HOST: &str = "6a9dd5c41915fba6cc22b8760263aba45b068cae7bead1d069c7b8eeb0118134";

/// What a program prints that ends well, in the shell's folder.
fn output_of(shell: &CommandFolder, program: &str, words: &[&str]) -> String {
    let output = Command::new(program)
        .args(words)
        .current_dir(shell.path(""))
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {words:?}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// The hex digits of what OpenSSL prints under a heading.
fn hex_under(text: &str, heading: &str) -> String {
    let after = text
        .lines()
        .skip_while(|line| line.trim() != heading)
        .skip(1);
    let digits = after.take_while(|line| line.starts_with("    "));
    digits.flat_map(|line| line.trim().split(':')).collect()
}

#[test]
fn openssl_reads_the_exported_key_and_has_the_public_key_of_the_table() {
    let shell = CommandFolder::new();
    let export = "key export ssh-host --mnemonic-stdin";
    fs::write(shell.path("host.pem"), shell.good(export, WORDS)).expect("written");
    let text = output_of(
        &shell,
        "openssl",
        &["pkey", "-in", "host.pem", "-noout", "-text"],
    );
    assert_eq!(hex_under(&text, "pub:"), SSH_HOST, "{text}");
    let public = output_of(&shell, "openssl", &["pkey", "-in", "host.pem", "-pubout"]);
    assert_eq!(
        public,
        shell.good("key show ssh-host --pem --mnemonic-stdin", WORDS)
    );

    let export = "key export acme-account --mnemonic-stdin";
    fs::write(shell.path("acme.pem"), shell.good(export, WORDS)).expect("written");
    let text = output_of(
        &shell,
        "openssl",
        &["pkey", "-in", "acme.pem", "-noout", "-text"],
    );
    let private = "f41363906899670a15823cfb54ff900abdf158793dfc4fa475a677631bc6f822";
    assert!(hex_under(&text, "priv:").ends_with(private), "{text}");
    assert_eq!(
        hex_under(&text, "pub:"),
        shell
            .good("key show acme-account --mnemonic-stdin", WORDS)
            .trim()
    );
    let public = output_of(&shell, "openssl", &["pkey", "-in", "acme.pem", "-pubout"]);
    assert_eq!(
        public,
        shell.good("key show acme-account --pem --mnemonic-stdin", WORDS)
    );
}

#[test]
fn a_key_is_exported_with_the_passphrase_only() {
    let shell = CommandFolder::new();
    shell.with_vault();
    shell.good("slot add none --dir vault --passphrase-stdin", "right\n");
    let export = "key export ssh-host --dir vault --passphrase-stdin";
    // The key beside it opens the vault, and is not enough for this.
    assert_eq!(shell.fails(export, "wrong\n").0, 11);
    let offline = shell.good("key export ssh-host --mnemonic-stdin", WORDS);
    assert_eq!(shell.good(export, "right\n"), offline);
    assert!(
        shell
            .good("audit show --dir vault", "")
            .contains("exported")
    );
}

#[test]
fn ssh_keygen_has_the_same_key() {
    let shell = CommandFolder::new();
    for purpose in ["ssh-host", "acme-account"] {
        // OpenSSH reads PKCS #8 of ECDSA by itself; of Ed25519 older versions want its own form.
        let form = if purpose == "ssh-host" {
            "--openssh"
        } else {
            ""
        };
        let pem = shell.good(
            &format!("key export {purpose} {form} --mnemonic-stdin"),
            WORDS,
        );
        let file = format!("{purpose}.pem");
        fs::write(shell.path(&file), &pem).expect("written");
        fs::set_permissions(shell.path(&file), Permissions::from_mode(0o600)).expect("ours");
        let public = shell.good(&format!("key show {purpose} --ssh --mnemonic-stdin"), WORDS);
        fs::write(shell.path("key.pub"), &public).expect("written");
        let shown = output_of(&shell, "ssh-keygen", &["-l", "-f", "key.pub"]);
        assert!(shown.contains(purpose), "{shown}");
        let derived = output_of(&shell, "ssh-keygen", &["-y", "-f", &file]);
        let key = |line: &str| line.split(' ').take(2).collect::<Vec<_>>().join(" ");
        assert_eq!(key(derived.trim()), key(public.trim()));
    }
    let key = shell.good("key show ssh-host --ssh --mnemonic-stdin", WORDS);
    let wire = data_encoding::BASE64.decode(key.split(' ').nth(1).expect("a key").as_bytes());
    assert!(
        wire.expect("base64").ends_with(
            &data_encoding::HEXLOWER
                .decode(SSH_HOST.as_bytes())
                .expect("hex")
        )
    );
}

/// Where the set-up put the packages.
const PACKAGES_VARIABLE: &str = "ALKNET_TEST_PYTHONPATH";

/// What the reference implementation of SLIP-0010 makes of "curve path" lines.
fn reference(shell: &CommandFolder, passphrase: &str, lines: &str) -> Vec<String> {
    let packages = std::env::var_os(PACKAGES_VARIABLE).unwrap_or_else(|| {
        panic!("{PACKAGES_VARIABLE} is not set; run these tests with `cargo xtask test`")
    });
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/reference.py");
    fs::write(shell.path("lines"), lines).expect("written");
    let output = Command::new("python3")
        .args([script, WORDS, passphrase])
        .stdin(fs::File::open(shell.path("lines")).expect("written"))
        .env("PYTHONPATH", packages)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("Python is part of every Debian");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn the_reference_implementation_computes_the_same_table() {
    let shell = CommandFolder::new();
    let table = include_str!("../../../tests/data/paths.txt");
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(' ').collect())
        .collect();
    assert_eq!(rows.len(), 10);
    let lines: String = rows
        .iter()
        .map(|row| format!("{} {}\n", row[0], row[1]))
        .collect();
    for passphrase in ["", "TREZOR"] {
        let theirs = reference(&shell, passphrase, &lines);
        assert_eq!(theirs.len(), rows.len());
        for (row, line) in rows.iter().zip(&theirs) {
            let (private, public) = line.split_once(' ').expect("two keys");
            let curve = if row[0] == "ed25519" {
                "ed25519"
            } else {
                "p256"
            };
            let mut words = vec![
                "key",
                "derive",
                row[1],
                "--curve",
                curve,
                "--mnemonic-stdin",
                "--json",
            ];
            let mut input = format!("{WORDS}\n");
            if !passphrase.is_empty() {
                words.push("--bip39-passphrase");
                input += passphrase;
            }
            let ended = shell.run_words(&words, &input);
            let ours: serde_json::Value = serde_json::from_str(&ended.out).expect(&ended.err);
            assert_eq!(ours["private"], private, "{row:?}");
            // The package writes a zero byte before keys of Ed25519, as the specification prints them.
            let public = public.strip_prefix("00").unwrap_or(public);
            assert_eq!(ours["public"], public, "{row:?}");
            if passphrase.is_empty() {
                assert_eq!(private, row[2]);
                assert!(row[3] == "-" || row[3] == public);
            }
        }
    }
}
