//! Headers in order, damaged, and made by an attacker.

use std::sync::OnceLock;

use proptest::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{HeaderCopyId, LuksHeader, NewHeader};
use crate::disk::BlockStorage;
use crate::error::{HeaderError, SealedError};
use crate::limits::{BINARY_BYTES, HEADER_BYTES, KEYSLOTS_BYTES, SEQUENCE_MAX, VAULT_A_AT};
use crate::sealed::{PartitionContent, SealedPartition};
use crate::testing::{BYTES, ONE, TWO, TestDisk, VAULT, new_header};

const COPY: usize = HEADER_BYTES as usize;

/// Formats a disk once, because that takes longer than everything else here.
fn formatted() -> TestDisk {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    let image = IMAGE.get_or_init(|| {
        let disk = TestDisk::blank();
        LuksHeader::format(&disk, &new_header()).expect("a disk that works");
        disk.image().clone()
    });
    TestDisk::from_image(image.clone())
}

/// Corrects the checksum of both copies.
fn checksum(disk: &TestDisk) {
    for at in [0, COPY] {
        let copy = disk.image()[at..at + COPY].to_vec();
        let sum = Sha256::new()
            .chain_update(&copy[..448])
            .chain_update([0; 64])
            .chain_update(&copy[512..])
            .finalize();
        disk.overwrite(at + 448, &sum);
    }
}

/// The JSON of the first copy.
fn text(disk: &TestDisk) -> Vec<u8> {
    let area = disk.image()[BINARY_BYTES..COPY].to_vec();
    let end = area.iter().position(|byte| *byte == 0).expect("an end");
    area[..end].to_vec()
}

/// Writes this JSON into both copies, with matching checksums.
fn put_text(disk: &TestDisk, text: &[u8]) {
    let mut area = vec![0; COPY - BINARY_BYTES];
    let length = text.len().min(area.len());
    area[..length].copy_from_slice(&text[..length]);
    disk.overwrite(BINARY_BYTES, &area);
    disk.overwrite(COPY + BINARY_BYTES, &area);
    checksum(disk);
}

/// Changes the JSON of both copies.
fn edit(disk: &TestDisk, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&text(disk)).expect("our own JSON");
    change(&mut value);
    put_text(disk, value.to_string().as_bytes());
}

/// Does everything with it that takes no time.
fn use_it(disk: &TestDisk) {
    let _ = SealedPartition::probe(disk, BYTES);
    let Ok(mut header) = LuksHeader::load(disk) else {
        return;
    };
    let _ = (header.uuid(), header.vault(), header.slots());
    let _ = header.segment();
    for slot in [0, 1] {
        let rounds = match header.metadata.slot(slot) {
            Some(Ok(slot)) => slot.rounds,
            _ => 0,
        };
        let digest = header.metadata.digest().map_or(0, |digest| digest.rounds);
        if rounds.max(digest) > 10_000 {
            return;
        }
        if let Ok(key) = header.unlock(disk, slot, ONE) {
            let _ = header.set_phrase(disk, slot, TWO, &key);
        }
        let _ = header.repair(disk);
        let _ = header.remove_slot(disk, slot);
    }
}

#[test]
fn what_is_written_is_read() {
    let disk = TestDisk::blank();
    let (made, key) = LuksHeader::format(&disk, &new_header()).expect("a disk that works");
    let header = LuksHeader::load(&disk).expect("just written");
    assert_eq!(header, made);
    assert_eq!(header.uuid(), "42424242-4242-4242-4242-424242424242");
    assert_eq!(header.vault(), Some(VAULT));
    assert_eq!(header.sequence(), 1);
    assert!(!header.has_one_copy());
    let slots = header.slots();
    assert_eq!(slots.len(), 2);
    assert!(
        slots.iter().all(|slot| slot.unsupported.is_none()),
        "{slots:?}"
    );
    for (slot, phrase) in [(0, ONE), (1, TWO)] {
        let found = header
            .unlock(&disk, slot, phrase)
            .expect("the phrase of it");
        assert_eq!(found, key);
    }
    assert_eq!(KEYSLOTS_BYTES, 16_613_376);
    assert_eq!(VAULT_A_AT, (16 << 20) - (128 << 10));
}

