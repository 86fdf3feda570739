//! The content of a file on its way from a node: range by range, and compared with its hash at the end.

use std::time::Duration;

use alknet_call::{CallBody, CallOptions};
use bytes::Bytes;
use data_encoding::BASE64;
use serde_json::{Value, json};

use super::failure::{FilesSubject, broken};
use crate::cli::CommandError;
use crate::cli::node_caller::NodeCaller;
use crate::cli::query::text;

/// The operation that sends a content.
const READ: &str = "fs/read";
/// Bytes of one request. The next one begins where the last block of the one before ended.
const RANGE_BYTES: u64 = 64 << 20;
/// Digits of a hash.
const HASH_DIGITS: usize = 64;

/// What a content is: its name by BLAKE3, and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ContentName {
    pub(super) hash: String,
    pub(super) size: u64,
}

impl ContentName {
    /// Reads the members of an answer that describe a content.
    pub(super) fn from_row(row: &Value) -> Option<Self> {
        let hash = row["hash"].as_str().filter(|hash| is_hash(hash))?;
        Some(Self {
            hash: hash.to_owned(),
            size: row["size"].as_u64()?,
        })
    }
}

/// Whether a text is a hash as nodes write it.
pub(super) fn is_hash(text: &str) -> bool {
    let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.len() == HASH_DIGITS && text.bytes().all(is_digit)
}

/// Takes the blocks of a content, in their order.
pub(super) type BlockSink<'s> = dyn FnMut(&[u8]) -> Result<(), CommandError> + 's;

/// A content that is fetched, and how far it came.
pub(super) struct ContentDownload {
    /// The address, for the first request and for errors.
    address: String,
    /// What the content is. Every request after the first one is for this hash, whatever is at the address by then.
    name: Option<ContentName>,
    received: u64,
    hasher: blake3::Hasher,
    /// Longest silence of the node.
    idle: Duration,
    json: bool,
}

impl ContentDownload {
    /// The content at an address, whatever it is.
    pub(super) fn new(address: String, idle: Duration, json: bool) -> Self {
        Self {
            address,
            name: None,
            received: 0,
            hasher: blake3::Hasher::new(),
            idle,
            json,
        }
    }

    /// The content that a listing named.
    pub(super) fn with_name(self, name: ContentName) -> Self {
        Self {
            name: Some(name),
            ..self
        }
    }

    /// Bytes that the sink took.
    pub(super) const fn received(&self) -> u64 {
        self.received
    }

    /// Hands what is missing of the content to `sink`, and compares the whole of it with its hash.
    ///
    /// # Errors
    /// The node refuses, or sends something else than the content; or the sink fails. After a lost connection another
    /// call goes on.
    pub(super) async fn receive(
        &mut self,
        node: &NodeCaller,
        sink: &mut BlockSink<'_>,
    ) -> Result<ContentName, CommandError> {
        loop {
            if let Some(name) = self.name.as_ref().filter(|it| self.received >= it.size) {
                let name = name.clone();
                return self.checked(name);
            }
            self.receive_range(node, sink).await?;
        }
    }

    fn checked(&self, name: ContentName) -> Result<ContentName, CommandError> {
        let found = self.hasher.finalize().to_hex();
        match found.as_str() == name.hash {
            true => Ok(name),
            false => Err(self.broken("the node sent other bytes than those of its hash")),
        }
    }

    async fn receive_range(
        &mut self,
        node: &NodeCaller,
        sink: &mut BlockSink<'_>,
    ) -> Result<(), CommandError> {
        let input = self.request();
        let options = CallOptions {
            idle: Some(self.idle),
            ..CallOptions::default()
        };
        let events = node.subscribe(READ, &input, options).await;
        let mut events = events.map_err(|error| self.subject().error(READ, error))?;
        let mut left = None;
        while let Some(event) = events.next().await {
            let event = event.map_err(|error| self.subject().error(READ, error))?;
            left = Some(match left {
                None => self.begin(event.output.value())?,
                Some(left) => {
                    let block = block_of(&event.output);
                    let block = block.filter(|it| !it.is_empty() && it.len() as u64 <= left);
                    let block = block.ok_or_else(|| self.broken("the node sent a wrong block"))?;
                    sink(&block)?;
                    self.hasher.update(&block);
                    self.received += block.len() as u64;
                    left - block.len() as u64
                }
            });
        }
        match left {
            Some(0) => Ok(()),
            _ => Err(self.broken("the node ended the content before its end")),
        }
    }

