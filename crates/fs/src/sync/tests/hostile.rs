//! Peers that may synchronise and do not follow the protocol, or whose documents are made to harm.

use std::num::NonZeroU64;
use std::time::Duration;

use alknet_core::{Connection, RecvStream, SendStream, memory_pair};
use alknet_store::{
    BucketSettings, ChangeRequest, ContentHash, EntryKind, EntryState, HybridTimestamp, NewBucket,
    StoreError, TreeChange,
};
use automerge::sync::{ChunkList, Message, State, SyncDoc};
use automerge::transaction::Transactable;
use automerge::{ActorId, Automerge, Change, ObjType, ROOT, ScalarValue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::scene::{MAY_SYNC, SyncNode, hash, hung, identity, path, serve};
use crate::sync::incoming::PANICKING_HEAD;
use crate::sync::limits::{MESSAGE_BYTES_MAX, PART_BYTES_MAX, SYNC_BYTES_MAX};
use crate::sync::message::{read_message, write_message};
use crate::sync::{
    ByeCode, PROTOCOL_VERSION, SYNC_ALPN, SyncError, SyncHello, SyncMessage, SyncPart, SyncedEntry,
};

/// The time of the nodes of tests.
pub(super) const NOW_MS: u64 = 1_800_000_000_000;

/// A peer that sends what a test says.
pub(super) struct RawSyncPeer {
    /// Kept open.
    _connection: Connection,
    pub(super) send: SendStream,
    pub(super) recv: RecvStream,
    pub(super) doc: Automerge,
    pub(super) state: State,
}

impl RawSyncPeer {
    /// A known peer with a stream, before its first byte.
    pub(super) async fn new(node: &SyncNode) -> Self {
        Self::connect(node, "mallory", &[MAY_SYNC]).await
    }

    pub(super) async fn connect(node: &SyncNode, name: &str, scopes: &[&str]) -> Self {
        Self::connect_both(node, name, scopes).await.0
    }

    /// The same with the node's end of the connection.
    pub(super) async fn connect_both(
        node: &SyncNode,
        name: &str,
        scopes: &[&str],
    ) -> (Self, Connection) {
        let (here, there) = memory_pair(SYNC_ALPN);
        let server = there.clone();
        serve(node, there, Some(identity(name, scopes)));
        let (send, recv) = here.open_bi().await.expect("a stream");
        let peer = Self {
            _connection: here,
            send,
            recv,
            doc: Automerge::new().with_actor(ActorId::from(name.as_bytes())),
            state: State::new(),
        };
        (peer, server)
    }

    /// A peer whose hello was answered.
    pub(super) async fn greeted(node: &SyncNode) -> Self {
        Self::greeted_as(node, "mallory").await
    }

    pub(super) async fn greeted_as(node: &SyncNode, name: &str) -> Self {
        Self::greeted_both(node, name).await.0
    }

    /// The same with the node's end of the connection.
    pub(super) async fn greeted_both(node: &SyncNode, name: &str) -> (Self, Connection) {
        let (mut peer, server) = Self::connect_both(node, name, &[MAY_SYNC]).await;
        let answer = peer.greet("docs", "main").await;
        assert!(matches!(answer, SyncMessage::Hello(_)), "{answer:?}");
        (peer, server)
    }

    pub(super) async fn greet(&mut self, bucket: &str, branch: &str) -> SyncMessage {
        let hello = SyncHello {
            bucket: bucket.parse().expect("a name"),
            branch: branch.parse().expect("a name"),
            part: SyncPart::Whole,
            heads: Vec::new(),
        };
        self.say_hello(hello).await
    }

    /// The answer to a hello.
    pub(super) async fn say_hello(&mut self, hello: SyncHello) -> SyncMessage {
        self.send.write_u8(PROTOCOL_VERSION).await.expect("taken");
        self.say(&SyncMessage::Hello(hello)).await;
        assert_eq!(self.recv.read_u8().await.ok(), Some(PROTOCOL_VERSION));
        self.hear().await.expect("an answer")
    }

    pub(super) async fn say(&mut self, message: &SyncMessage) {
        let bytes = message.encode().expect("short");
        self.say_bytes(&bytes).await;
    }

    /// The node may have ended the stream already.
    pub(super) async fn say_bytes(&mut self, bytes: &[u8]) {
        write_message(&mut self.send, bytes).await.ok();
    }

    pub(super) async fn hear(&mut self) -> Result<SyncMessage, SyncError> {
        let message = tokio::time::timeout(hung(), read_message(&mut self.recv));
        message.await.expect("an answer in time")
    }

    /// The code with which the node ends the session. Messages before it are passed over.
    pub(super) async fn bye(&mut self) -> ByeCode {
        loop {
            match self.hear().await.expect("a goodbye") {
                SyncMessage::Bye(code) => return code,
                SyncMessage::Sync { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Sends a sync message in parts.
    pub(super) async fn say_sync(&mut self, bytes: &[u8]) {
        let mut parts = bytes.chunks(PART_BYTES_MAX).peekable();
        while let Some(part) = parts.next() {
            let is_last = parts.peek().is_none();
            let bytes = part.to_vec();
            self.say(&SyncMessage::Sync { is_last, bytes }).await;
        }
    }

    /// Puts values into the document of this peer, valid or not.
    pub(super) fn put(&mut self, values: &[(&str, Vec<u8>)]) {
        let mut transaction = self.doc.transaction();
        for (key, value) in values {
            let value = ScalarValue::Bytes(value.clone());
            transaction.put(ROOT, *key, value).expect("a map");
        }
        transaction.commit();
    }

    /// A message with everything in the document of this peer, as the library would make it.
    pub(super) fn whole_document(&self) -> Vec<u8> {
        message_with(vec![self.doc.save()], self.doc.get_heads())
    }

    /// Exchanges messages until both have the same.
    pub(super) async fn exchange(&mut self) {
        let mut rounds = 0;
        while rounds < 50 {
            rounds += 1;
            if let Some(message) = self.doc.generate_sync_message(&mut self.state) {
                let bytes = message.encode();
                self.say_sync(&bytes).await;
            } else if self.state.their_heads == Some(self.doc.get_heads()) {
                break;
            }
            match self.hear().await.expect("a message") {
                SyncMessage::Sync { bytes, .. } => {
                    let message = Message::decode(&bytes).expect("valid");
                    let doc = &mut self.doc;
                    let received = doc.receive_sync_message(&mut self.state, message);
                    received.expect("valid");
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(rounds < 50);
    }
}

pub(super) fn message_with(changes: Vec<Vec<u8>>, heads: Vec<automerge::ChangeHash>) -> Vec<u8> {
    let mut message = Automerge::new()
        .generate_sync_message(&mut State::new())
        .expect("the first message");
    message.heads = heads;
    message.changes = ChunkList::from(changes);
    message.encode()
}

pub(super) fn file(number: u64, ms: u64) -> Vec<u8> {
    let entry = SyncedEntry {
        state: EntryState {
            kind: EntryKind::File,
            hash: Some(hash(number)),
            size: number,
            mode: 0o644,
            mtime_ns: 0,
            target: None,
            xattr: None,
        },
        timestamp: HybridTimestamp::new(ms, 0, [66; 8]),
    };
    entry.encode().expect("valid")
}

/// A node with a file, which it still has in the end and gives to an honest peer.
pub(super) async fn holds(node: &SyncNode, what: &str) {
    assert_eq!(node.paths().await, ["/kept"], "{what}");
    assert!(node.merges().await.is_empty(), "{what}");
    let honest = SyncNode::new("honest").await;
    honest.sync(node).await.expect(what);
    assert_eq!(honest.paths().await, ["/kept"], "{what}");
    assert_eq!(honest.history("/kept").await, [Some(hash(1))], "{what}");
}

pub(super) async fn victim() -> SyncNode {
    let node = SyncNode::new("victim").await;
    node.put("/kept", 1).await;
    node
}

/// Waits until the node has noted the end of so many sessions with an error.
pub(super) async fn failed(node: &SyncNode, sessions: u64) {
    let wait = async {
        while node.sync.counters().failed_sessions.get() < sessions {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(hung(), wait).await.expect("an end");
}

#[tokio::test]
async fn what_is_no_message_ends_the_session() {
    let node = victim().await;
    let length = |bytes: u32| bytes.to_be_bytes().to_vec();
    let longest = u32::try_from(MESSAGE_BYTES_MAX).expect("small");
    let cases = [
        ("four GiB announced", length(u32::MAX), ByeCode::TooLarge),
        ("a byte too long", length(longest + 1), ByeCode::TooLarge),
        ("an empty message", length(0), ByeCode::InvalidMessage),
        (
            "no such message",
            [length(2), vec![9, 9]].concat(),
            ByeCode::InvalidMessage,
        ),
    ];
    for (number, (what, bytes, code)) in cases.into_iter().enumerate() {
        // Each is another peer, because the same one has to pause.
        let mut peer = RawSyncPeer::greeted_as(&node, &format!("peer{number}")).await;
        peer.send.write_all(&bytes).await.expect("taken");
        assert_eq!(peer.bye().await, code, "{what}");
        failed(&node, number as u64 + 1).await;
    }
    holds(&node, "bytes").await;
}

#[tokio::test]
async fn messages_that_do_not_belong_there_end_the_session() {
    let node = victim().await;
    let hello = SyncMessage::Hello(SyncHello {
        bucket: "docs".parse().expect("a name"),
        branch: "main".parse().expect("a name"),
        part: SyncPart::Whole,
        heads: Vec::new(),
    });
    let empty_part = SyncMessage::Sync {
        is_last: false,
        bytes: Vec::new(),
    };
    let cases = [
        (hello, ByeCode::InvalidMessage),
        (
            SyncMessage::Have(vec![ContentHash::new([1; 32])]),
            ByeCode::InvalidMessage,
        ),
        (empty_part, ByeCode::TooLarge),
        (
            SyncMessage::Sync {
                is_last: true,
                bytes: vec![1, 2, 3],
            },
            ByeCode::InvalidDocument,
        ),
    ];
    for (number, (message, code)) in cases.into_iter().enumerate() {
        let mut peer = RawSyncPeer::greeted_as(&node, &format!("peer{number}")).await;
        peer.say(&message).await;
        assert_eq!(peer.bye().await, code, "{message:?}");
    }
    let mut peer = RawSyncPeer::new(&node).await;
    peer.send.write_all(&[9, 0, 0, 0, 0]).await.expect("taken");
    assert_eq!(peer.recv.read_u8().await.ok(), Some(PROTOCOL_VERSION));
    assert_eq!(peer.bye().await, ByeCode::InvalidMessage);
    holds(&node, "order").await;
}

#[tokio::test]
async fn a_message_that_is_cut_changes_nothing() {
    let node = victim().await;
    let mut peer = RawSyncPeer::greeted(&node).await;
    peer.put(&[("/new", file(2, NOW_MS))]);
    let bytes = peer.whole_document();
    let message = SyncMessage::Sync {
        is_last: true,
        bytes,
    };
    let bytes = message.encode().expect("short");
    let length = u32::try_from(bytes.len()).expect("short");
    peer.send.write_u32(length).await.expect("taken");
    let half = &bytes[..bytes.len() / 2];
    peer.send.write_all(half).await.expect("taken");
    peer.send.shutdown().await.expect("open");
    failed(&node, 1).await;
    // A document that ends early inside of a whole message.
    let mut peer = RawSyncPeer::greeted(&node).await;
    peer.put(&[("/new", file(2, NOW_MS))]);
    let saved = peer.doc.save();
    let cut = saved[..saved.len() - 3].to_vec();
    let bytes = message_with(vec![cut], peer.doc.get_heads());
    peer.say_sync(&bytes).await;
    assert_eq!(peer.bye().await, ByeCode::InvalidDocument);
    holds(&node, "cut").await;
}

/// The document in memory has the changes by then, and what is stored must not get them.
#[tokio::test]
async fn a_panic_of_the_library_ends_its_session_and_leaves_the_stored_document() {
    let node = victim().await;
    let early = SyncNode::new("early").await;
    early.sync(&node).await.expect("synchronised");
    let before = node.stored_parts().await;
    assert!(!before.is_empty());

    let mut peer = RawSyncPeer::greeted(&node).await;
    peer.put(&[("/new", file(2, NOW_MS))]);
    let heads = [peer.doc.get_heads(), vec![PANICKING_HEAD]].concat();
    let bytes = message_with(vec![peer.doc.save()], heads);
    peer.say_sync(&bytes).await;
    assert_eq!(peer.bye().await, ByeCode::InvalidDocument);
    failed(&node, 1).await;
    let counters = node.sync.counters();
    assert_eq!(counters.failed_merges.get(), 1);
    assert_eq!(counters.failed_sessions.get(), 1);
    assert_eq!(node.stored_parts().await, before);

    // The next session reads what is stored, and takes the same changes in.
    holds(&node, "a panic").await;
    let mut other = RawSyncPeer::greeted_as(&node, "other").await;
    other.put(&[("/new", file(2, NOW_MS))]);
    other.exchange().await;
    assert_eq!(node.paths().await, ["/kept", "/new"]);
    assert_eq!(node.sync.counters().failed_merges.get(), 1);
}

#[tokio::test]
async fn a_message_that_comes_again_makes_no_second_event() {
    let node = victim().await;
    let mut peer = RawSyncPeer::greeted(&node).await;
    peer.put(&[("/new", file(2, NOW_MS))]);
    peer.exchange().await;
    assert_eq!(node.paths().await, ["/kept", "/new"]);
    assert_eq!(node.merges().await.len(), 1);
    let again = peer.whole_document();
    for _ in 0..3 {
        peer.say_sync(&again).await;
    }
    peer.say(&SyncMessage::Bye(ByeCode::Done)).await;
    // The node says goodbye only after it has handled all that came before.
    while peer
        .hear()
        .await
        .is_ok_and(|it| !matches!(it, SyncMessage::Bye(_)))
    {}
    let mut other = RawSyncPeer::greeted_as(&node, "other").await;
    other.say_sync(&again).await;
    other.exchange().await;
    assert_eq!(node.merges().await.len(), 1);
    assert_eq!(node.history("/new").await, [Some(hash(2))]);
}

#[tokio::test]
async fn a_clock_from_the_future_ends_the_session_and_the_peer_has_to_pause() {
    let node = victim().await;
    let ahead = NOW_MS + 5 * 60 * 1000 + 1;
    let mut peer = RawSyncPeer::greeted(&node).await;
    peer.put(&[("/kept", file(2, ahead)), ("/new", file(3, NOW_MS))]);
    let bytes = peer.whole_document();
    peer.say_sync(&bytes).await;
    assert_eq!(peer.bye().await, ByeCode::ClockAhead);
    failed(&node, 1).await;
    assert_eq!(node.sync.counters().failed_merges.get(), 1);
    let mut again = RawSyncPeer::new(&node).await;
    let answer = again.greet("docs", "main").await;
    assert_eq!(answer, SyncMessage::Bye(ByeCode::Busy));
    holds(&node, "clock").await;
    // Once the time has come, the entry is one like others.
    node.clock.advance(1);
    let mut later = RawSyncPeer::greeted_as(&node, "later").await;
    later.doc = peer.doc;
    later.exchange().await;
    assert_eq!(node.paths().await, ["/kept", "/new"]);
    assert_eq!(node.history("/kept").await[0], Some(hash(2)));
}

#[tokio::test]
async fn a_document_that_unpacks_to_far_more_than_its_size_is_refused() {
    let node = victim().await;
    let mut peer = RawSyncPeer::greeted(&node).await;
    let zeros = vec![0; 1 << 20];
    let names: Vec<String> = (0..32).map(|it| format!("/{it}")).collect();
    let values: Vec<_> = names
        .iter()
        .map(|it| (it.as_str(), zeros.clone()))
        .collect();
    peer.put(&values);
    let bytes = peer.whole_document();
    assert!(bytes.len() < 512 << 10);
    peer.say_sync(&bytes).await;
    assert_eq!(peer.bye().await, ByeCode::InvalidDocument);
    holds(&node, "bomb").await;
}

#[tokio::test]
async fn a_sync_message_has_a_length_that_its_parts_add_up_to() {
    let node = victim().await;
    let mut peer = RawSyncPeer::greeted(&node).await;
    let part = SyncMessage::Sync {
        is_last: false,
        bytes: vec![7; PART_BYTES_MAX],
    };
    let bytes = part.encode().expect("short");
    for _ in 0..SYNC_BYTES_MAX / PART_BYTES_MAX + 2 {
        peer.say_bytes(&bytes).await;
    }
    assert_eq!(peer.bye().await, ByeCode::TooLarge);
    holds(&node, "parts").await;
}

#[tokio::test]
async fn names_that_break_a_rule_are_left_out_and_counted() {
    let node = victim().await;
    let mut peer = RawSyncPeer::greeted(&node).await;
    let deep = "/d".repeat(65);
    let long = format!("/{}", "n".repeat(256));
    let names = [
        "relative", "/", "", "/a/../b", "/a/./b", "/a//b", "/a/", "/nul\0", "/.snap/x", &deep,
        &long,
    ];
    let mut values: Vec<_> = names.iter().map(|name| (*name, file(2, NOW_MS))).collect();
    values.push(("/good", file(3, NOW_MS)));
    values.push(("/no-value", vec![1, 2, 3]));
    // The library takes no empty key.
    values.retain(|(name, _)| !name.is_empty());
    peer.put(&values);
    peer.exchange().await;
    assert_eq!(node.paths().await, ["/good", "/kept"]);
    let refused = node.sync.counters().refused_entries.get();
    assert_eq!(refused, names.len() as u64);
    // The session goes on.
    peer.put(&[("/later", file(4, NOW_MS + 1))]);
    peer.exchange().await;
    assert_eq!(node.paths().await, ["/good", "/kept", "/later"]);
}

#[tokio::test]
async fn a_size_that_a_content_does_not_have_is_replaced_by_that_of_the_content() {
    let node = victim().await;
    let mut peer = RawSyncPeer::greeted(&node).await;
    let mut lie = SyncedEntry::decode(&file(1, NOW_MS)).expect("valid");
    lie.state.size = 5;
    let lie = lie.encode().expect("valid");
    peer.put(&[("/lie", lie), ("/good", file(2, NOW_MS))]);
    peer.exchange().await;
    let tree = node.tree().await;
    assert!(tree.contains_key("/good"), "{tree:?}");
    assert_eq!(tree["/lie"], tree["/kept"]);
}

#[tokio::test]
async fn operations_on_anything_but_the_map_of_paths_are_refused() {
    let node = victim().await;
    let mut peer = RawSyncPeer::greeted(&node).await;
    let mut transaction = peer.doc.transaction();
    let object = transaction.put_object(ROOT, "/object", ObjType::Map);
    let object = object.expect("a map");
    transaction.put(&object, "inner", 1).expect("a map");
    transaction.commit();
    let bytes = peer.whole_document();
    peer.say_sync(&bytes).await;
    assert_eq!(peer.bye().await, ByeCode::InvalidDocument);
    let mut peer = RawSyncPeer::greeted_as(&node, "other").await;
    let mut transaction = peer.doc.transaction();
    transaction.put(ROOT, "/text", "a text").expect("a map");
    transaction.commit();
    let bytes = peer.whole_document();
    peer.say_sync(&bytes).await;
    assert_eq!(peer.bye().await, ByeCode::InvalidDocument);
    holds(&node, "operations").await;
}

/// With this number the library would have none left for the changes of others.
#[tokio::test]
async fn a_number_of_an_operation_that_is_far_ahead_is_refused() {
    let node = victim().await;
    let mut peer = RawSyncPeer::greeted(&node).await;
    peer.put(&[("/new", file(2, NOW_MS))]);
    let change = peer.doc.get_changes(&[]).pop().expect("one");
    let mut expanded = change.decode();
    expanded.hash = None;
    expanded.start_op = NonZeroU64::new(0xffff_0000).expect("not zero");
    let change = Change::from(expanded);
    let bytes = message_with(vec![change.raw_bytes().to_vec()], vec![change.hash()]);
    peer.say_sync(&bytes).await;
    assert_eq!(peer.bye().await, ByeCode::InvalidDocument);
    holds(&node, "numbers").await;
}

/// With these numbers the library divides by zero, or takes 16 GiB for each change.
#[tokio::test]
async fn filters_with_harmful_numbers_are_refused() {
    let node = victim().await;
    let none: &[u8] = &[1, 0, 0];
    let huge: &[u8] = &[1, 10, 0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0];
    for (number, filter) in [none, huge].into_iter().enumerate() {
        let mut peer = RawSyncPeer::greeted_as(&node, &format!("peer{number}")).await;
        let length = u8::try_from(filter.len()).expect("short");
        let message = [&[0x42, 0, 0, 1, 0, length][..], filter, &[0]].concat();
        peer.say_sync(&message).await;
        assert_eq!(peer.bye().await, ByeCode::InvalidDocument);
    }
    holds(&node, "filters").await;
}

#[tokio::test]
async fn a_peer_without_the_right_learns_no_names() {
    let node = victim().await;
    let store = node.store().await;
    let private = NewBucket::new("private".parse().expect("a name"), "root");
    let made = store.write(move |tx| tx.create_bucket(&private)).await;
    made.expect("a bucket");
    let cases = [
        (&["fs:read:docs", "fs:write:docs"][..], "docs", "main"),
        (&[MAY_SYNC], "private", "main"),
        (&[MAY_SYNC], "missing", "main"),
        (&["fs:sync:*"], "private", "main"),
        (&["fs:sync:*"], "missing", "main"),
        (&["fs:sync:*"], "docs", "missing"),
    ];
    for (scopes, bucket, branch) in cases {
        let mut peer = RawSyncPeer::connect(&node, "mallory", scopes).await;
        let answer = peer.greet(bucket, branch).await;
        assert_eq!(answer, SyncMessage::Bye(ByeCode::NotFound), "{bucket}");
    }
    holds(&node, "rights").await;
}

#[tokio::test]
async fn want_is_answered_with_what_the_bucket_has() {
    let node = victim().await;
    let here = node.put_bytes("/here", b"here").await;
    let store = node.store().await;
    let other = NewBucket::new("other".parse().expect("a name"), "root");
    let made = store.write(move |tx| tx.create_bucket(&other)).await;
    let (_, main) = made.expect("a bucket");
    let stored = tokio::task::spawn_blocking(move || {
        let content = store.put_bytes(b"elsewhere")?;
        let hash = content.content().hash;
        let put = TreeChange::put(path("/x"), content.content());
        let put = ChangeRequest::new(main.id, "root", put);
        store.apply(put, vec![content]).wait()?;
        Ok::<_, StoreError>(hash)
    });
    let elsewhere = stored.await.expect("no panic").expect("applied");
    let mut peer = RawSyncPeer::greeted(&node).await;
    let wanted = vec![here, elsewhere, hash(99)];
    peer.say(&SyncMessage::Want(wanted)).await;
    let answer = loop {
        match peer.hear().await.expect("an answer") {
            SyncMessage::Sync { .. } => {}
            other => break other,
        }
    };
    assert_eq!(answer, SyncMessage::Have(vec![here]));
}

#[tokio::test]
async fn a_synchronised_bucket_that_is_switched_off_is_not_there() {
    let node = victim().await;
    node.set(BucketSettings {
        is_synced: Some(false),
        ..BucketSettings::default()
    })
    .await;
    let mut peer = RawSyncPeer::new(&node).await;
    let answer = peer.greet("docs", "main").await;
    assert_eq!(answer, SyncMessage::Bye(ByeCode::NotFound));
    assert_eq!(node.paths().await, ["/kept"]);
}