#[test]
fn what_does_not_open_is_said() {
    let disk = formatted();
    let header = LuksHeader::load(&disk).expect("formatted");
    let of = |slot, phrase: &[u8]| header.unlock(&disk, slot, phrase).expect_err("not this");
    assert!(matches!(of(0, TWO), SealedError::WrongPhrase(0)));
    assert!(matches!(of(2, ONE), SealedError::NoSlot(2)));
    assert!(matches!(of(0, b""), SealedError::Phrase));
    assert!(matches!(of(0, &[b'x'; 513]), SealedError::Phrase));
    let (_, other) = LuksHeader::format(&TestDisk::blank(), &new_header()).expect("works");
    let mut header = header.clone();
    let refused = header.set_phrase(&disk, 0, TWO, &other);
    assert!(matches!(refused, Err(SealedError::WrongKey)));
    let own = header.unlock(&disk, 0, ONE).expect("the phrase of it");
    let refused = header.set_phrase(&disk, 32, TWO, &own);
    assert!(matches!(refused, Err(SealedError::NoSlot(32))));
    assert_eq!(format!("{own:?}"), "VolumeKey(..)");
}

#[test]
fn any_byte_of_a_copy_may_be_lost() {
    let disk = formatted();
    let whole = disk.image()[..2 * COPY].to_vec();
    let json = BINARY_BYTES + text(&disk).len();
    for (base, copy) in [(0, HeaderCopyId::First), (COPY, HeaderCopyId::Second)] {
        for at in (0..BINARY_BYTES).chain((BINARY_BYTES..json).step_by(7)) {
            disk.overwrite(base + at, &[whole[base + at] ^ 0x10]);
            let mut header = LuksHeader::load(&disk).expect("the other copy is whole");
            // The field of the checksum is longer than a SHA-256.
            let unused = (448 + 32..512).contains(&at);
            assert_eq!(header.has_one_copy(), !unused, "byte {at}");
            if at % 256 == 0 {
                let repaired = header.repair(&disk).expect("a disk that works");
                assert_eq!(repaired, Some(copy));
                let again = LuksHeader::load(&disk).expect("whole");
                assert!(!again.has_one_copy());
            }
            disk.overwrite(0, &whole);
        }
    }
}

#[test]
fn both_copies_damaged_are_an_error_that_says_what_to_do() {
    let disk = formatted();
    let whole = disk.image()[..2 * COPY].to_vec();
    for at in 0..BINARY_BYTES {
        if (448 + 32..512).contains(&at) {
            continue;
        }
        disk.overwrite(at, &[whole[at] ^ 1]);
        disk.overwrite(COPY + at, &[whole[COPY + at] ^ 1]);
        let error = LuksHeader::load(&disk).expect_err("both are damaged");
        match error {
            SealedError::NotSealed => assert!(at < 6),
            SealedError::Damaged { .. } => {
                assert!(error.to_string().contains("luksHeaderRestore"), "{error}");
            }
            other => panic!("{other}"),
        }
        disk.overwrite(0, &whole);
    }
}

#[test]
fn any_byte_of_both_may_be_changed_with_the_checksum() {
    let disk = formatted();
    let whole = disk.image()[..2 * COPY].to_vec();
    for at in 0..512 {
        for value in [0, 0xff, whole[at] ^ 1, whole[at].wrapping_add(1)] {
            disk.overwrite(at, &[value]);
            disk.overwrite(COPY + at, &[value]);
            checksum(&disk);
            match LuksHeader::load(&disk) {
                Ok(_) | Err(SealedError::NotSealed | SealedError::Damaged { .. }) => {}
                Err(other) => panic!("{other}"),
            }
            disk.overwrite(0, &whole);
        }
    }
}

