use alknet_store::limits::SYNC_TOPS_MAX;
use alknet_store::{BranchName, BucketName, ContentHash};
use alknet_test_support::deadline;
use proptest::prelude::*;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

use crate::sync::limits::{HASHES_MAX, HEADS_MAX, MESSAGE_BYTES_MAX, PART_BYTES_MAX};
use crate::sync::message::{read_message, write_message};
use crate::sync::{ByeCode, SyncError, SyncHello, SyncMessage, SyncPart};

fn parts() -> impl Strategy<Value = SyncPart> {
    prop_oneof![
        Just(SyncPart::Whole),
        Just(SyncPart::Index),
        "[a-zä ]{1,20}".prop_map(SyncPart::Top),
    ]
}

fn messages() -> impl Strategy<Value = SyncMessage> {
    let digests = || proptest::collection::vec(any::<[u8; 32]>(), 0..4);
    let hashes = || digests().prop_map(|it| it.into_iter().map(ContentHash::new).collect());
    prop_oneof![
        ("[a-z0-9]{2,20}", "[a-z0-9]{1,20}", parts(), digests()).prop_map(
            |(bucket, branch, part, heads)| {
                SyncMessage::Hello(SyncHello {
                    bucket: BucketName::parse(&bucket).expect("a name"),
                    branch: BranchName::parse(&branch).expect("a name"),
                    part,
                    heads,
                })
            }
        ),
        (
            any::<bool>(),
            proptest::collection::vec(any::<u8>(), 0..300)
        )
            .prop_map(|(is_last, bytes)| SyncMessage::Sync { is_last, bytes }),
        hashes().prop_map(SyncMessage::Want),
        hashes().prop_map(SyncMessage::Have),
        (0..ByeCode::ALL.len()).prop_map(|at| SyncMessage::Bye(ByeCode::ALL[at])),
        proptest::collection::btree_map("[a-zä]{1,20}", any::<[u8; 32]>(), 0..4)
            .prop_map(SyncMessage::Tops),
    ]
}

