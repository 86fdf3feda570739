//! GET and HEAD: files whole and in ranges, contents by their hashes, and listings.

use std::collections::VecDeque;
use std::ops::Range;

use alknet_core::MountBody;
use alknet_store::{
    BucketId, BucketName, ContentBlocks, ContentHash, ContentReader, Entry, EntryKind, StoreError,
    StoreObject,
};
use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, LAST_MODIFIED,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};

use crate::dav::{
    DavTarget, EntityTag, EntityVersion, FILE_HEADERS, MultipartRanges, RangeSelection,
    RequestCondition, TargetEntry, http_date, media_type,
};
use crate::error::is_lack_of_content;
use crate::rights::FsRight;

use super::DavFiles;
use super::body::{BodySource, pulled};
use super::call::{DavCall, run_blocking};
use super::conditions::{file_hash, version_of};
use super::failure::DavFailure;
use super::listing;
use super::respond::{empty, header_value, insert_fixed, with_body};
use super::right::MountedObject;

/// Answers with a file, a content or a listing.
pub(super) async fn answer<F: DavFiles>(
    call: DavCall<F>,
) -> Result<Response<MountBody>, DavFailure> {
    match call.target() {
        DavTarget::Entry(entry) => {
            call.require_read(&entry.address.bucket)?;
            let address = entry.address.clone();
            let found = call.with_store(move |store| {
                let found = store.read(move |tx| {
                    let view = tx.view_of(&address)?;
                    Ok((tx.stat(&view, &address.path)?, view.bucket()))
                });
                Ok(found.wait()?)
            });
            let (found, bucket) = found.await?;
            match found.state.kind {
                EntryKind::Directory => Ok(listing::directory(&call, entry)),
                EntryKind::File => file(&call, entry, &found, bucket).await,
                // The store follows no link, and its target is no content.
                EntryKind::Symlink | EntryKind::Deleted => {
                    Err(StoreError::NotFound(StoreObject::Entry).into())
                }
            }
        }
        DavTarget::Blob(hash) => blob(&call, *hash).await,
        DavTarget::Root => listing::buckets(&call).await,
        DavTarget::Upload(_) | DavTarget::Snapshots(_) => {
            Err(StoreError::NotFound(StoreObject::Entry).into())
        }
    }
}

async fn file<F: DavFiles>(
    call: &DavCall<F>,
    entry: &TargetEntry,
    found: &Entry,
    bucket: BucketId,
) -> Result<Response<MountBody>, DavFailure> {
    let hash = file_hash(found).ok_or(StoreError::NotFound(StoreObject::Content))?;
    let mut head = HeaderMap::new();
    // The path may lead to another content at any time, and the caller's rights may change.
    head.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    if let Some(date) = http_date(found.state.mtime_ns) {
        head.insert(LAST_MODIFIED, header_value(&date));
    }
    let kind = media_type(entry.display_name());
    let content_of = MountedContent {
        hash,
        bucket: Some((bucket, entry.address.bucket.clone())),
    };
    content(call, (content_of, &version_of(found)), &kind, head).await
}

/// A content by its hash. What the caller may not read looks like a content that does not exist.
async fn blob<F: DavFiles>(
    call: &DavCall<F>,
    hash: ContentHash,
) -> Result<Response<MountBody>, DavFailure> {
    let buckets = call.requester().buckets(&[FsRight::Read]);
    let allowed = call.with_store(move |store| {
        let allowed = store.read(move |tx| buckets.have_content(tx, hash));
        Ok(allowed.wait()?)
    });
    if !allowed.await? {
        return Err(StoreError::NotFound(StoreObject::Content).into());
    }
    let mut head = HeaderMap::new();
    let immutable = HeaderValue::from_static("private, max-age=31536000, immutable");
    head.insert(CACHE_CONTROL, immutable);
    let version = EntityVersion {
        tag: Some(EntityTag::of_content(hash)),
        // A content has no time: the condition on one never holds.
        modified_s: i64::MAX,
    };
    // That a bucket of the caller has a right to the bytes was looked at above.
    let content_of = MountedContent { hash, bucket: None };
    let kind = "application/octet-stream";
    content(call, (content_of, &version), kind, head).await
}

/// A content, and the bucket in which a name leads to it.
struct MountedContent {
    hash: ContentHash,
    bucket: Option<(BucketId, BucketName)>,
}

impl MountedContent {
    /// What a caller that reads it needs the right to.
    fn object(&self) -> MountedObject {
        match &self.bucket {
            Some((id, name)) => MountedObject::Bucket {
                right: FsRight::Read,
                name: name.clone(),
                id: Some(*id),
            },
            None => MountedObject::Content(self.hash),
        }
    }
}

/// Opens a content.
async fn open<F: DavFiles>(
    call: &DavCall<F>,
    (hash, bucket): (ContentHash, Option<BucketId>),
) -> Result<(F::Lease, ContentReader), DavFailure> {
    let files = call.files().clone();
    run_blocking(move || {
        let lease = files.open()?;
        let reader = match bucket {
            Some(bucket) => lease.read_content_in(bucket, hash)?,
            None => lease.read_content(hash)?,
        };
        Ok((lease, reader))
    })
    .await
}

