//! One content on its way to a node: in one request if it is short, else by a write session with several pieces under way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use alknet_call::{CallBody, CallError, CallOptions, ErrorCode};
use alknet_tensor_cli::ByteProgress;
use data_encoding::{BASE64, HEXLOWER};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::{Value, json};

use super::address::FilesAddress;
use super::content::ContentName;
use super::failure::{FilesSubject, broken, lacks};
use super::list::entry_at;
use super::source::{PieceReader, SourceAttributes};
use crate::cli::node_caller::NodeCaller;
use crate::cli::query::text;
use crate::cli::{CommandError, CommandExit};

/// Operations of a write.
const PUT: &str = "fs/put";
const OPEN: &str = "fs/write/open";
const CHUNK: &str = "fs/write/chunk";
const CLOSE: &str = "fs/write/close";
const ABORT: &str = "fs/write/abort";
/// Bytes that one request stores without a session.
pub(super) const PUT_BYTES_MAX: u64 = 512 << 10;
/// Pieces under way at the same time.
const PIECES_UNDER_WAY: usize = 4;
/// Longest wait for the last step, in which the node writes, syncs and names the whole content.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(300);
/// How often a piece is sent again to a node that has too much to do.
const BUSY_TRIES: u32 = 8;
/// The pause before that, if the node names none.
const BUSY_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause that a node can ask for.
const BUSY_PAUSE_MAX: Duration = Duration::from_secs(10);

/// What has to be at the address before the write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct WriteCondition {
    /// The hash of the present content, or `*` for any entry.
    pub(super) if_match: Option<String>,
    /// Whether nothing may be at the address.
    pub(super) if_absent: bool,
}

impl WriteCondition {
    fn add_to(&self, input: &mut Value) {
        if let Some(hash) = &self.if_match {
            input["if_match"] = hash.as_str().into();
        }
        if self.if_absent {
            input["if_none_match"] = "*".into();
        }
    }
}

/// A request of `fs/put` with these attributes.
pub(super) fn put_input(
    address: &FilesAddress,
    bytes: &[u8],
    attributes: SourceAttributes,
    condition: &WriteCondition,
) -> Value {
    let mut input = json!({ "path": address.to_string(), "bytes": BASE64.encode(bytes) });
    if let Some(mode) = attributes.mode {
        input["mode"] = mode.into();
    }
    if let Some(ms) = attributes.mtime_ms {
        input["mtime_ms"] = ms.into();
    }
    condition.add_to(&mut input);
    input
}

/// Options of a request that runs once although it may be sent again over another connection.
pub(super) fn options_once(key: &str, timeout: Duration) -> CallOptions {
    CallOptions {
        timeout: Some(timeout),
        idempotency_key: Some(key.to_owned()),
        ..CallOptions::default()
    }
}

/// A key for such a request.
///
/// # Errors
/// The system has no entropy.
pub(super) fn new_key() -> Result<String, CommandError> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(CommandError::local)?;
    Ok(HEXLOWER.encode(&random))
}

/// A content that is stored, and how far it came.
pub(super) struct ContentUpload {
    pub(super) address: FilesAddress,
    pub(super) attributes: SourceAttributes,
    pub(super) condition: WriteCondition,
    /// Bytes of it, if they are known. The node refuses another number.
    pub(super) size: Option<u64>,
    pieces: PieceReader,
    /// Whether `pieces` has no more.
    is_read: bool,
    bytes_read: u64,
    hasher: blake3::Hasher,
    /// Pieces that the node has not confirmed, by their offsets.
    unconfirmed: BTreeMap<u64, Vec<u8>>,
    bytes_confirmed: u64,
    session: Option<String>,
    key: String,
    /// Whether the last request was sent, over this connection or one before.
    is_ending: bool,
    json: bool,
}

