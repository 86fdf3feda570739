//! Ids of enrolled peers: `p` and a ULID in lower case, 26 characters of Crockford's base 32 that
//! sort by time. They outlive every key and every name.

use alknet_core::PeerId;

/// Crockford's alphabet: no i, l, o, u.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// Characters of 128 bits, five to each.
const CHARS: usize = 26;
/// Bits of randomness below the time.
const RANDOM_BITS: u32 = 80;
/// Bits of the time.
const TIME_MASK: u128 = (1 << 48) - 1;

/// A new id, different from every earlier one. `now_s` is in seconds since 1970, 0 where the clock
/// is not sane.
///
/// # Errors
/// The system has no randomness to give.
pub fn new_peer_id(now_s: u64) -> Result<PeerId, getrandom::Error> {
    // As the ULID specification has it: 48 bits of milliseconds above 80 random ones.
    let mut random = [0; 16];
    getrandom::fill(&mut random[6..])?;
    let millis = (u128::from(now_s) * 1000) & TIME_MASK;
    Ok(peer_id(
        (millis << RANDOM_BITS) | u128::from_be_bytes(random),
    ))
}

fn peer_id(number: u128) -> PeerId {
    let digit = |at: usize| {
        let bits = (number >> (5 * (CHARS - 1 - at))) & 31;
        char::from(ALPHABET[usize::try_from(bits).unwrap_or_default()])
    };
    let text: String = std::iter::once('p').chain((0..CHARS).map(digit)).collect();
    text.parse()
        .expect("27 characters, all of them in the grammar of a peer id")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_ulid_in_lower_case() {
        assert_eq!(peer_id(0).as_str(), format!("p{}", "0".repeat(26)));
        assert_eq!(peer_id(u128::MAX).as_str(), format!("p7{}", "z".repeat(25)));
        // The example of the ULID specification's own tests: 1469918176385 ms.
        let id = peer_id(1_469_918_176_385 << RANDOM_BITS);
        assert!(id.as_str().starts_with("p01aryz6s41"), "{id}");
    }

    #[test]
    fn ids_sort_by_time_and_differ() {
        let id = |now| new_peer_id(now).expect("randomness");
        assert!(id(1_700_000_000) < id(1_700_000_001));
        assert_ne!(id(7), id(7));
        assert_eq!(id(u64::MAX).as_str().len(), 27);
    }
}
