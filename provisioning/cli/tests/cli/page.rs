//! The commands in docs/provisioning.md work as it says.

use std::fs;

use crate::workstation::AdminWorkstation;

#[test]
fn the_commands_of_the_page_work() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/provisioning.md");
    let page = fs::read_to_string(page).expect("the page exists");
    let workstation = AdminWorkstation::new();
    for folder in ["boot", "qemu", "strings"] {
        fs::create_dir(workstation.path(folder)).expect("writable");
    }
    fs::write(workstation.path("node.toml"), "[node]\nname = \"edge-1\"\n").expect("writable");
    fs::write(workstation.path("ada.pub"), "").expect("writable");
    let age = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";
    let commands = page
        .lines()
        .filter_map(|line| line.strip_prefix("alknet provision "));
    let mut count = 0;
    for command in commands {
        let command = command
            .split(" #")
            .next()
            .unwrap_or_default()
            .replace("age1…", age);
        let is_file = |word: &str| {
            let names = ["boot", "qemu", "strings"];
            names.contains(&word)
                || [".iso", ".img", ".toml", ".txt"]
                    .iter()
                    .any(|it| word.ends_with(it))
        };
        let words = command.split_whitespace().map(|word| match is_file(word) {
            true => format!("@{word}"),
            false => word.to_owned(),
        });
        let line = words.collect::<Vec<_>>().join(" ");
        // There is no user who writes words down.
        let makes = !line.contains("--words-file")
            && !line.contains("--words-to")
            && !line.contains("--init");
        let line = if makes {
            format!("{line} --words-file @words.txt")
        } else {
            line
        };
        let ended = workstation.run(&line, false);
        assert!(ended.is_ok(), "{command}: {ended:?}");
        count += 1;
    }
    assert_eq!(count, 9);
}
