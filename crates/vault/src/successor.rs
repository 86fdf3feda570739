//! The identity of a node after its words were replaced.
//!
//! Words that leaked cannot be rotated: a vault with other words has another identity. The old identity states once
//! which identity follows it, so that peers which knew the old one may accept the new one. Canonical JSON:
//!
//! `{"alksucc":1,"new":"ed25519:…","old":"ed25519:…","sig_new":…,"sig_old":…,"t":…}`
//!
//! Both signatures cover `alknet successor 1`, a newline, and the text without them. The old key's signature states
//! the successor; the new key's proves that the statement's maker has that key.
//!
//! A thief of the old words can make such a statement too, at any time: a peer that accepts statements automatically
//! trusts the thief as much as the owner. Each peer decides what a statement is worth.

use std::fmt;

use data_encoding::{BASE64, HEXLOWER};
use ed25519_dalek::{Signature, VerifyingKey};
use serde_json::{Value, json};
use thiserror::Error;

use crate::derive::KeyPurpose;
use crate::error::VaultError;
use crate::json;
use crate::limits::MAX_SUCCESSOR_BYTES;
use crate::vault::Vault;

const FORMAT: u64 = 1;
const DOMAIN: &[u8] = b"alknet successor 1\n";
const KEY_PREFIX: &str = "ed25519:";

/// Why a text is no statement that one identity succeeds another.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SuccessorError {
    /// The text is not the JSON of a statement.
    #[error("this is no statement of a successor: {0}")]
    Form(&'static str),
    /// A later program wrote the statement.
    #[error("the statement has format {0}; this program knows 1")]
    Newer(u64),
    /// The new key's signature is invalid.
    #[error("the new key did not sign the statement")]
    NewSignature,
    /// The old key's signature is invalid.
    #[error("the old key did not sign the statement")]
    OldSignature,
    /// Both keys are the same.
    #[error("the old and the new key are the same")]
    Same,
    /// The text exceeds the limit of a statement.
    #[error("a statement has at most {} bytes", MAX_SUCCESSOR_BYTES)]
    TooLong,
}

/// A statement with valid signatures.
#[derive(Clone, PartialEq, Eq)]
pub struct Successor {
    old: [u8; 32],
    new: [u8; 32],
    t_s: u64,
    sig_old: [u8; 64],
    sig_new: [u8; 64],
}

impl Successor {
    /// States that the identity of `new` follows that of `old`. Both vaults must be unlocked.
    pub fn state(old: &Vault, new: &Vault, t_s: u64) -> Result<Self, VaultError> {
        let keys = [old, new].map(|vault| vault.signer(KeyPurpose::NodeIdentity));
        let [old, new] = keys;
        let (old, new) = (old?, new?);
        // The largest integer that every reader of JSON reads exactly; times are far below it.
        let mut stated = Self {
            old: old.public(),
            new: new.public(),
            t_s: t_s.min((1 << 53) - 1),
            sig_old: [0; 64],
            sig_new: [0; 64],
        };
        if stated.old == stated.new {
            return Err(VaultError::Unsupported);
        }
        let message = stated.message();
        stated.sig_old = old.sign(&message)?;
        stated.sig_new = new.sign(&message)?;
        Ok(stated)
    }

    /// Parses a statement, and accepts it only if both keys signed it. The caller has to check whether it knows the
    /// old key ([`Successor::old`]).
    pub fn parse(text: &[u8]) -> Result<Self, SuccessorError> {
        if text.len() > MAX_SUCCESSOR_BYTES {
            return Err(SuccessorError::TooLong);
        }
        let form = SuccessorError::Form;
        let value: Value = serde_json::from_slice(text).map_err(|_| form("it is no JSON"))?;
        match value["alksucc"].as_u64() {
            Some(FORMAT) => {}
            Some(other) => return Err(SuccessorError::Newer(other)),
            None => return Err(form("it has no format number")),
        }
        if json::parse_canonical(text).is_none() {
            return Err(form("its JSON is not canonical"));
        }
        let stated = Self {
            old: key(&value["old"])?,
            new: key(&value["new"])?,
            t_s: value["t"]
                .as_u64()
                .ok_or(SuccessorError::Form("its time is no number"))?,
            sig_old: signature(&value["sig_old"])?,
            sig_new: signature(&value["sig_new"])?,
        };
        // Further fields would not be covered by the signatures.
        if stated.to_text().as_bytes() != text {
            return Err(form("it has other fields"));
        }
        if stated.old == stated.new {
            return Err(SuccessorError::Same);
        }
        let message = stated.message();
        if !signed(&stated.old, &message, &stated.sig_old) {
            return Err(SuccessorError::OldSignature);
        }
        if !signed(&stated.new, &message, &stated.sig_new) {
            return Err(SuccessorError::NewSignature);
        }
        Ok(stated)
    }