impl ContentUpload {
    /// Begins nothing yet on the node.
    ///
    /// # Errors
    /// The system has no entropy.
    pub(super) fn new(
        address: FilesAddress,
        pieces: PieceReader,
        json: bool,
    ) -> Result<Self, CommandError> {
        Ok(Self {
            address,
            attributes: SourceAttributes::default(),
            condition: WriteCondition::default(),
            size: None,
            pieces,
            is_read: false,
            bytes_read: 0,
            hasher: blake3::Hasher::new(),
            unconfirmed: BTreeMap::new(),
            bytes_confirmed: 0,
            session: None,
            key: new_key()?,
            is_ending: false,
            json,
        })
    }

    /// Bytes that the node has.
    pub(super) const fn confirmed(&self) -> u64 {
        self.bytes_confirmed
    }

    /// Stores what is missing. `tell` gets the bytes that the node has.
    ///
    /// # Errors
    /// The node refuses, or the source cannot be read: the session is ended, and the file is as before. After a lost
    /// connection another call goes on.
    pub(super) async fn store(
        &mut self,
        node: &NodeCaller,
        tell: &dyn Fn(u64),
    ) -> Result<ContentName, CommandError> {
        let stored = self.try_store(node, tell).await;
        if let Err(error) = &stored
            && let Some(session) = &self.session
            && !matches!(error.exit, CommandExit::Timeout | CommandExit::Unreachable)
        {
            // What was staged counts for the caller until then. An error says no more than the one before.
            node.call(ABORT, &json!({ "session": session })).await.ok();
        }
        stored
    }

    async fn try_store(
        &mut self,
        node: &NodeCaller,
        tell: &dyn Fn(u64),
    ) -> Result<ContentName, CommandError> {
        // A short content needs one request and no session, and only its end shows that it is short.
        while self.session.is_none() && !self.is_read && self.bytes_read <= PUT_BYTES_MAX {
            self.read_piece().await?;
        }
        if self.session.is_none() {
            if self.is_read && self.bytes_read <= PUT_BYTES_MAX {
                return self.put(node).await;
            }
            self.open(node).await?;
        }
        self.send(node, tell).await?;
        self.close(node).await
    }

    async fn read_piece(&mut self) -> Result<(), CommandError> {
        match self.pieces.next_piece().await? {
            None => self.is_read = true,
            Some(piece) => {
                self.hasher.update(&piece);
                let offset = self.bytes_read;
                self.bytes_read += piece.len() as u64;
                self.unconfirmed.insert(offset, piece);
            }
        }
        Ok(())
    }

    async fn put(&mut self, node: &NodeCaller) -> Result<ContentName, CommandError> {
        let bytes: Vec<u8> = self.unconfirmed.values().flatten().copied().collect();
        let input = put_input(&self.address, &bytes, self.attributes, &self.condition);
        // The key is the same over each connection, so that the node stores it once.
        let options = options_once(&self.key, CLOSE_TIMEOUT);
        let answer = patiently(async || node.call_with(PUT, &input, options.clone()).await).await;
        let answer = answer.map_err(|error| self.error(PUT, error))?;
        self.bytes_confirmed = self.bytes_read;
        self.stored(answer.value())
    }

    async fn open(&mut self, node: &NodeCaller) -> Result<(), CommandError> {
        let mut input = json!({ "path": self.address.to_string() });
        if let Some(size) = self.size {
            input["size"] = size.into();
        }
        if let Some(mode) = self.attributes.mode {
            input["file_mode"] = mode.into();
        }
        if let Some(ms) = self.attributes.mtime_ms {
            input["mtime_ms"] = ms.into();
        }
        self.condition.add_to(&mut input);
        let answer = node.call(OPEN, &input).await;
        let answer = answer.map_err(|error| self.error(OPEN, error))?;
        self.session = Some(text(&answer.value()["session"]).to_owned());
        Ok(())
    }

