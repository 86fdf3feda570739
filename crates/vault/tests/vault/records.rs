//! Sealed records that an attacker changed: one answer, whatever was done. `cargo xtask bench vault`
//! measures that it also takes one time.

use alknet_vault::{BlobLabel, Entropy, SealedBlob, SecretStr, Vault};

/// The last byte of a record's key version, and one of its salt, of its IV and of its content.
const VERSION_AT: usize = 11;
const CHANGED_AT: [usize; 4] = [VERSION_AT, 20, 50, 70];

#[test]
fn a_record_that_was_moved_cut_or_changed_has_one_answer() {
    let vault = Vault::locked();
    let words = Entropy::from_bytes(&[3; 32]).expect("32 bytes");
    vault.unlock(&words, &SecretStr::empty()).expect("locked");
    let label = |text: &str| -> BlobLabel { text.parse().expect("a label") };
    let (own, other) = (label("cred:a"), label("cred:b"));
    let record = vault.seal(&own, b"a secret of an owner").expect("open");
    let bytes = record.as_bytes();

    let mut answers = vec![("moved", vault.open(&other, &record))];
    // Within the salt, the IV, the content and its tag.
    for length in [30, 50, 60, bytes.len() - 1] {
        let cut = SealedBlob::parse(&bytes[..length]).expect("it begins as one");
        answers.push(("cut", vault.open(&own, &cut)));
    }
    for at in CHANGED_AT {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 1;
        let changed = SealedBlob::parse(&bytes).expect("it begins as one");
        answers.push(("changed", vault.open(&own, &changed)));
    }
    for (what, answer) in answers {
        let error = answer.expect_err(what);
        assert_eq!(
            error.to_string(),
            "the record cannot be decrypted",
            "{what}"
        );
    }
    assert!(vault.open(&own, &record).is_ok());
}
