//! Proof of a key where TLS does not prove it: an Ed25519 signature (RFC 8032) over
//! `"alknet-enroll-1" ‖ hub key ‖ SHA-256(token) ‖ own key ‖ 64-bit big-endian seconds since 1970`.

use alknet_core::TokenHash;
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use thiserror::Error;

/// What the signed text begins with: no other protocol signs such a thing.
const CONTEXT: &[u8] = b"alknet-enroll-1";
/// How far the clocks of both sides may be apart, in seconds.
pub const PROOF_SKEW: u64 = 600;

/// What is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinProof {
    /// The hub's Ed25519 key: a proof for one hub is worth nothing at another.
    pub hub: [u8; 32],
    /// The token, by its hash.
    pub token: TokenHash,
    /// The key that enrols.
    pub key: [u8; 32],
    /// When it was signed, in seconds since 1970.
    pub at: u64,
}

impl JoinProof {
    /// The bytes to sign with the key that enrols.
    #[must_use]
    pub fn transcript(&self) -> Vec<u8> {
        let at = self.at.to_be_bytes();
        [CONTEXT, &self.hub, &self.token.sha256, &self.key, &at].concat()
    }

    /// Whether `signature` proves possession of the key, about now.
    ///
    /// # Errors
    /// The signature does not prove it.
    pub fn verify(&self, signature: &[u8], now_s: u64) -> Result<(), ProofError> {
        if now_s.abs_diff(self.at) > PROOF_SKEW {
            return Err(ProofError::Time);
        }
        UnparsedPublicKey::new(&ED25519, &self.key)
            .verify(&self.transcript(), signature)
            .map_err(|_| ProofError::Signature)
    }
}

/// What is wrong with a proof.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ProofError {
    /// Not by this key, or not over this.
    #[error("the signature is not one of this key over this request")]
    Signature,
    /// Signed long ago or in the future.
    #[error("the signature is of another time: set the clock")]
    Time,
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};

    use super::*;
    use crate::token::EnrolToken;

    fn signed() -> (JoinProof, Vec<u8>) {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[9; 32]).expect("a seed");
        let mut key = [0; 32];
        key.copy_from_slice(pair.public_key().as_ref());
        let proof = JoinProof {
            hub: [1; 32],
            token: EnrolToken::generate().expect("randomness").hash(),
            key,
            at: 10_000,
        };
        let signature = pair.sign(&proof.transcript()).as_ref().to_vec();
        (proof, signature)
    }

    #[test]
    fn a_signature_of_the_key_about_now_is_a_proof() {
        let (proof, signature) = signed();
        for at in [10_000 - PROOF_SKEW, 10_000, 10_000 + PROOF_SKEW] {
            assert_eq!(proof.verify(&signature, at), Ok(()));
        }
        for at in [10_000 - PROOF_SKEW - 1, 10_000 + PROOF_SKEW + 1] {
            assert_eq!(proof.verify(&signature, at), Err(ProofError::Time));
        }
    }

    /// The holder of a token must not be able to enrol the key of another.
    #[test]
    fn nothing_of_it_can_be_exchanged() {
        let (proof, signature) = signed();
        let other_token = EnrolToken::generate().expect("randomness").hash();
        for changed in [
            JoinProof {
                hub: [2; 32],
                ..proof.clone()
            },
            JoinProof {
                key: [2; 32],
                ..proof.clone()
            },
            JoinProof {
                token: other_token,
                ..proof.clone()
            },
            JoinProof {
                at: proof.at + 1,
                ..proof.clone()
            },
        ] {
            let verdict = changed.verify(&signature, proof.at);
            assert_eq!(verdict, Err(ProofError::Signature), "{changed:?}");
        }
        assert_eq!(proof.verify(&[0; 64], proof.at), Err(ProofError::Signature));
        assert_eq!(proof.verify(&[], proof.at), Err(ProofError::Signature));
    }

    #[test]
    fn the_transcript_is_the_documented_one() {
        let (proof, _) = signed();
        let bytes = proof.transcript();
        assert_eq!(bytes.len(), 15 + 32 + 32 + 32 + 8);
        assert!(bytes.starts_with(b"alknet-enroll-1\x01\x01"));
        assert!(bytes.ends_with(&10_000_u64.to_be_bytes()));
    }
}
