//! The list of words, and how a typed word is found in it.

use std::sync::LazyLock;

use zeroize::{Zeroize, Zeroizing};

use crate::error::MnemonicError;

/// Letters of the longest word.
pub(super) const LONGEST: usize = 8;

/// Words after which [`indices`] stops counting.
const MOST_COUNTED: usize = 25;

/// Letters of a typed word that are kept; none of the list is nearly as long.
const MOST_LETTERS: usize = 16;

/// The 2048 English words of BIP39 in their order, which is alphabetical.
pub(super) static LIST: LazyLock<Vec<&'static str>> =
    LazyLock::new(|| include_str!("english.txt").lines().collect());

/// The numbers of the typed words. Stops at the first that is unknown, and soon after the 24th.
pub(super) fn indices(
    typed: impl Iterator<Item = char>,
) -> Result<Zeroizing<Vec<usize>>, MnemonicError> {
    let mut found = Zeroizing::new(Vec::with_capacity(MOST_COUNTED));
    let mut word = Zeroizing::new(String::with_capacity(MOST_LETTERS * 4));
    let mut letters = 0;
    for letter in typed.chain([' ']) {
        if !letter.is_whitespace() {
            // Longer words are unknown whatever follows, and the buffer must not grow: it would leave copies.
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

/// The word of the list that takes the fewest changes of one letter or exchanges of two. Of several, the one that begins
/// like the typed one for longest: people mistype endings more often than beginnings.
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
