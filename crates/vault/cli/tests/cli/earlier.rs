//! Spellings that earlier versions had do what the present ones do.

use crate::shell::{CommandFolder, ShellExit, WORDS};

/// Earlier spelling, present spelling, what follows both, and standard input. Some lines end in a refusal, which is to
/// be the same one.
const PAIRS: [(&str, &str, &str, &str); 13] = [
    ("seal", "record add", "cred:a --dir vault", "secret"),
    ("open", "record show", "cred:a --dir vault", ""),
    ("list", "record list", "--dir vault", ""),
    ("remove", "record remove", "cred:none --dir vault", ""),
    ("rotate", "record rotate", "--to 2 --dir vault", ""),
    ("pub", "key show", "ssh-host --dir vault", ""),
    (
        "export-key",
        "key export",
        "ssh-host --mnemonic-stdin",
        WORDS,
    ),
    (
        "derive",
        "key derive",
        "m/74'/0'/0'/0' --mnemonic-stdin",
        WORDS,
    ),
    (
        "recovery-key",
        "recovery-key show",
        "--mnemonic-stdin",
        WORDS,
    ),
    ("export-phrase", "words show", "--dir vault", ""),
    ("passwd --slot 0", "slot set 0", "--dir vault", ""),
    ("slot rm", "slot remove", "0 --dir vault", ""),
    ("successor", "successor verify", "next/successor.json", ""),
];

#[test]
fn earlier_spellings_do_the_same() {
    let shell = CommandFolder::new();
    shell.good("import --dir vault --slot none --mnemonic-stdin", WORDS);
    let migrate = "migrate --dir vault --to next --slot none --passphrase-stdin";
    shell.good(migrate, "");
    for (earlier, present, rest, input) in PAIRS {
        let seen = |verb: &str| {
            let ShellExit { code, out, err } = shell.run(&format!("{verb} {rest}"), input);
            (code, out, err)
        };
        assert_eq!(seen(earlier), seen(present), "{earlier}, {present}");
    }
}

#[test]
fn help_lists_no_earlier_spelling() {
    let shell = CommandFolder::new();
    let help = shell.good("--help", "");
    assert!(help.contains("\n  record "), "{help}");
    for (earlier, ..) in PAIRS {
        let listed = format!("\n  {earlier} ");
        let is_noun = ["recovery-key", "successor"].contains(&earlier);
        assert_eq!(help.contains(&listed), is_noun, "{earlier}: {help}");
    }
}
