//! The vault, and the recipients that its words are encrypted to.

use super::*;

const AGE: &str = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";

/// A line as ssh-keygen writes it.
fn ssh_line(kind: &str, fields: &[&[u8]]) -> String {
    let field = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat();
    let all = [&[kind.as_bytes()][..], fields].concat();
    let bytes: Vec<u8> = all.iter().flat_map(|it| field(it)).collect();
    let encoded = data_encoding::BASE64.encode(&bytes);
    format!("{kind} {encoded} ada@laptop")
}

#[test]
fn a_vault_is_made_unless_it_is_off() {
    let standard = NodeConfig::default().vault;
    assert_eq!(standard.init, VaultInit::Generate);
    assert!(standard.unlock.is_empty() && standard.words_to.is_empty() && !standard.tpm_pin);
    assert_eq!((standard.device, standard.key_version), (0, 2));
    let vault = |rest: &str| format!("[vault]\n{rest}\n");
    assert_diagnostic(
        &vault("init = \"import\""),
        &[
            "line 2, vault.init:",
            "'import' is no source",
            "provisioned",
        ],
    );
    assert_diagnostic(&vault("unlok = []"), &["did you mean 'unlock'?"]);
    assert_diagnostic(
        &vault("unlock = [\"tpm2\", \"pin\"]"),
        &["vault.unlock[1]:", "'pin' opens no vault", "passphrase"],
    );
    assert_diagnostic(&vault("unlock = \"tpm2\""), &["expected a list"]);
    assert_diagnostic(
        &vault("unlock = [\"tpm2\", \"tpm2\"]"),
        &["vault.unlock[1]:", "twice"],
    );
    assert_diagnostic(&vault("unlock = [\"none\", \"tpm2\"]"), &["'none' leaves"]);
    assert_diagnostic(&vault("device = 2147483648"), &["0 to 2147483647"]);
    assert_diagnostic(&vault("device = -1"), &["vault.device"]);
    assert_diagnostic(&vault("key_version = 1"), &["2 to 2147483649"]);
    assert_diagnostic(
        &vault("key_version = 3\nmin_version = 4"),
        &["line 3, vault.min_version:", "above vault.key_version, 3"],
    );
    assert_diagnostic(&vault("min_version = 3"), &["above vault.key_version, 2"]);
    assert_diagnostic(
        &vault("init = \"off\"\nunlock = [\"tpm2\"]"),
        &["vault.unlock:", "there is no vault"],
    );
    assert_diagnostic(&vault("tpm_pin = 1"), &["vault.tpm_pin"]);
    for unlock in ["", "unlock = [\"passphrase\"]\n"] {
        assert_diagnostic(
            &vault(&format!("{unlock}tpm_pin = true")),
            &["vault.tpm_pin:", "vault.unlock lists none"],
        );
    }
    let pin = vault("tpm_pin = true\nunlock = [\"passphrase\", \"tpm2\"]");
    let pin = NodeConfig::parse(pin.as_bytes()).expect("a slot for it is listed");
    assert!(pin.vault.tpm_pin);
    let full = vault("device = 2147483647\nkey_version = 2147483649");
    assert!(NodeConfig::parse(full.as_bytes()).is_ok());
}

#[test]
fn words_are_encrypted_to_public_keys_only() {
    let to = |list: &[&str]| format!("[vault]\nwords_to = {list:?}\n");
    let elliptic = ssh_line("ssh-ed25519", &[&[7; 32]]);
    let rsa = |bytes: usize| {
        let modulus = [&[0][..], &vec![0x80; bytes]].concat();
        ssh_line("ssh-rsa", &[&[1, 0, 1], &modulus])
    };
    let (least, most) = (rsa(256), rsa(512));
    let good = [AGE, elliptic.as_str(), least.as_str(), most.as_str()];
    let config = NodeConfig::parse(to(&good).as_bytes()).expect("all of them are keys");
    assert_eq!(config.vault.words_to, good);

    let typo = AGE.replace("zvky", "zvkx");
    let upper = AGE.to_uppercase();
    let cut = &elliptic[..60];
    let named = elliptic.replacen("ssh-ed25519", "ssh-rsa", 1);
    let (short, weak) = (ssh_line("ssh-ed25519", &[&[7; 31]]), rsa(255));
    let (long, wide) = (ssh_line("ssh-ed25519", &[&[7; 32], &[]]), rsa(513));
    for bad in [
        "",
        "age1",
        "ada",
        &typo,
        &upper,
        cut,
        &named,
        &short,
        &long,
        &weak,
        &wide,
        "ssh-ed25519",
        "ecdsa-sha2-nistp256 AAAA",
    ] {
        assert_diagnostic(
            &to(&[bad]),
            &["vault.words_to[0]:", "not a public key to encrypt to"],
        );
    }
    let secret = "AGE-SECRET-KEY-1QQPQYRNPWXHZ";
    let errors = refused(&to(&[secret]));
    assert!(errors[0].contains("private key") && !errors[0].contains("QQPQY"));
    assert_diagnostic(&to(&[AGE, AGE]), &["words_to[1]", "twice"]);
    let many: Vec<_> = (0..9_u8)
        .map(|n| ssh_line("ssh-ed25519", &[&[n; 32]]))
        .collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    assert_diagnostic(&to(&many), &["words_to[8]", "more than 8"]);
}