    fn request(&self) -> Value {
        match &self.name {
            None => json!({ "path": self.address, "length": RANGE_BYTES }),
            Some(name) => {
                json!({ "hash": name.hash, "offset": self.received, "length": RANGE_BYTES })
            }
        }
    }

    /// Takes what a node says before the bytes. Returns how many it will send.
    fn begin(&mut self, head: &Value) -> Result<u64, CommandError> {
        let name = ContentName::from_row(head);
        let name = name.ok_or_else(|| self.broken("the node does not say what it sends"))?;
        let expected = name.size.saturating_sub(self.received).min(RANGE_BYTES);
        let is_range = head["offset"] == self.received && head["length"] == expected;
        if !is_range || self.name.as_ref().is_some_and(|known| *known != name) {
            return Err(self.broken("the node sends another content than the one that it named"));
        }
        self.name = Some(name);
        Ok(expected)
    }

    fn subject(&self) -> FilesSubject<'_> {
        FilesSubject::new(&self.address, self.json)
    }

    fn broken(&self, why: &str) -> CommandError {
        broken(&self.address, why)
    }
}

/// The bytes of a block: binary data of a mixed frame, or base64.
fn block_of(body: &CallBody) -> Option<Bytes> {
    let bytes = &body.value()["bytes"];
    if let Some(block) = body.binary(bytes) {
        return Some(block);
    }
    let decoded = BASE64.decode(text(bytes).as_bytes());
    decoded.ok().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(size: u64) -> ContentName {
        ContentName {
            hash: "ab".repeat(32),
            size,
        }
    }

    fn download() -> ContentDownload {
        ContentDownload::new("docs:/a".to_owned(), Duration::from_secs(1), false)
    }

    fn head(name: &ContentName, offset: u64, length: u64) -> Value {
        json!({ "hash": name.hash, "size": name.size, "offset": offset, "length": length })
    }

    #[test]
    fn a_head_has_to_fit_what_was_requested() {
        let small = name(10);
        assert_eq!(download().begin(&head(&small, 0, 10)), Ok(10));
        let large = name(RANGE_BYTES + 1);
        assert_eq!(
            download().begin(&head(&large, 0, RANGE_BYTES)),
            Ok(RANGE_BYTES)
        );
        for wrong in [
            head(&small, 0, 9),
            head(&small, 0, 11),
            head(&small, 1, 9),
            json!({ "hash": "AB".repeat(32), "size": 10, "offset": 0, "length": 10 }),
            json!({ "hash": small.hash, "offset": 0, "length": 10 }),
            Value::Null,
        ] {
            let refused = download().begin(&wrong).expect_err("it does not fit");
            assert_eq!(refused.code, "INVALID_OUTPUT", "{wrong}");
        }
        let mut named = download().with_name(name(12));
        assert!(named.begin(&head(&small, 0, 10)).is_err());
        let mut halfway = download().with_name(small.clone());
        halfway.received = 4;
        assert_eq!(halfway.begin(&head(&small, 4, 6)), Ok(6));
    }

    #[test]
    fn a_content_with_another_hash_is_refused() {
        let mut download = download();
        download.hasher.update(b"hello");
        let hash = blake3::hash(b"hello").to_hex().to_string();
        let name = ContentName { hash, size: 5 };
        assert_eq!(download.checked(name.clone()), Ok(name.clone()));
        download.hasher.update(b"!");
        assert!(download.checked(name).is_err());
    }

    #[test]
    fn later_requests_are_for_the_hash() {
        let one = download();
        assert_eq!(one.request()["path"], "docs:/a");
        let mut one = one.with_name(name(100));
        one.received = 7;
        assert_eq!(one.request()["hash"], name(100).hash);
        assert_eq!(one.request()["offset"], 7);
        assert_eq!(one.request().get("path"), None);
    }
}
