//! `fs/read`: the content of a file, block by block.

use alknet_call::{CallBody, CallError, CallOutput, Ctx, HandlerKind, Registration};
use alknet_store::{ContentBlocks, ContentHash, Entry, EntryKind, StoreError};
use bytes::Bytes;
use futures_util::{Stream, stream};
use serde::Deserialize;
use serde_json::json;

use super::{FsCall, schema, shown, subscription};
use crate::error::FsError;
use crate::lease::StoreLease;
use crate::path::address_at;
use crate::rights::FsRight;
use crate::service::{FsService, blocking};

pub(super) fn operation(service: &FsService) -> Registration {
    let spec = subscription(
        "fs/read",
        "Sends the content of a file, or a range of it: first what it is, then its bytes. Each block was compared with the \
         hash.",
    )
    .with_input(schema::input(
        &[],
        json!({
            "path": schema::address(), "as_of": schema::seq(),
            "hash": schema::hash(),
            "offset": schema::count("Where the range begins"),
            "length": schema::count("Bytes of the range; to the end without it"),
        }),
        json!({ "path": "docs:/2026/report.txt", "offset": 0, "length": 65_536 }),
    ))
    .with_output(json!({
        "type": "object",
        "properties": {
            "hash": schema::hash(), "size": schema::count("Bytes of the whole content"),
            "offset": schema::count("Where the sent range begins"),
            "length": schema::count("Bytes of the sent range"),
            "entry": schema::entry(),
            "bytes": schema::bytes(),
        },
    }));
    let service = service.clone();
    let handler = HandlerKind::stream(move |input: CallBody, ctx: Ctx| {
        items(FsCall::new(&service, input, &ctx))
    });
    Registration::new(spec, handler)
}

#[derive(Deserialize)]
struct ContentReadInput {
    path: Option<String>,
    as_of: Option<u64>,
    hash: Option<String>,
    #[serde(default)]
    offset: u64,
    length: Option<u64>,
}

/// A content that is being sent.
struct SentContent {
    // Dropped before the store.
    blocks: ContentBlocks,
    _lease: StoreLease,
}

enum ReadState {
    // In a box, as the other one: the state is moved for each block.
    Requested(Box<Result<FsCall, FsError>>),
    Under(Box<SentContent>),
}

fn items(
    call: Result<FsCall, FsError>,
) -> impl Stream<Item = Result<CallOutput, CallError>> + Send + 'static {
    stream::try_unfold(ReadState::Requested(Box::new(call)), |state| async move {
        match state {
            ReadState::Requested(call) => {
                let (head, open) = begin((*call)?).await?;
                Ok::<_, CallError>(Some((head, ReadState::Under(open))))
            }
            ReadState::Under(mut open) => {
                // Each block on a thread that may block; between two of them the reader sets the pace.
                let read = blocking(move || {
                    let block = open.blocks.next().transpose()?;
                    Ok((block, open))
                });
                let (block, open) = read.await?;
                Ok(block.map(|block| (item(block), ReadState::Under(open))))
            }
        }
    })
}

fn item(block: Vec<u8>) -> CallOutput {
    let block = Bytes::from(block);
    CallOutput::Mixed(json!({ "bytes": { "$bin": [0, block.len()] } }), block)
}

async fn begin(call: FsCall) -> Result<(CallOutput, Box<SentContent>), FsError> {
    let input: ContentReadInput = call.parse()?;
    let (hash, entry) = match (&input.path, &input.hash) {
        (Some(path), None) => {
            let entry = file(&call, path, input.as_of).await?;
            (entry.state.hash.unwrap_or(ContentHash::EMPTY), Some(entry))
        }
        (None, Some(hash)) => (call.readable_content(hash).await?, None),
        _ => return Err(FsError::input("give either path or hash")),
    };
    let lease = call.lease().await?;
    let opened = blocking(move || {
        let reader = lease.read_content(hash)?;
        Ok((reader, lease))
    });
    let (reader, lease) = opened.await?;
    let size = reader.size();
    let start = input.offset.min(size);
    let length = input.length.unwrap_or(u64::MAX).min(size - start);
    let mut head = json!({
        "hash": hash.to_string(), "size": size, "offset": start, "length": length,
    });
    if let Some(entry) = entry {
        head["entry"] = shown::entry(&entry);
    }
    let blocks = reader.blocks(start..start + length);
    let open = Box::new(SentContent {
        blocks,
        _lease: lease,
    });
    Ok((head.into(), open))
}

/// The file at a path.
async fn file(call: &FsCall, path: &str, as_of: Option<u64>) -> Result<Entry, FsError> {
    let address = address_at(call.address(FsRight::Read, path)?, as_of)?;
    let entry = call.read(move |tx| tx.stat(&tx.view_of(&address)?, &address.path));
    let entry = entry.await?;
    match entry.state.kind {
        EntryKind::File => Ok(entry),
        EntryKind::Symlink => Err(FsError::input(
            "the entry is a symbolic link, which the store does not follow; fs/stat has its target",
        )),
        EntryKind::Directory | EntryKind::Deleted => {
            let path = entry.path.to_string();
            Err(StoreError::IsDirectory { path }.into())
        }
    }
}

impl FsCall {
    /// A content by its hash, if a bucket that the caller may read has it.
    pub(super) async fn readable_content(&self, hash: &str) -> Result<ContentHash, FsError> {
        self.content_with(FsRight::Read, hash).await
    }
}