    async fn send(&mut self, node: &NodeCaller, tell: &dyn Fn(u64)) -> Result<(), CommandError> {
        let session = self.session.clone().unwrap_or_default();
        let mut under_way = BTreeSet::new();
        let mut answers = FuturesUnordered::new();
        loop {
            while under_way.len() < PIECES_UNDER_WAY
                && let Some((offset, piece)) = self.first_waiting(&under_way)
            {
                let bytes = BASE64.encode(piece);
                let input = json!({ "session": session, "offset": offset, "bytes": bytes });
                under_way.insert(offset);
                answers.push(write_piece(node, offset, input));
            }
            // No more is in memory than what is under way.
            let may_read = !self.is_read && under_way.len() < PIECES_UNDER_WAY;
            if !may_read && answers.is_empty() {
                return Ok(());
            }
            // A source that waits for its own input holds no answer up.
            let answered = tokio::select! {
                read = self.read_piece(), if may_read => {
                    read?;
                    None
                }
                answered = answers.next(), if !answers.is_empty() => answered,
            };
            let Some((offset, answer)) = answered else {
                continue;
            };
            answer.map_err(|error| self.error(CHUNK, error))?;
            under_way.remove(&offset);
            // Until this answer the piece would be sent again over the next connection.
            let piece = self.unconfirmed.remove(&offset);
            self.bytes_confirmed += piece.map_or(0, |piece| piece.len() as u64);
            tell(self.bytes_confirmed);
        }
    }

    /// The first piece that is not under way. Those that were sent before a connection was lost come first.
    fn first_waiting(&self, under_way: &BTreeSet<u64>) -> Option<(u64, &[u8])> {
        let mut waiting = self.unconfirmed.iter();
        let next = waiting.find(|(offset, _)| !under_way.contains(*offset));
        next.map(|(offset, piece)| (*offset, piece.as_slice()))
    }

    async fn close(&mut self, node: &NodeCaller) -> Result<ContentName, CommandError> {
        // The answer of an earlier request may have been lost with its connection.
        let was_sent = std::mem::replace(&mut self.is_ending, true);
        let input = json!({ "session": self.session });
        let options = options_once(&self.key, CLOSE_TIMEOUT);
        match node.call_with(CLOSE, &input, options).await {
            Ok(answer) => self.stored(answer.value()),
            // The node may have closed it, although the answer was lost with the connection.
            Err(error) if was_sent && is_session_over(&error) => {
                self.find_stored(node, error).await
            }
            Err(error) => Err(self.error(CLOSE, error)),
        }
    }

    /// Looks whether the content is at its address.
    async fn find_stored(
        &self,
        node: &NodeCaller,
        error: CallError,
    ) -> Result<ContentName, CommandError> {
        let entry = entry_at(node, &self.address, self.json).await?;
        match ContentName::from_row(&entry) {
            // Another writer may have stored something else there meanwhile.
            Some(name) if name == self.name() => Ok(name),
            _ => Err(self.error(CLOSE, error)),
        }
    }

    /// What was read.
    fn name(&self) -> ContentName {
        ContentName {
            hash: self.hasher.finalize().to_hex().to_string(),
            size: self.bytes_read,
        }
    }

    /// Compares what the node stored with what was read.
    fn stored(&self, answer: &Value) -> Result<ContentName, CommandError> {
        let name = self.name();
        let is_same = answer["hash"] == *name.hash && answer["bytes"] == name.size;
        match is_same {
            true => Ok(name),
            false => Err(broken(
                &self.address.to_string(),
                "the node stored other bytes than it got; put the file again",
            )),
        }
    }

    fn error(&self, operation: &str, error: CallError) -> CommandError {
        let address = self.address.to_string();
        if operation != OPEN && is_session_over(&error) {
            let text = format!(
                "{address}: the node has ended the upload: it restarted, or the upload waited for an hour; the file is \
                 as before: put it again"
            );
            return CommandError::new(CommandExit::Failed, error.code.name(), text);
        }
        FilesSubject::new(&address, self.json).error(operation, error)
    }
}

fn is_session_over(error: &CallError) -> bool {
    lacks(error, "write session")
}

/// Sends a piece. The same piece can be sent twice.
async fn write_piece(
    node: &NodeCaller,
    offset: u64,
    input: Value,
) -> (u64, Result<CallBody, CallError>) {
    let answer = patiently(async || node.call(CHUNK, &input).await).await;
    (offset, answer)
}

