//! The commands that docs/tensor.md shows do what it says.

use std::fs;

use crate::shell::TensorShell;

const PAGE: &str = include_str!("../../../../docs/tensor.md");

#[test]
fn the_commands_of_the_page_work() {
    let shell = TensorShell::new();
    fs::rename(shell.sample(), shell.path("model.mt")).expect("ours");
    fs::create_dir(shell.path("dataset")).expect("ours");
    fs::write(shell.path("dataset/one.txt"), "one").expect("writable");
    let lines = PAGE
        .lines()
        .filter_map(|line| line.strip_prefix("alknet tensor "));
    let mut count = 0;
    for line in lines {
        let command = line.split('#').next().unwrap_or_default().trim();
        let is_file =
            |word: &str| word == "dataset" || (word.contains('.') && !word.starts_with('-'));
        let words: Vec<String> = command
            .split(' ')
            .map(|word| match is_file(word) {
                true => format!("/{word}"),
                false => word.to_owned(),
            })
            .collect();
        let mut out = Vec::new();
        let ended = shell.run_to(&words.join(" "), &mut out);
        assert!(ended.is_ok(), "{command}: {ended:?}");
        count += 1;
    }
    assert_eq!(count, 10);
    // The second strips nothing.
    let [first, second] = ["model.safetensors", "again.safetensors"]
        .map(|name| fs::read(shell.path(name)).expect("made"));
    assert!(first == second);
}