    /// The statement in its published form.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut value = self.covered();
        value["sig_new"] = BASE64.encode(&self.sig_new).into();
        value["sig_old"] = BASE64.encode(&self.sig_old).into();
        text_of(&value)
    }

    /// The Ed25519 key that the node had.
    #[must_use]
    pub fn old(&self) -> [u8; 32] {
        self.old
    }

    /// The Ed25519 key that the node has now.
    #[must_use]
    pub fn new_key(&self) -> [u8; 32] {
        self.new
    }

    /// The time of the statement in seconds since 1970, by the clock of the node that made it.
    #[must_use]
    pub fn time_s(&self) -> u64 {
        self.t_s
    }

    fn covered(&self) -> Value {
        json!({
            "alksucc": FORMAT,
            "new": fingerprint(&self.new),
            "old": fingerprint(&self.old),
            "t": self.t_s,
        })
    }

    fn message(&self) -> Vec<u8> {
        [DOMAIN, text_of(&self.covered()).as_bytes()].concat()
    }
}

impl fmt::Debug for Successor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (old, new) = (fingerprint(&self.old), fingerprint(&self.new));
        write!(f, "Successor({old} -> {new})")
    }
}

fn text_of(value: &Value) -> String {
    json::canonical(value).expect("texts and integers within what JSON has")
}

fn fingerprint(key: &[u8; 32]) -> String {
    format!("{KEY_PREFIX}{}", HEXLOWER.encode(key))
}

fn key(value: &Value) -> Result<[u8; 32], SuccessorError> {
    let hex = value
        .as_str()
        .and_then(|text| text.strip_prefix(KEY_PREFIX));
    let bytes = hex.and_then(|hex| HEXLOWER.decode(hex.as_bytes()).ok());
    let key = bytes.and_then(|bytes| bytes.try_into().ok());
    key.ok_or(SuccessorError::Form("a malformed key"))
}

fn signature(value: &Value) -> Result<[u8; 64], SuccessorError> {
    let bytes = value.as_str().map(|text| BASE64.decode(text.as_bytes()));
    let signature = bytes
        .and_then(Result::ok)
        .and_then(|bytes| bytes.try_into().ok());
    signature.ok_or(SuccessorError::Form("a malformed signature"))
}

