//! The anti-forensic splitter: it spreads a key over so many bytes that a few lost ones lose the
//! whole key.

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::error::SealedError;

/// Bytes of a digest.
const BLOCK: usize = 32;

/// Spreads `key` over `stripes` times its length.
pub(super) fn split(key: &[u8], stripes: usize) -> Result<Zeroizing<Vec<u8>>, SealedError> {
    let length = key.len();
    let mut material = Zeroizing::new(vec![0; length * stripes]);
    let (noise, last) = material.split_at_mut(length * (stripes - 1));
    // Every stripe but the last is random: without any one of them, the key cannot be found (LUKS1
    // specification, 2.4).
    getrandom::fill(noise).map_err(|_| SealedError::NoRandomness)?;
    let mut sum = fold(noise, length);
    xor(&mut sum, key);
    last.copy_from_slice(&sum);
    Ok(material)
}

/// Merges the key from `material` into `key`.
pub(super) fn merge(material: &[u8], key: &mut [u8]) {
    let length = key.len();
    let (noise, last) = material.split_at(material.len() - length);
    key.copy_from_slice(&fold(noise, length));
    xor(key, last);
}

/// Folds the stripes before the last.
fn fold(stripes: &[u8], length: usize) -> Zeroizing<Vec<u8>> {
    let mut sum = Zeroizing::new(vec![0; length]);
    for stripe in stripes.chunks_exact(length) {
        xor(&mut sum, stripe);
        diffuse(&mut sum);
    }
    sum
}

/// Processes eight bytes at once: a quarter of a megabyte goes through here at each start.
fn xor(into: &mut [u8], other: &[u8]) {
    let (words, last) = into.as_chunks_mut::<8>();
    let (other_words, other_last) = other.as_chunks::<8>();
    for (into, other) in words.iter_mut().zip(other_words) {
        *into = (u64::from_ne_bytes(*into) ^ u64::from_ne_bytes(*other)).to_ne_bytes();
    }
    for (into, other) in last.iter_mut().zip(other_last) {
        *into ^= other;
    }
}

/// Replaces each block with the digest of its number and itself.
fn diffuse(bytes: &mut [u8]) {
    for (number, block) in (0_u32..).zip(bytes.chunks_mut(BLOCK)) {
        let mut digest = Zeroizing::new([0; BLOCK]);
        let hash = Sha256::new()
            .chain_update(number.to_be_bytes())
            .chain_update(&*block);
        hash.finalize_into((&mut *digest).into());
        block.copy_from_slice(&digest[..block.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_split_merges_and_one_lost_bit_loses_it() {
        for length in [5, 16, 32, 48, 61, 64] {
            let key: Vec<u8> = (0..length).collect();
            let mut material = split(&key, 50).expect("random numbers");
            assert_eq!(material.len(), key.len() * 50);
            let mut merged = vec![0; key.len()];
            merge(&material, &mut merged);
            assert_eq!(merged, key);
            material[7] ^= 1;
            merge(&material, &mut merged);
            assert_ne!(merged, key);
        }
    }

    #[test]
    fn one_stripe_is_the_key_itself() {
        let key = [5; 32];
        assert_eq!(split(&key, 1).expect("nothing random")[..], key);
    }
}
