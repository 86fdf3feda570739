//! Keys as people read them to each other.

use alknet_core::PeerKey;
use sha2::{Digest, Sha256};

/// Words of a fingerprint, of 16 bits each.
const WORDS: usize = 6;

/// Six words that can be spoken, for 96 bits of the SHA-256 of a key's text: proquints, each of
/// consonant, vowel, consonant, vowel, consonant. `luban-tosig-…`
///
/// ```
/// use alknet_core::PeerKey;
/// use alknet_hub::fingerprint;
///
/// let words = fingerprint(&PeerKey::Ed25519([7; 32]));
/// assert_eq!(words.split('-').count(), 6);
/// ```
#[must_use]
pub fn fingerprint(key: &PeerKey) -> String {
    let hash = Sha256::digest(key.to_string().as_bytes());
    let words = hash.chunks_exact(2).take(WORDS);
    let words: Vec<_> = words
        .map(|pair| word(u16::from_be_bytes([pair[0], pair[1]])))
        .collect();
    words.join("-")
}

fn word(bits: u16) -> String {
    // The alphabet of proquints, arXiv:0901.4016.
    const CONSONANTS: &[u8; 16] = b"bdfghjklmnprstvz";
    const VOWELS: &[u8; 4] = b"aiou";
    let consonant = |shift: u16| char::from(CONSONANTS[usize::from((bits >> shift) & 15)]);
    let vowel = |shift: u16| char::from(VOWELS[usize::from((bits >> shift) & 3)]);
    [
        consonant(12),
        vowel(10),
        consonant(6),
        vowel(4),
        consonant(0),
    ]
    .into_iter()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_known_proquints() {
        // 127.0.0.1 and 63.84.220.193, as their inventor gives them.
        let of = |high, low| format!("{}-{}", word(high), word(low));
        assert_eq!(of(0x7f00, 0x0001), "lusab-babad");
        assert_eq!(of(0x3f54, 0xdcc1), "gutih-tugad");
    }

    #[test]
    fn a_fingerprint_is_six_words_of_its_key() {
        let [one, two] = [1, 2].map(|n| fingerprint(&PeerKey::Ed25519([n; 32])));
        assert_ne!(one, two);
        assert_eq!((one.len(), one.split('-').count()), (35, 6));
    }
}