fn signed(key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    // `verify_strict` also refuses weak keys, for which a signature fits several messages.
    let signature = Signature::from_bytes(signature);
    VerifyingKey::from_bytes(key).is_ok_and(|key| key.verify_strict(message, &signature).is_ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Entropy, SecretStr};

    fn vault(byte: u8) -> Vault {
        let vault = Vault::locked();
        let words = Entropy::from_bytes(&[byte; 16]).expect("16 bytes");
        vault.unlock(&words, &SecretStr::empty()).expect("unlocked");
        vault
    }

    fn stated() -> Successor {
        Successor::state(&vault(1), &vault(2), 1_767_225_600).expect("both are open")
    }

    #[test]
    fn both_keys_sign_who_follows() {
        let stated = stated();
        let text = stated.to_text();
        let public = |byte| {
            vault(byte)
                .signer(KeyPurpose::NodeIdentity)
                .expect("open")
                .public()
        };
        assert_eq!(stated.old(), public(1));
        assert_eq!(stated.new_key(), public(2));
        assert_eq!(stated.time_s(), 1_767_225_600);
        assert_eq!(Successor::parse(text.as_bytes()), Ok(stated));
        let start = r#"{"alksucc":1,"new":"ed25519:"#;
        assert!(
            text.starts_with(start) && text.len() < MAX_SUCCESSOR_BYTES,
            "{text}"
        );
    }

    /// The statement has no room for additions: each needs a new format.
    #[test]
    fn the_first_format_of_a_statement_is_read() {
        const SAMPLE: &str = r#"{"alksucc":1,"new":"ed25519:37c4166398b618c3940aa6a3bb3eb7d300e57b9a1cf1009cdd2be9745db29dda","old":"ed25519:ee271b1cdbe668fad2e121072ea687e498e4c09194ccf3db9f0b115b15833fbc","sig_new":"A7gbvqQhm4iUgonwVAKXApIw8AwlXhiFIIHC652594RV9d+WmLh9qVIJ+taYl95w/WTJLFAuR+R6KJ9obZDeCg==","sig_old":"Cg9NHu32y/801ph1AeSnQw+uwqWYoIi7MrM9ySQhdPDAkQQZ4XqqqeLymOJ2xPS97A9j60OQHueUtSKyYBC1Dg==","t":1767225600}"#;
        let read = Successor::parse(SAMPLE.as_bytes());
        assert_eq!(read, Ok(stated()));
        assert_eq!(stated().to_text(), SAMPLE);
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let good = stated().to_text().into_bytes();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Successor::parse(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let good = stated();
        let error = |changed: Successor| {
            Successor::parse(changed.to_text().as_bytes()).expect_err("changed")
        };
        let later = Successor {
            t_s: good.t_s + 1,
            ..good.clone()
        };
        assert_eq!(error(later), SuccessorError::OldSignature);
        let other = Successor {
            sig_new: good.sig_old,
            ..good.clone()
        };
        assert_eq!(error(other), SuccessorError::NewSignature);
        let same = Successor {
            new: good.old,
            ..good.clone()
        };
        assert_eq!(error(same), SuccessorError::Same);
        // The statement names a key that its maker does not have.
        let message = good.message();
        let thief = vault(3).signer(KeyPurpose::NodeIdentity).expect("open");
        let sig_new = thief.sign(&message).expect("open");
        let named = Successor {
            sig_new,
            ..good.clone()
        };
        assert_eq!(error(named), SuccessorError::NewSignature);
        let text = good.to_text();
        let parse = |text: &str| Successor::parse(text.as_bytes()).expect_err("no statement");
        assert_eq!(
            parse(&text.replace("succ\":1", "succ\":2")),
            SuccessorError::Newer(2)
        );
        assert_eq!(
            parse(&" ".repeat(MAX_SUCCESSOR_BYTES + 1)),
            SuccessorError::TooLong
        );
        for bad in [
            "",
            "{}",
            "[1]",
            &format!("{text} "),
            &text.replace("\"t\"", "\"u\""),
        ] {
            assert!(matches!(parse(bad), SuccessorError::Form(_)), "{bad}");
        }
    }

    #[test]
    fn only_open_vaults_of_different_words_state_it() {
        let same = Successor::state(&vault(1), &vault(1), 0);
        assert!(matches!(same, Err(VaultError::Unsupported)));
        let locked = Successor::state(&vault(1), &Vault::locked(), 0);
        assert!(matches!(locked, Err(VaultError::Locked)));
    }

    #[test]
    fn a_record_goes_over_to_the_new_vault_and_only_there() {
        let (old, new) = (vault(1), vault(2));
        let label = "cred:a".parse().expect("a label");
        let blob = old.seal(&label, b"x").expect("sealed");
        let moved = old.hand_over(&new, &label, &blob).expect("handed over");
        assert_eq!(new.open(&label, &moved).expect("opened").expose(), b"x");
        assert!(old.open(&label, &moved).is_err() && new.open(&label, &blob).is_err());
        assert!(new.hand_over(&old, &label, &blob).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_a_statement_or_an_error(text in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Successor::parse(&text).is_err());
        }
    }
}