#[test]
fn the_newer_copy_counts() {
    let disk = formatted();
    let old = disk.image()[..2 * COPY].to_vec();
    let mut header = LuksHeader::load(&disk).expect("formatted");
    let key = header.unlock(&disk, 0, ONE).expect("the phrase of it");
    header.set_phrase(&disk, 0, TWO, &key).expect("works");
    let new = disk.image()[..2 * COPY].to_vec();
    for (first, second, copy) in [
        (&old, &new, HeaderCopyId::First),
        (&new, &old, HeaderCopyId::Second),
    ] {
        disk.overwrite(0, &first[..COPY]);
        disk.overwrite(COPY, &second[COPY..]);
        let mut found = LuksHeader::load(&disk).expect("both are whole");
        assert_eq!(found.sequence(), 2);
        assert_eq!(found.repair(&disk).expect("works"), Some(copy));
        let found = LuksHeader::load(&disk).expect("both are whole");
        assert!(!found.has_one_copy());
        assert!(found.unlock(&disk, 0, TWO).is_ok());
    }
}

#[test]
fn what_is_unknown_stays() {
    let disk = formatted();
    edit(&disk, |json| {
        json["tokens"]["5"] = json!({"type": "systemd-tpm2", "keyslots": ["1"], "x": [1, 2]});
        json["config"]["flags"] = json!(["allow-discards"]);
        json["future"] = json!({"a": "b"});
        let mut other = json["keyslots"]["1"].clone();
        other["area"]["offset"] = json!("1048576");
        other["kdf"] =
            json!({"type": "argon2id", "time": 4, "memory": 65536, "cpus": 1, "salt": "AAAA"});
        json["keyslots"]["9"] = other;
        json["keyslots"]["0"]["priority"] = json!(2);
    });
    let mut header = LuksHeader::load(&disk).expect("it is allowed");
    let nine = header.slots().pop().expect("three");
    assert_eq!((nine.number, &*nine.kdf), (9, "argon2id"));
    let refused = header.unlock(&disk, 9, ONE).expect_err("argon2id");
    assert!(refused.to_string().contains("cryptsetup can"), "{refused}");
    let key = header.unlock(&disk, 0, ONE).expect("the phrase of it");
    header.set_phrase(&disk, 0, TWO, &key).expect("works");
    let json: Value = serde_json::from_slice(&text(&disk)).expect("our own JSON");
    assert_eq!(json["tokens"]["5"]["x"], json!([1, 2]));
    assert_eq!(json["config"]["flags"], json!(["allow-discards"]));
    assert_eq!(json["future"], json!({"a": "b"}));
    assert_eq!(json["keyslots"]["9"]["kdf"]["type"], "argon2id");
    assert_eq!(json["keyslots"]["0"]["priority"], 2);
    assert_eq!(json["digests"]["0"]["keyslots"], json!(["0", "1"]));
}

