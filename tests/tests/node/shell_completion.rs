//! What shells complete by the scripts of `alknet completions`.

use std::path::Path;
use std::process::Command;

use alknet_tests::{CliRunner, TestBench, binary};

#[test]
fn completions_are_scripts() {
    for (shell, says) in [
        ("bash", "complete -o nospace"),
        ("zsh", "#compdef alknet"),
        ("fish", "--command alknet"),
    ] {
        let output = Command::new(binary()).args(["completions", shell]).output();
        let output = output.expect("the binary runs");
        let script = String::from_utf8(output.stdout).expect("a script is text");
        assert!(output.status.success() && script.contains(says), "{shell}");
    }
    let wrong = Command::new(binary()).args(["completions", "sh"]).output();
    assert_eq!(wrong.expect("the binary runs").status.code(), Some(2));
}

/// What bash offers for the last of the words, if this is where the user's state directories are.
fn completions_of(states: &Path, words: &[&str]) -> Vec<String> {
    let script = Command::new(binary())
        .args(["completions", "bash"])
        .output();
    let script = String::from_utf8(script.expect("the binary runs").stdout);
    let script = script.expect("a script is text");
    let (at, last) = words
        .iter()
        .enumerate()
        .next_back()
        .expect("a word to complete");
    let quoted: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
    let bash = format!(
        "{script}\nCOMP_WORDS=({})\nCOMP_CWORD={at}\nCOMP_TYPE=9\n_clap_complete_alknet alknet '{last}'\n\
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        quoted.join(" ")
    );
    let program = binary();
    let folder = program.parent().expect("it is in a folder");
    let path = format!("{}:/usr/bin:/bin", folder.display());
    let mut command = Command::new("bash");
    command.env("PATH", path).env("XDG_STATE_HOME", states);
    command.current_dir(states);
    let output = command.args(["-c", &bash]).output().expect("bash runs");
    let text = String::from_utf8(output.stdout).expect("words are text");
    let words = text.lines().map(|word| word.trim_end().to_owned());
    words.filter(|word| !word.is_empty()).collect()
}

/// Bash asks the program: it offers what the help lists, and the names of nodes.
#[test]
fn a_shell_completes_verbs_and_the_names_of_nodes() {
    let bench = TestBench::new();
    let states = bench.path().join("states");
    let user = CliRunner::new(states.join("alknet"));
    std::fs::create_dir_all(&states).expect("the folder is ours");
    std::fs::write(states.join("count.js"), "").expect("the folder is ours");
    let verbs = completions_of(&states, &["alknet", ""]);
    for verb in ["call", "node", "ops", "serve", "status"] {
        assert!(verbs.iter().any(|it| it == verb), "{verbs:?} lack {verb}");
    }
    // An earlier spelling works, and is not offered.
    for hidden in ["join", "licenses"] {
        assert!(!verbs.iter().any(|it| it == hidden), "{verbs:?}");
    }
    assert_eq!(completions_of(&states, &["alknet", "statu"]), ["status"]);
    for (name, host) in [("attic", "192.0.2.7:443"), ("kitchen", "192.0.2.8:443")] {
        let added = user.run(user.command(&["node", "add", name, host]));
        assert_eq!(added.status, 0, "{added:?}");
    }
    let both = ["attic", "kitchen"];
    assert_eq!(completions_of(&states, &["alknet", "call", ""])[..2], both);
    assert_eq!(
        completions_of(&states, &["alknet", "status", "at"]),
        ["attic"]
    );
    assert_eq!(
        completions_of(&states, &["alknet", "peer", "list", "ki"]),
        ["kitchen"]
    );
    // Earlier spellings that begin so, a verb whose second spelling help lists, and the words of other nouns.
    assert!(completions_of(&states, &["alknet", "vault", "pass"]).is_empty());
    let offered = completions_of(&states, &["alknet", "ops", ""]);
    let has = |verb: &str| offered.iter().any(|it| it == verb);
    assert!(has("promote") && !has("approve"), "{offered:?}");
    for (line, word) in [
        (&["alknet", "node", "show", "ki"][..], "kitchen"),
        (&["alknet", "tensor", "pull", "at"], "attic"),
        (&["alknet", "js", "run", "cou"], "count.js"),
        (&["alknet", "help", "tok"], "token"),
    ] {
        assert_eq!(completions_of(&states, line), [word], "{line:?}");
    }
}
