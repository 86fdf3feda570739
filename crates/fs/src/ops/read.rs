//! `fs/read`: the content of a file, block by block.

use alknet_call::{CallBody, CallError, CallOutput, Ctx, HandlerKind, Registration};
use alknet_store::{
    BucketId, BucketName, ContentBlocks, ContentHash, ContentReader, Entry, EntryKind, StoreError,
};
use bytes::Bytes;
use futures_util::{Stream, stream};
use serde::Deserialize;
use serde_json::json;

use super::{FsCall, schema, shown, subscription};
use crate::error::{FsError, of_unavailable};
use crate::lease::StoreLease;
use crate::path::address_at;
use crate::recheck::RecheckPace;
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
    call: FsCall,
    content: NamedContent,
    pace: RecheckPace,
}

/// How a request names what it reads.
enum NamedContent {
    InBucket(BucketId, BucketName),
    ByHash(String),
}

enum ReadState {
    // In a box, as the other one: the state is moved for each block.
    Requested(Box<Result<FsCall, FsError>>),
    Under(Box<SentContent>),
}

fn items(
    call: Result<FsCall, FsError>,
) -> impl Stream<Item = Result<CallOutput, CallError>> + Send + 'static {
    let begun = ReadState::Requested(Box::new(call));
    stream::try_unfold(begun, |state| async move {
        match state {
            ReadState::Requested(call) => {
                let (head, open) = begin((*call)?).await?;
                Ok::<_, CallError>(Some((head, ReadState::Under(open))))
            }
            ReadState::Under(mut open) => {
                open.check_right().await?;
                // Each block on a thread that may block; between two of them the reader sets the pace.
                let read = blocking(move || {
                    let block = open.blocks.next().transpose()?;
                    Ok((block, open))
                });
                let (block, mut open) = read.await?;
                open.pace.note_bytes(block.as_ref().map_or(0, Vec::len));
                Ok(block.map(|block| (item(block), ReadState::Under(open))))
            }
        }
    })
}

fn item(block: Vec<u8>) -> CallOutput {
    let block = Bytes::from(block);
    CallOutput::Mixed(json!({ "bytes": { "$bin": [0, block.len()] } }), block)
}

async fn begin(mut call: FsCall) -> Result<(CallOutput, Box<SentContent>), FsError> {
    let input: ContentReadInput = call.parse()?;
    call.drop_input();
    let (hash, found, content) = match (&input.path, &input.hash) {
        (Some(path), None) => {
            let (entry, bucket, name) = file(&call, path, input.as_of).await?;
            let hash = entry.state.hash.unwrap_or(ContentHash::EMPTY);
            let named = NamedContent::InBucket(bucket, name);
            (hash, Some((entry, bucket)), named)
        }
        (None, Some(text)) => {
            let hash = call.content_with(FsRight::Read, text).await?;
            (hash, None, NamedContent::ByHash(text.clone()))
        }
        _ => return Err(FsError::input("give either path or hash")),
    };
    let bucket = found.as_ref().map(|(_, bucket)| *bucket);
    let (reader, lease) = match (open(&call, bucket, hash).await, bucket) {
        (Err(error), Some(bucket)) if error.lacks_content() => {
            let fetched = call.service.fetch_for_read(bucket, hash).await;
            fetched.map_err(|error| call.with_tried_peers(&content, error))?;
            open(&call, Some(bucket), hash).await?
        }
        (opened, _) => opened?,
    };
    let size = reader.size();
    let start = input.offset.min(size);
    let length = input.length.unwrap_or(u64::MAX).min(size - start);
    let mut head = json!({
        "hash": hash.to_string(), "size": size, "offset": start, "length": length,
    });
    if let Some((entry, _)) = found {
        head["entry"] = shown::entry(&entry);
    }
    let blocks = reader.blocks(start..start + length);
    let open = Box::new(SentContent {
        blocks,
        _lease: lease,
        call,
        content,
        pace: RecheckPace::new(),
    });
    Ok((head.into(), open))
}

impl FsCall {
    /// The error of a fetch, with the names of the peers for a caller that exchanges contents with them.
    fn with_tried_peers(&self, content: &NamedContent, error: FsError) -> FsError {
        if let FsError::Unavailable { hash, tried } = &error
            && let NamedContent::InBucket(_, bucket) = content
            && self.requester.may(FsRight::Sync, bucket)
        {
            return of_unavailable(*hash, tried, true).into();
        }
        error
    }
}

/// Opens a content, for the bucket in which a name leads to it.
async fn open(
    call: &FsCall,
    bucket: Option<BucketId>,
    hash: ContentHash,
) -> Result<(ContentReader, StoreLease), FsError> {
    let lease = call.lease().await?;
    blocking(move || {
        let reader = match bucket {
            Some(bucket) => lease.read_content_in(bucket, hash)?,
            None => lease.read_content(hash)?,
        };
        Ok((reader, lease))
    })
    .await
}

impl SentContent {
    /// Ends a subscription whose requester has lost the right since it began, or whose bucket is gone.
    async fn check_right(&mut self) -> Result<(), FsError> {
        let has_changed = self.call.renew_rights()?;
        // Not for each block: the store is asked.
        if !has_changed && !self.pace.take_due() {
            return Ok(());
        }
        match &self.content {
            NamedContent::InBucket(id, name) => {
                self.call.requester.require(FsRight::Read, name)?;
                let id = *id;
                self.call.read(move |tx| tx.bucket(id).map(drop)).await
            }
            NamedContent::ByHash(hash) => {
                self.call.content_with(FsRight::Read, hash).await?;
                Ok(())
            }
        }
    }
}

/// The file at a path, and its bucket with the name.
async fn file(
    call: &FsCall,
    path: &str,
    as_of: Option<u64>,
) -> Result<(Entry, BucketId, BucketName), FsError> {
    let address = address_at(call.address(FsRight::Read, path)?, as_of)?;
    let name = address.bucket.clone();
    let found = call.read(move |tx| {
        let view = tx.view_of(&address)?;
        Ok((tx.stat(&view, &address.path)?, view.bucket()))
    });
    let (entry, bucket) = found.await?;
    match entry.state.kind {
        EntryKind::File => Ok((entry, bucket, name)),
        EntryKind::Symlink => Err(FsError::input(
            "the entry is a symbolic link, which the store does not follow; fs/stat has its target",
        )),
        EntryKind::Directory | EntryKind::Deleted => {
            let path = entry.path.to_string();
            Err(StoreError::IsDirectory { path }.into())
        }
    }
}