proptest! {
    #[test]
    fn a_message_comes_back_and_no_cut_of_it_is_one(message in messages()) {
        let bytes = message.encode().expect("short");
        prop_assert_eq!(SyncMessage::decode(&bytes).ok(), Some(message));
        for end in 0..bytes.len() {
            prop_assert!(SyncMessage::decode(&bytes[..end]).is_err(), "{end}");
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        prop_assert!(SyncMessage::decode(&longer).is_err());
    }
}

fn refused(bytes: &[u8]) -> Option<ByeCode> {
    SyncMessage::decode(bytes).err().and_then(|it| it.code())
}

#[test]
fn the_limits_hold_to_the_byte() {
    let part = |length| SyncMessage::Sync {
        is_last: true,
        bytes: vec![0; length],
    };
    let longest = part(PART_BYTES_MAX).encode().expect("short enough");
    assert!(longest.len() <= MESSAGE_BYTES_MAX);
    assert!(SyncMessage::decode(&longest).is_ok());
    let too_long = part(MESSAGE_BYTES_MAX).encode();
    assert_eq!(
        too_long.err().and_then(|it| it.code()),
        Some(ByeCode::TooLarge)
    );
    let hashes = |count| SyncMessage::Want(vec![ContentHash::new([1; 32]); count]);
    assert!(SyncMessage::decode(&hashes(HASHES_MAX).encode().expect("short")).is_ok());
    let more = hashes(HASHES_MAX + 1).encode().expect("short");
    assert_eq!(refused(&more), Some(ByeCode::TooLarge));
    let hello = |count| {
        SyncMessage::Hello(SyncHello {
            bucket: BucketName::parse("docs").expect("a name"),
            branch: BranchName::main(),
            part: SyncPart::Whole,
            heads: vec![[1; 32]; count],
        })
    };
    assert!(SyncMessage::decode(&hello(HEADS_MAX).encode().expect("short")).is_ok());
    let more = hello(HEADS_MAX + 1).encode().expect("short");
    assert_eq!(refused(&more), Some(ByeCode::TooLarge));
}

#[test]
fn a_hello_names_the_document_of_its_branch() {
    let hello = SyncHello {
        bucket: BucketName::parse("docs").expect("a name"),
        branch: BranchName::main(),
        part: SyncPart::Whole,
        heads: Vec::new(),
    };
    let mut bytes = SyncMessage::Hello(hello.clone()).encode().expect("short");
    assert_eq!(bytes[1..17], hello.document_id());
    bytes[1] ^= 1;
    assert_eq!(refused(&bytes), Some(ByeCode::InvalidMessage));
    let other = SyncHello {
        branch: BranchName::parse("draft").expect("a name"),
        ..hello.clone()
    };
    assert_ne!(other.document_id(), hello.document_id());
    // Each name in the root has a document of its own, and the list of names is not one of them.
    let parts = ["a", "b"].map(|top| SyncPart::Top(top.to_owned()));
    let mut ids = vec![hello.document_id()];
    for part in parts.into_iter().chain([SyncPart::Index]) {
        let hello = SyncHello {
            part,
            ..hello.clone()
        };
        assert!(!ids.contains(&hello.document_id()), "{:?}", hello.part);
        ids.push(hello.document_id());
    }
}

#[test]
fn a_document_is_about_one_name_in_the_root() {
    let hello = |top: &str| {
        SyncMessage::Hello(SyncHello {
            bucket: BucketName::parse("docs").expect("a name"),
            branch: BranchName::main(),
            part: SyncPart::Top(top.to_owned()),
            heads: Vec::new(),
        })
    };
    for wrong in ["", ".", "..", "a/b", "/", ".snap", "a\0", &"a".repeat(256)] {
        let bytes = hello(wrong).encode().expect("short");
        assert_eq!(refused(&bytes), Some(ByeCode::InvalidMessage), "{wrong:?}");
        let tops = SyncMessage::Tops([(wrong.to_owned(), [1; 32])].into());
        let bytes = tops.encode().expect("short");
        assert_eq!(refused(&bytes), Some(ByeCode::InvalidMessage), "{wrong:?}");
    }
    let longest = hello(&"a".repeat(255)).encode().expect("short");
    assert!(SyncMessage::decode(&longest).is_ok());
}

#[test]
fn names_of_a_root_come_once_in_their_order_and_not_too_many() {
    let of = |count: usize| {
        let names = (0..count).map(|number| (format!("{number:0>255}"), [1; 32]));
        SyncMessage::Tops(names.collect())
            .encode()
            .expect("short enough")
    };
    assert!(SyncMessage::decode(&of(SYNC_TOPS_MAX)).is_ok());
    assert_eq!(refused(&of(SYNC_TOPS_MAX + 1)), Some(ByeCode::TooLarge));
    let one = |name: u8| [&[1, name][..], &[7; 32]].concat();
    let list = |names: [u8; 2]| [vec![5, 2], one(names[0]), one(names[1])].concat();
    assert!(SyncMessage::decode(&list(*b"ab")).is_ok());
    for wrong in [b"ba", b"aa"] {
        assert_eq!(refused(&list(*wrong)), Some(ByeCode::InvalidMessage));
    }
}

/// The numbers in front of a message are the protocol.
#[test]
fn messages_begin_with_their_number() {
    let first = |message: SyncMessage| message.encode().expect("short")[0];
    let part = SyncMessage::Sync {
        is_last: true,
        bytes: vec![5],
    };
    assert_eq!(part.encode().expect("short"), [1, 1, 1, 5]);
    assert_eq!(first(SyncMessage::Want(Vec::new())), 2);
    assert_eq!(first(SyncMessage::Have(Vec::new())), 3);
    let bye = SyncMessage::Bye(ByeCode::ClockAhead).encode();
    assert_eq!(bye.expect("short"), [4, 5]);
    // The same number in two bytes.
    assert_eq!(refused(&[1, 1, 0x81, 0, 5]), Some(ByeCode::InvalidMessage));
}

#[tokio::test]
async fn four_gib_are_refused_before_they_come() {
    let (mut ours, mut theirs) = tokio::io::duplex(64);
    ours.write_u32(u32::MAX).await.expect("room");
    let read = tokio::time::timeout(deadline(Duration::from_secs(30)), read_message(&mut theirs));
    let error = read.await.expect("at once").expect_err("refused");
    assert_eq!(error.code(), Some(ByeCode::TooLarge));
}

#[tokio::test]
async fn a_stream_that_ends_early_gives_no_message() {
    let message = SyncMessage::Bye(ByeCode::Done).encode().expect("short");
    let mut whole = Vec::new();
    write_message(&mut whole, &message).await.expect("memory");
    for end in 0..whole.len() {
        let error = read_message(&mut &whole[..end]).await.expect_err("cut");
        assert!(matches!(error, SyncError::Stream(_)), "{end}: {error}");
    }
    let read = read_message(&mut whole.as_slice()).await;
    assert_eq!(read.expect("whole"), SyncMessage::Bye(ByeCode::Done));
}