async fn content<F: DavFiles>(
    call: &DavCall<F>,
    (named, version): (MountedContent, &EntityVersion),
    kind: &str,
    mut head: HeaderMap,
) -> Result<Response<MountBody>, DavFailure> {
    let hash = named.hash;
    let bucket = named.bucket.as_ref().map(|(id, _)| *id);
    head.insert(ETAG, header_value(&EntityTag::of_content(hash).to_string()));
    match RequestCondition::evaluate(call.method(), call.headers(), Some(version))? {
        RequestCondition::Holds => {}
        RequestCondition::NotModified => {
            return Ok(with_head(empty(StatusCode::NOT_MODIFIED), head));
        }
        RequestCondition::Failed => {
            return Ok(with_head(empty(StatusCode::PRECONDITION_FAILED), head));
        }
    }
    let (lease, reader) = match (open(call, (hash, bucket)).await, bucket) {
        (Err(DavFailure::Store(cause)), Some(bucket)) if is_lack_of_content(&cause) => {
            let fetched = call.files().fetch(bucket, hash).await;
            // A content that is damaged here, and on no other node that is asked, stays a damaged one for the client.
            fetched.map_err(|error| match error.is_unavailable() {
                true => DavFailure::Store(cause),
                false => error.into(),
            })?;
            open(call, (hash, Some(bucket))).await?
        }
        (opened, _) => opened?,
    };
    let size = reader.size();
    head.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    insert_fixed(&mut head, &FILE_HEADERS);
    // Ranges are of GET only (RFC 9110 §14.2).
    let selection = match *call.method() {
        Method::GET => RangeSelection::from_headers(call.headers(), size, version),
        _ => RangeSelection::Whole,
    };
    let (status, pieces, length) = match selection {
        RangeSelection::Whole => {
            head.insert(CONTENT_TYPE, header_value(kind));
            (StatusCode::OK, vec![ContentPiece::Range(0..size)], size)
        }
        RangeSelection::Unsatisfiable => {
            let range = header_value(&format!("bytes */{size}"));
            head.insert(CONTENT_RANGE, range);
            return Ok(with_head(empty(StatusCode::RANGE_NOT_SATISFIABLE), head));
        }
        RangeSelection::Parts(parts) => {
            let (pieces, length) = ranges(&mut head, parts, size, kind)?;
            (StatusCode::PARTIAL_CONTENT, pieces, length)
        }
    };
    head.insert(CONTENT_LENGTH, length.into());
    if *call.method() == Method::HEAD {
        return Ok(with_head(empty(status), head));
    }
    let source = DavContentBody {
        pieces: pieces.into(),
        blocks: None,
        reader,
        _lease: lease,
    };
    let body = pulled(source, call.right_to(named.object()));
    Ok(with_head(with_body(status, body), head))
}

/// What is sent of several ranges, and its length. One range is sent as it is.
fn ranges(
    head: &mut HeaderMap,
    parts: Vec<Range<u64>>,
    size: u64,
    kind: &str,
) -> Result<(Vec<ContentPiece>, u64), DavFailure> {
    if let [range] = &parts[..] {
        let text = format!(
            "bytes {}-{}/{size}",
            range.start,
            range.end.saturating_sub(1)
        );
        head.insert(CONTENT_RANGE, header_value(&text));
        head.insert(CONTENT_TYPE, header_value(kind));
        let length = range.end - range.start;
        return Ok((vec![ContentPiece::Range(range.clone())], length));
    }
    let mut seed = [0; 16];
    let filled = getrandom::fill(&mut seed);
    filled.map_err(|_| DavFailure::Status(StatusCode::INTERNAL_SERVER_ERROR))?;
    let texts = MultipartRanges::new(parts, size, kind, seed);
    head.insert(CONTENT_TYPE, header_value(&texts.content_type()));
    let mut pieces = Vec::new();
    for (text, range) in texts.parts() {
        pieces.push(ContentPiece::Text(text.to_owned().into()));
        pieces.push(ContentPiece::Range(range));
    }
    pieces.push(ContentPiece::Text(texts.tail().into()));
    Ok((pieces, texts.content_length()))
}

fn with_head(mut response: Response<MountBody>, head: HeaderMap) -> Response<MountBody> {
    *response.headers_mut() = head;
    response
}

/// A part of a body.
enum ContentPiece {
    Text(Bytes),
    Range(Range<u64>),
}

/// A content that is being sent. Each block was compared with the hash.
struct DavContentBody<L> {
    pieces: VecDeque<ContentPiece>,
    blocks: Option<ContentBlocks>,
    reader: ContentReader,
    // Dropped after what reads the store.
    _lease: L,
}

impl<L: Send + 'static> BodySource for DavContentBody<L> {
    fn next_piece(&mut self) -> Result<Option<Bytes>, DavFailure> {
        loop {
            if let Some(blocks) = &mut self.blocks {
                if let Some(block) = blocks.next() {
                    return Ok(Some(block?.into()));
                }
                self.blocks = None;
            }
            match self.pieces.pop_front() {
                None => return Ok(None),
                Some(ContentPiece::Text(text)) => return Ok(Some(text)),
                Some(ContentPiece::Range(range)) => self.blocks = Some(self.reader.blocks(range)),
            }
        }
    }
}
