//! Input that a vault reads from disks, media, keyboards and other processes.

use alknet_vault::audit::AuditRecord;
use alknet_vault::slots::{Alkv, SeedKey, UnlockKey};
use alknet_vault::{
    BlobLabel, Curve, DerivationPath, Entropy, KeyPurpose, SealedBlob, SecretStr, Successor, Vault,
};

/// Reads the same bytes as each of them.
pub fn vault(data: &[u8]) -> bool {
    let taken = [
        alkv(data),
        blob(data),
        record(data),
        successor(data),
        std::str::from_utf8(data).is_ok_and(texts),
    ];
    taken.contains(&true)
}

fn alkv(data: &[u8]) -> bool {
    let Ok(alkv) = Alkv::parse(data) else {
        return false;
    };
    assert_eq!(alkv.to_text().as_bytes(), data, "one vault, one text");
    for slot in alkv.slots() {
        // Without a key, a file opens only if it is unchanged and not sealed.
        if let Ok(open) = alkv.open(slot.id(), &mut UnlockKey::Stored) {
            assert_eq!(open.alkv(), &alkv);
            assert!(!alkv.is_sealed());
        }
    }
    true
}

fn blob(data: &[u8]) -> bool {
    let json = std::str::from_utf8(data)
        .ok()
        .and_then(|text| SealedBlob::from_json(text).ok());
    let binary = SealedBlob::parse(data).ok();
    if let Some(binary) = &binary {
        assert_eq!(binary.as_bytes(), data);
    }
    for blob in json.iter().chain(&binary) {
        let label: BlobLabel = "cred:fuzz".parse().expect("a label");
        assert!(
            vault_without_owner().open(&label, blob).is_err(),
            "it was not sealed"
        );
        // Bytes that were cut off have no form in JSON.
        if blob.as_bytes().len() >= 56 {
            let again = SealedBlob::from_json(&blob.to_json()).expect("its own text");
            assert_eq!(&again, blob, "two forms, one record");
        }
    }
    json.is_some() || binary.is_some()
}

fn record(data: &[u8]) -> bool {
    let Ok(record) = AuditRecord::from_json(data) else {
        return false;
    };
    let text = record.to_json().expect("it was short enough");
    assert_eq!(text.as_bytes(), data, "one event, one text");
    true
}

fn successor(data: &[u8]) -> bool {
    let Ok(stated) = Successor::parse(data) else {
        return false;
    };
    assert_eq!(stated.to_text().as_bytes(), data, "one statement, one text");
    assert_ne!(stated.old(), stated.new_key());
    true
}

fn texts(text: &str) -> bool {
    let words = Entropy::parse(text);
    if let Ok(words) = &words {
        let phrase = words.phrase();
        let again = Entropy::parse(phrase.expose()).expect("its own words");
        assert!(again == *words, "one entropy, one phrase");
    }
    let seed = SeedKey::parse(text);
    if let Ok(seed) = &seed {
        assert_eq!(seed.to_text().expose().trim(), text.trim());
        assert!(
            !format!("{seed:?}").contains(&text.trim()[51..]),
            "a secret is shown"
        );
    }
    let path = DerivationPath::parse(text, Curve::Secp256k1);
    if let Ok(path) = &path {
        assert_eq!(path.to_string(), text.replace('h', "'"));
    }
    let label = text.parse::<BlobLabel>();
    if let Ok(label) = &label {
        assert_eq!(format!("{}:{}", label.kind(), label.name()), text);
    }
    let purpose = text.parse::<KeyPurpose>();
    if let Ok(purpose) = &purpose {
        assert_eq!(purpose.to_string(), text);
    }
    words.is_ok() || seed.is_ok() || path.is_ok() || label.is_ok() || purpose.is_ok()
}

/// An open vault, with words under which nothing was sealed.
fn vault_without_owner() -> Vault {
    let vault = Vault::locked();
    let words = Entropy::from_bytes(&[0x6e; 16]).expect("16 bytes");
    vault
        .unlock(&words, &SecretStr::empty())
        .expect("it was locked");
    vault
}
