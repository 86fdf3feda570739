//! The words of a machine, as its console shows them.

use alknet_qemu::Vm;

use super::WORDS;
use crate::console::{commands, typed};

/// Returns the words, which the console shows to a user who asks for them, since the owner has not confirmed them and
/// was reminded in this start only. Showing the words does not confirm them.
pub(super) fn shown_words(vm: &Vm) -> String {
    commands(vm);
    typed(vm, "words", "type SHOW to go on: _");
    let mark = vm.console().mark();
    typed(vm, "SHOW", "Enter wipes them: _");
    let shown = vm.console().since(mark);
    let (_, table) = shown.split_once(WORDS).expect("they are shown");
    let words = words_in(table);
    typed(vm, "", "[ok] node");
    words
}

/// Returns the words of a table in which each word follows its number.
fn words_in(table: &str) -> String {
    let cells: Vec<_> = table.split_whitespace().collect();
    let is_word = |cell: &str| cell.bytes().all(|byte| byte.is_ascii_lowercase());
    let word = |number: usize| {
        let number = number.to_string();
        let mut cells = cells.windows(2);
        let found = cells.find(|cell| cell[0] == number && is_word(cell[1]));
        found.unwrap_or_else(|| panic!("no word {number} in {table}"))[1]
    };
    (1..=24).map(word).collect::<Vec<_>>().join(" ")
}