/// Makes a call again if the node has too much to do.
pub(super) async fn patiently(
    call: impl AsyncFn() -> Result<CallBody, CallError>,
) -> Result<CallBody, CallError> {
    let mut tries = 0;
    loop {
        let answer = call().await;
        tries += 1;
        match &answer {
            Err(error) if is_busy(error) && tries < BUSY_TRIES => {
                let pause = error.retry_after_ms.map(Duration::from_millis);
                // The node names the pause, and must not hold the command up for hours.
                let pause = pause.unwrap_or(BUSY_PAUSE).min(BUSY_PAUSE_MAX);
                tokio::time::sleep(pause).await;
            }
            _ => return answer,
        }
    }
}

fn is_busy(error: &CallError) -> bool {
    error.code == ErrorCode::Overloaded || error.code.name() == "BUSY"
}

/// Shows how far an upload is that begins behind `before` bytes of the command.
pub(super) fn tell_progress(progress: &ByteProgress, before: u64, total: u64) -> impl Fn(u64) + '_ {
    move |confirmed| progress.set(before + confirmed, total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload() -> ContentUpload {
        let pieces = PieceReader::start(&b"hello"[..], "a source").expect("a thread");
        let address = FilesAddress::read("docs:/a").expect("an address");
        ContentUpload::new(address, pieces, false).expect("entropy")
    }

    #[test]
    fn a_condition_is_a_part_of_the_request() {
        let address = FilesAddress::read("docs:/a").expect("an address");
        let attributes = SourceAttributes {
            mode: Some(0o644),
            mtime_ms: Some(5),
        };
        let condition = WriteCondition {
            if_match: Some("ab".repeat(32)),
            if_absent: false,
        };
        assert_eq!(
            put_input(&address, b"hello", attributes, &condition),
            json!({ "path": "docs:/a", "bytes": "aGVsbG8=", "mode": 0o644, "mtime_ms": 5,
                    "if_match": "ab".repeat(32) })
        );
        let condition = WriteCondition {
            if_match: None,
            if_absent: true,
        };
        let input = put_input(&address, b"", SourceAttributes::default(), &condition);
        assert_eq!(
            input,
            json!({ "path": "docs:/a", "bytes": "", "if_none_match": "*" })
        );
    }

    #[tokio::test]
    async fn what_the_node_stored_is_compared_with_what_was_read() {
        let mut upload = upload();
        while !upload.is_read {
            upload.read_piece().await.expect("it is readable");
        }
        let hash = blake3::hash(b"hello").to_hex().to_string();
        let stored = upload.stored(&json!({ "hash": hash, "bytes": 5, "seq": 1 }));
        assert_eq!(
            stored,
            Ok(ContentName {
                hash: hash.clone(),
                size: 5
            })
        );
        for wrong in [
            json!({ "hash": "ab".repeat(32), "bytes": 5 }),
            json!({ "hash": hash, "bytes": 4 }),
            json!({}),
        ] {
            assert!(upload.stored(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_session_that_is_over_leaves_the_file_as_it_was() {
        let over = CallError::new(ErrorCode::NotFound, "the write session does not exist")
            .with_details(json!({ "object": "write session" }));
        let said = upload().error(CHUNK, over);
        assert!(said.message.contains("as before: put it again"), "{said}");
    }

    #[tokio::test]
    async fn a_busy_node_is_asked_again_and_not_for_ever() {
        let calls = std::cell::Cell::new(0);
        let busy = patiently(async || {
            calls.set(calls.get() + 1);
            Err(CallError::new(ErrorCode::Overloaded, "too much").with_retry_after_ms(1))
        });
        assert!(busy.await.is_err());
        assert_eq!(calls.get(), BUSY_TRIES);
        let refused = patiently(async || {
            calls.set(calls.get() + 1);
            Err(CallError::new(ErrorCode::Forbidden, "no"))
        });
        assert!(refused.await.is_err());
        assert_eq!(calls.get(), BUSY_TRIES + 1);
    }
}
