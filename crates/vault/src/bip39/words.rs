//! The word list, and looking up typed words in it.

use std::sync::LazyLock;

use zeroize::{Zeroize, Zeroizing};

use crate::error::MnemonicError;

/// Letters of the longest word.
pub(super) const LONGEST: usize = 8;

/// Number of words after which [`indices`] stops.
const MOST_COUNTED: usize = 25;

/// Letters of a typed word that are stored; the words of the list are much shorter.
const MOST_LETTERS: usize = 16;

/// The 2048 English words of BIP39 in their order, which is alphabetical.
pub(super) static LIST: LazyLock<Vec<&'static str>> =
    LazyLock::new(|| include_str!("english.txt").lines().collect());

/// The indices of the typed words. Stops at the first unknown word, and after the 25th.
pub(super) fn indices(
    typed: impl Iterator<Item = char>,
) -> Result<Zeroizing<Vec<usize>>, MnemonicError> {
    let mut found = Zeroizing::new(Vec::with_capacity(MOST_COUNTED));
    let mut word = Zeroizing::new(String::with_capacity(MOST_LETTERS * 4));
    let mut letters = 0;
    for letter in typed.chain([' ']) {
        if !letter.is_whitespace() {
            // A longer word is unknown in any case, and the buffer must not grow, because that would leave copies.
            if letters < MOST_LETTERS {
                word.push(letter.to_ascii_lowercase());
            }
            letters += 1;
        } else if letters > 0 {
            let position = found.len() + 1;
            let index = LIST.binary_search(&word.as_str());
            found.push(index.map_err(|_| MnemonicError::UnknownWord {
                position,
                nearest: nearest(&word),
            })?);
            if found.len() == MOST_COUNTED {
                break;
            }
            word.zeroize();
            letters = 0;
        }
    }
    Ok(found)
}

/// The word of the list with the fewest changed or swapped letters. Of several, the one with the longest common
/// beginning: people mistype endings more often than beginnings.
fn nearest(typed: &str) -> &'static str {
    let common = |word: &str| {
        let same = word.bytes().zip(typed.bytes()).take_while(|(a, b)| a == b);
        same.count()
    };
    let rank = |word: &&str| (strsim::osa_distance(word, typed), LONGEST - common(word));
    LIST.iter()
        .copied()
        .min_by_key(rank)
        .expect("the list has words")
}
