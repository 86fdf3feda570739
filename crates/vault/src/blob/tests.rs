use proptest::prelude::*;

use super::*;

fn key() -> SecretArr<32> {
    SecretArr::copy_of(&[9; 32])
}

fn label(text: &str) -> BlobLabel {
    text.parse().expect("a label")
}

fn sealed(plain: &[u8]) -> SealedBlob {
    SealedBlob::seal(&key(), KeyVersion::FIRST, &label("cred:a"), plain).expect("sealed")
}

#[test]
fn a_blob_opens_under_its_own_label_only() {
    let blob = sealed(b"secret");
    assert_eq!(blob.as_bytes().len(), HEADER + 6 + TAG);
    let plain = blob.open(&key(), &label("cred:a")).expect("opened");
    assert_eq!(plain.expose(), b"secret");
    let error = blob.open(&key(), &label("cred:b"));
    assert!(matches!(error, Err(VaultError::Decrypt)));
    let error = blob.open(&SecretArr::copy_of(&[8; 32]), &label("cred:a"));
    assert!(matches!(error, Err(VaultError::Decrypt)));
    assert_ne!(
        sealed(b"secret").as_bytes()[12..56],
        blob.as_bytes()[12..56]
    );
}

#[test]
fn every_flipped_bit_is_refused() {
    let blob = sealed(b"sk-test-123");
    for bit in 0..blob.bytes.len() * 8 {
        let mut bytes = blob.bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let opened = SealedBlob::parse(&bytes).and_then(|bad| bad.open(&key(), &label("cred:a")));
        let error = opened.expect_err("altered");
        match (bit / 8, &error) {
            (0..8, VaultError::Foreign) => {}
            (8..12, VaultError::UnknownVersion(_) | VaultError::Decrypt) => {}
            (12.., VaultError::Decrypt) => {}
            (at, other) => panic!("byte {at}: {other}"),
        }
    }
}

#[test]
fn every_cut_is_refused() {
    let blob = sealed(b"sk-test-123");
    for cut in 0..blob.bytes.len() {
        let opened = SealedBlob::parse(&blob.bytes[..cut])
            .and_then(|bad| bad.open(&key(), &label("cred:a")));
        match (cut, opened.expect_err("cut")) {
            (0..4, VaultError::Foreign) | (4.., VaultError::Decrypt) => {}
            (_, other) => panic!("cut at {cut}: {other}"),
        }
    }
}

#[test]
fn both_forms_are_one_record() {
    let blob = sealed(b"secret");
    let json = blob.to_json();
    assert!(json.starts_with(r#"{"key_version":2,"salt":""#), "{json}");
    assert!(json.ends_with(r#","alg":"ALK1"}"#), "{json}");
    assert_eq!(SealedBlob::from_json(&json).expect("our own"), blob);
}

#[test]
fn records_of_others_are_never_guessed_at() {
    let json = sealed(b"secret").to_json();
    let foreign = |text: &str| {
        let error = SealedBlob::from_json(text).expect_err(text);
        assert!(matches!(error, VaultError::Foreign), "{text}: {error}");
    };
    foreign(&json.replace(r#","alg":"ALK1""#, ""));
    foreign(&json.replace("ALK1", "ALK2"));
    foreign(&json.replace(r#","alg""#, r#","more":1,"alg""#));
    foreign("");
    foreign("[]");
    let decrypt = |text: &str| {
        let error =
            SealedBlob::from_json(text).and_then(|blob| blob.open(&key(), &label("cred:a")));
        assert!(matches!(error, Err(VaultError::Decrypt)), "{text}");
    };
    decrypt(r#"{"key_version":2,"salt":"","iv":"","data":"","alg":"ALK1"}"#);
    decrypt(&json.replace("==", ""));
    decrypt(&json.replace(r#""data":""#, r#""data":"!"#));
    let old = json.replace(r#""key_version":2"#, r#""key_version":1"#);
    assert!(matches!(
        SealedBlob::from_json(&old),
        Err(VaultError::UnknownVersion(1))
    ));
}

#[test]
fn limits_hold_to_the_byte() {
    let most = vec![1; MAX_PLAINTEXT_BYTES];
    let blob = sealed(&most);
    let again = SealedBlob::from_json(&blob.to_json()).expect("the largest fits its JSON form");
    let plain = again.open(&key(), &label("cred:a")).expect("opened");
    assert_eq!(plain.expose(), most);
    let more = vec![1; MAX_PLAINTEXT_BYTES + 1];
    let error = SealedBlob::seal(&key(), KeyVersion::FIRST, &label("cred:a"), &more);
    assert!(matches!(error, Err(VaultError::TooLarge { .. })));
    let mut bytes = blob.bytes;
    bytes.push(0);
    assert!(matches!(
        SealedBlob::parse(&bytes),
        Err(VaultError::TooLarge { .. })
    ));
    let json = " ".repeat(crate::limits::MAX_BLOB_JSON_BYTES + 1);
    assert!(matches!(
        SealedBlob::from_json(&json),
        Err(VaultError::TooLarge { .. })
    ));
}

proptest! {
    #[test]
    fn any_plaintext_comes_back(plain in prop::collection::vec(any::<u8>(), 0..400), name in "[!-~]{1,40}") {
        let label = label(&format!("cred:{name}"));
        let blob = SealedBlob::seal(&key(), KeyVersion::FIRST, &label, &plain).expect("sealed");
        let blob = SealedBlob::from_json(&blob.to_json()).expect("its JSON form");
        let blob = SealedBlob::parse(blob.as_bytes()).expect("its binary form");
        let opened = blob.open(&key(), &label).expect("opened");
        prop_assert_eq!(opened.expose(), plain);
    }

    #[test]
    fn any_bytes_are_a_blob_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..120), text in any::<String>()) {
        let begun = [b"ALK1\x01\x01\0\0".as_slice(), &bytes].concat();
        for bytes in [&bytes, &begun] {
            if let Ok(blob) = SealedBlob::parse(bytes) {
                prop_assert!(blob.open(&key(), &label("cred:a")).is_err());
                let _ = SealedBlob::from_json(&blob.to_json());
            }
        }
        let _ = SealedBlob::from_json(&text);
    }
}

#[test]
fn the_first_format_of_a_sealed_value_opens() {
    const SAMPLE: &str = "414c4b310101000000000002000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2bd9f576d242f531b5b1123417553d36d7bdaa4c45b599";
    let bytes = data_encoding::HEXLOWER.decode(SAMPLE.as_bytes());
    let blob = SealedBlob::parse(&bytes.expect("hex digits")).expect("the first format");
    assert_eq!(blob.key_version(), KeyVersion::FIRST);
    let plain = blob.open(&key(), &label("cred:a")).expect("opened");
    assert_eq!(plain.expose(), b"secret");
}