#[test]
fn what_cannot_be_used_is_said() {
    let cases: &[(&str, Value, &str)] = &[
        (
            "/segments/0/encryption",
            json!("serpent-xts-plain64"),
            "another cipher",
        ),
        (
            "/segments/0/type",
            json!("linear"),
            "not one encrypted segment",
        ),
        ("/segments/0/sector_size", json!(77), "unusual sector size"),
        ("/segments/0/sector_size", json!(-1), "unusual sector size"),
        ("/segments/0/offset", json!("16777217"), "not aligned"),
        ("/segments/0/offset", json!(16_777_216), "no place"),
        (
            "/segments/0/offset",
            json!("99999999999999999999"),
            "no place",
        ),
        ("/segments/0/size", json!("-1"), "no length"),
        ("/segments/0/iv_tweak", json!(null), "no tweak"),
        (
            "/segments/0/integrity",
            json!({"type": "hmac(sha256)"}),
            "integrity",
        ),
        ("/digests/0/type", json!("future"), "of another kind"),
        (
            "/digests/0/iterations",
            json!(4_000_000_000_u32),
            "too many rounds",
        ),
        ("/digests/0/salt", json!("?"), "no salt"),
        ("/digests/0/segments", json!([]), "no digest"),
        (
            "/digests/0/keyslots",
            json!(["1"]),
            "does not open the data",
        ),
        (
            "/keyslots/0/kdf/iterations",
            json!(10_000_001),
            "stretched for too long",
        ),
        (
            "/keyslots/0/kdf/iterations",
            json!(0),
            "stretched for too long",
        ),
        ("/keyslots/0/kdf/hash", json!("whirlpool"), "something else"),
        ("/keyslots/0/key_size", json!(1_u64 << 40), "unusual size"),
        (
            "/keyslots/0/key_size",
            json!(32),
            "does not open key slot 0",
        ),
        (
            "/keyslots/0/af/stripes",
            json!(4_000_000),
            "split in another way",
        ),
        (
            "/keyslots/0/area/encryption",
            json!("cipher_null"),
            "encrypted in another way",
        ),
        ("/keyslots/0/area/size", json!("4096"), "too small"),
        ("/keyslots/0/area/offset", json!("0"), "outside the room"),
        (
            "/keyslots/0/area/offset",
            json!("18446744073709551615"),
            "outside the room",
        ),
        (
            "/keyslots/0/area/size",
            json!("16777216"),
            "outside the room",
        ),
        ("/keyslots/0/area", json!([]), "outside the room"),
        (
            "/config/keyslots_size",
            json!("18446744073709551615"),
            "is unusual",
        ),
        ("/config/keyslots_size", json!("4097"), "is unusual"),
        ("/config/json_size", json!("4096"), "another size"),
        ("/keyslots", json!([]), "lacks a part"),
        ("/digests", json!(null), "lacks a part"),
    ];
    for (pointer, value, expected) in cases {
        let disk = formatted();
        edit(&disk, |json| match json.pointer_mut(pointer) {
            Some(place) => *place = value.clone(),
            None => json["segments"]["0"]["integrity"] = value.clone(),
        });
        let outcome = LuksHeader::load(&disk).and_then(|header| header.unlock(&disk, 0, ONE));
        let error = outcome.expect_err(pointer).to_string();
        assert!(error.contains(expected), "{pointer}: {error}");
    }
    let disk = formatted();
    edit(&disk, |json| {
        json["config"]["requirements"] = json!({"mandatory": ["online-reencrypt-v2"]});
    });
    let error = LuksHeader::load(&disk).and_then(|header| header.unlock(&disk, 0, ONE));
    let error = error.expect_err("another process is at work").to_string();
    assert!(error.contains("has not finished"), "{error}");
}

/// An attacker who writes to the disk needs no key to move the data: only the checksum has to match.
#[test]
fn data_that_were_moved_are_not_standard() {
    let standard = |disk: &TestDisk| {
        let header = LuksHeader::load(disk).expect("its checksums fit");
        header.segment().expect("it can be mapped").is_standard()
    };
    assert!(standard(&formatted()));
    for (field, value) in [
        ("offset", json!("16781312")),
        ("offset", json!("33554432")),
        ("iv_tweak", json!("8")),
        ("size", json!("1048576")),
        ("sector_size", json!(512)),
    ] {
        let disk = formatted();
        edit(&disk, |json| json["segments"]["0"][field] = value.clone());
        assert!(!standard(&disk), "{field}: {value}");
    }
}

#[test]
fn text_that_is_no_json_is_said() {
    let deep = "[".repeat(12_000);
    let cases = [
        ("", "cannot be read"),
        ("{}", "lacks a part"),
        ("[1]", "cannot be read"),
        (&deep, "cannot be read"),
        (&"x".repeat(20_000), "has no end"),
        ("{}\0x", "lies behind"),
    ];
    for (text, expected) in cases {
        let disk = formatted();
        put_text(&disk, text.as_bytes());
        let error = LuksHeader::load(&disk).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_full_header_is_not_changed() {
    let disk = formatted();
    let used = text(&disk).len();
    edit(&disk, |json| {
        json["config"]["filler"] = json!("x".repeat(COPY - BINARY_BYTES - used - 200));
    });
    let mut header = LuksHeader::load(&disk).expect("it is allowed");
    let key = header.unlock(&disk, 0, ONE).expect("the phrase of it");
    let before = disk.image()[..2 * COPY].to_vec();
    let refused = header.set_phrase(&disk, 5, TWO, &key);
    assert!(
        matches!(refused, Err(SealedError::HeaderFull)),
        "{refused:?}"
    );
    assert_eq!(disk.image()[..2 * COPY], before);
    assert!(header.unlock(&disk, 0, ONE).is_ok(), "it is what it was");
}

#[test]
fn a_copy_that_would_become_longer_is_not_repaired() {
    let disk = formatted();
    let used = text(&disk).len();
    // The JSON is short there, and long as this program writes it.
    let numbers = "1E9,".repeat((COPY - BINARY_BYTES - used - 100) / 4);
    let json = String::from_utf8(text(&disk)).expect("our own JSON");
    let json = json.replace("\"config\":{", &format!("\"config\":{{\"x\":[{numbers}1],"));
    put_text(&disk, json.as_bytes());
    disk.overwrite(COPY, &[0; 512]);
    let mut header = LuksHeader::load(&disk).expect("it is allowed");
    let refused = header.repair(&disk);
    assert!(
        matches!(refused, Err(SealedError::HeaderFull)),
        "{refused:?}"
    );
    assert!(header.unlock(&disk, 0, ONE).is_ok());
    let disk_of = |disk: &TestDisk| TestDisk::from_image(disk.image().clone());
    let sealed = SealedPartition::load(disk_of(&disk), BYTES).expect("it opens all the same");
    assert!(sealed.repaired().is_err());
}

#[test]
fn what_cannot_be_formatted_is_not_begun() {
    let disk = TestDisk::blank();
    let many: Vec<&[u8]> = vec![ONE; 33];
    for phrases in [&[] as &[&[u8]], &many, &[b""]] {
        let new = NewHeader {
            phrases,
            ..new_header()
        };
        LuksHeader::format(&disk, &new).expect_err("not so many");
    }
    assert!(disk.take_ops().is_empty());
}

/// An attacker who writes to the disk needs no key to set the number, and the owner could never change a phrase again.
#[test]
fn a_sequence_at_its_end_begins_again() {
    for (number, next) in [
        (SEQUENCE_MAX - 1, SEQUENCE_MAX),
        (SEQUENCE_MAX, 1),
        (u64::MAX, 1),
    ] {
        let disk = formatted();
        for at in [16, COPY + 16] {
            disk.overwrite(at, &number.to_be_bytes());
        }
        checksum(&disk);
        let old = disk.image()[..2 * COPY].to_vec();
        let mut header = LuksHeader::load(&disk).expect("it is allowed");
        let key = header.unlock(&disk, 0, ONE).expect("the phrase of it");
        header.set_phrase(&disk, 0, TWO, &key).expect("it goes on");
        let header = LuksHeader::load(&disk).expect("both are whole");
        assert_eq!((header.sequence(), header.has_one_copy()), (next, false));
        assert!(header.unlock(&disk, 0, TWO).is_ok());
        // The power failed between the two copies: the copy that was read counts.
        disk.overwrite(0, &old[..COPY]);
        let mut header = LuksHeader::load(&disk).expect("both are whole");
        let is_old = header.sequence() == number;
        assert_eq!(is_old, next == 1, "{number}");
        assert!(header.repair(&disk).expect("works").is_some());
        let mut header = LuksHeader::load(&disk).expect("both are whole");
        assert!(!header.has_one_copy());
        header.remove_slot(&disk, 1).expect("it goes on");
    }
}

#[test]
fn room_for_slots_ends_where_the_vault_begins() {
    let disk = formatted();
    let mut header = LuksHeader::load(&disk).expect("formatted");
    let key = header.unlock(&disk, 0, ONE).expect("the phrase of it");
    // A slot of another program takes everything but the last page.
    edit(&disk, |json| {
        let mut big = json["keyslots"]["1"].clone();
        big["area"]["offset"] = json!("548864");
        big["area"]["size"] = json!((VAULT_A_AT - 548_864).to_string());
        json["keyslots"]["3"] = big;
    });
    header = LuksHeader::load(&disk).unwrap_or(header);
    let refused = header.set_phrase(&disk, 0, TWO, &key);
    assert!(matches!(refused, Err(SealedError::NoRoom)), "{refused:?}");
}

#[test]
fn other_disks_are_not_sealed() {
    for image in [
        vec![0; 1 << 20],
        vec![0xa5; 1 << 20],
        vec![0; 100],
        vec![0; 20_000],
    ] {
        let bytes = image.len() as u64;
        let disk = TestDisk::from_image(image);
        let found = SealedPartition::probe(&disk, bytes).expect("readable");
        assert!(matches!(found, PartitionContent::Unsealed), "{found:?}");
        assert!(matches!(
            SealedPartition::load(disk, bytes),
            Err(SealedError::NotSealed)
        ));
    }
    let disk = formatted();
    disk.overwrite(4, &[0; 100]);
    disk.overwrite(COPY + 40, &[1; 100]);
    let found = SealedPartition::probe(&disk, BYTES).expect("readable");
    assert!(matches!(found, PartitionContent::Damaged(_)), "{found:?}");
    let both = LuksHeader::load(&disk).expect_err("damaged");
    assert!(
        matches!(
            both,
            SealedError::Damaged {
                primary: HeaderError::Absent,
                ..
            }
        ),
        "{both:?}"
    );
    let mut byte = [0];
    assert!(disk.read(&mut byte, BYTES).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Any JSON, by edits of a valid one.
    #[test]
    fn no_json_makes_it_panic(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), "[\\[\\]{}\",:0-9a-z.+-]{0,8}", 0_usize..12), 1..6),
    ) {
        let disk = formatted();
        let mut json = text(&disk);
        for (place, with, without) in edits {
            let at = place.index(json.len());
            let end = (at + without).min(json.len());
            json.splice(at..end, with.bytes());
            if json.is_empty() {
                break;
            }
        }
        put_text(&disk, &json);
        use_it(&disk);
    }

    /// Any value in place of any other.
    #[test]
    fn no_value_makes_it_panic(
        place in any::<prop::sample::Index>(),
        value in prop_oneof![
            Just(json!(null)), Just(json!(-1)), Just(json!(0)), Just(json!(4096)), Just(json!("0")),
            Just(json!("18446744073709551615")), Just(json!("9223372036854775808")), Just(json!(1e300)),
            Just(json!([])), Just(json!({})), Just(json!("")), Just(json!("4096")), Just(json!(["0", 0, null])),
            Just(json!({"0": {}})), Just(json!("dynamic")), Just(json!(true)), Just(json!("16613376")),
        ],
    ) {
        let disk = formatted();
        edit(&disk, |json| {
            let mut places = Vec::new();
            pointers(json, String::new(), &mut places);
            let pointer = &places[place.index(places.len())];
            *json.pointer_mut(pointer).expect("it is there") = value;
        });
        use_it(&disk);
    }

    /// Any bytes.
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 600), both in any::<bool>()) {
        let disk = formatted();
        disk.overwrite(8, &bytes);
        if both {
            disk.overwrite(COPY + 8, &bytes);
            checksum(&disk);
        }
        use_it(&disk);
    }
}

/// The pointers to all values in a JSON value.
fn pointers(value: &Value, at: String, found: &mut Vec<String>) {
    if let Value::Object(map) = value {
        for (name, inner) in map {
            pointers(inner, format!("{at}/{name}"), found);
        }
    }
    if let Value::Array(list) = value {
        for (number, inner) in list.iter().enumerate() {
            pointers(inner, format!("{at}/{number}"), found);
        }
    }
    found.push(at);
}
