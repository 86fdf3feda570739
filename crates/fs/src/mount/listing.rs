//! Listings of directories and of buckets, as pages for people or as JSON.

use alknet_core::MountBody;
use alknet_store::limits::PAGE_ENTRIES_MAX;
use alknet_store::{Bucket, BucketName, EntryPath, ListRequest};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION, VARY};
use http::{HeaderValue, Method, Response, StatusCode};

use crate::dav::{
    LISTING_HEADERS, ListedEntry, ListingFormat, ListingHead, TargetEntry, end_listing,
    listing_head, listing_row,
};
use crate::limits::LIST_PIECE_BYTES;
use crate::rights::{FsRight, VisibleBuckets};

use super::DavFiles;
use super::body::{BodySource, pulled};
use super::call::{CallerFiles, DavCall};
use super::conditions::file_hash;
use super::failure::DavFailure;
use super::properties::rows_after;
use super::respond::{empty, header_value, insert_fixed, with_body};
use super::right::MountedObject;

/// Lists a directory, which exists.
pub(super) fn directory<F: DavFiles>(
    call: &DavCall<F>,
    entry: &TargetEntry,
) -> Response<MountBody> {
    let format = ListingFormat::from_headers(call.headers());
    let target = entry.at(entry.address.path.clone(), true);
    if format == ListingFormat::Html && !entry.is_collection {
        // References of the page are relative to the slash.
        let mut response = empty(StatusCode::PERMANENT_REDIRECT);
        let location = header_value(&target.href());
        response.headers_mut().insert(LOCATION, location);
        return response;
    }
    let mut source = SentListing {
        files: call.files().clone(),
        target,
        format,
        stage: ListingStage::Head,
        rows_max: PAGE_ENTRIES_MAX,
    };
    if *call.method() == Method::HEAD {
        // The fields are those of GET, and no page is read for them.
        source.stage = ListingStage::End;
    }
    // Each page looks the bucket up by its name.
    let right = call.right_to(MountedObject::Bucket {
        right: FsRight::Read,
        name: entry.address.bucket.clone(),
        id: None,
    });
    shown(format, pulled(source, right))
}

/// Lists the buckets that the caller may read.
pub(super) async fn buckets<F: DavFiles>(
    call: &DavCall<F>,
) -> Result<Response<MountBody>, DavFailure> {
    let format = ListingFormat::from_headers(call.headers());
    // Before the status is sent: the store may not be served.
    call.with_store(|_| Ok(())).await?;
    let visible = call.requester().buckets(&[FsRight::Read]);
    let right = call.right_to(MountedObject::List(visible.clone()));
    let source = SentBuckets {
        files: call.files().clone(),
        visible,
        format,
        stage: match *call.method() {
            Method::HEAD => BucketListStage::End,
            _ => BucketListStage::Head,
        },
    };
    Ok(shown(format, pulled(source, right)))
}

/// A list of buckets that is being sent, page by page.
struct SentBuckets<F> {
    files: CallerFiles<F>,
    visible: VisibleBuckets,
    format: ListingFormat,
    stage: BucketListStage,
}

enum BucketListStage {
    Head,
    /// The page behind this bucket.
    Page(Option<BucketName>),
    End,
}

impl<F: DavFiles> BodySource for SentBuckets<F> {
    fn next_piece(&mut self) -> Result<Option<Bytes>, DavFailure> {
        let stage = std::mem::replace(&mut self.stage, BucketListStage::End);
        match stage {
            BucketListStage::End => Ok(None),
            BucketListStage::Head => {
                self.stage = BucketListStage::Page(None);
                let head = ListingHead {
                    title: "fs",
                    has_parent: false,
                };
                Ok(Some(listing_head(self.format, &head).into()))
            }
            BucketListStage::Page(after) => self.page(after).map(Some),
        }
    }
}

impl<F: DavFiles> SentBuckets<F> {
    /// The names of buckets are so short that a page is never a long piece.
    fn page(&mut self, after: Option<BucketName>) -> Result<Bytes, DavFailure> {
        let mut is_first = after.is_none();
        let visible = self.visible.clone();
        let lease = self.files.open()?;
        let page = lease.read(move |tx| visible.existing(tx, after.as_ref(), PAGE_ENTRIES_MAX));
        let page: Vec<Bucket> = page.wait()?;
        let mut rows = String::new();
        for bucket in &page {
            let name = bucket.name.as_str();
            let row = ListedEntry {
                name,
                kind: "directory",
                href: &format!("/fs/{name}/"),
                size: None,
                modified_ns: i64::try_from(bucket.created_ms)
                    .unwrap_or_default()
                    .saturating_mul(1_000_000),
                hash: None,
            };
            rows.push_str(&listing_row(self.format, &row, is_first));
            is_first = false;
        }
        match page.last() {
            Some(last) => self.stage = BucketListStage::Page(Some(last.name.clone())),
            // Only an empty page is known to be the last one.
            None => rows.push_str(&end_listing(self.format, None)),
        }
        Ok(rows.into())
    }
}

fn shown(format: ListingFormat, body: MountBody) -> Response<MountBody> {
    let mut response = with_body(StatusCode::OK, body);
    let headers = response.headers_mut();
    insert_fixed(headers, &LISTING_HEADERS);
    headers.insert(CONTENT_TYPE, header_value(format.media_type()));
    // A cache must not answer a program with the page for people.
    headers.insert(VARY, HeaderValue::from_static("accept"));
    response
}

/// A listing that is being sent, page by page.
struct SentListing<F> {
    files: CallerFiles<F>,
    target: TargetEntry,
    format: ListingFormat,
    stage: ListingStage,
    /// Entries that the next page reads at most.
    rows_max: usize,
}

enum ListingStage {
    Head,
    /// The page behind this path.
    Page(Option<EntryPath>),
    End,
}

impl<F: DavFiles> BodySource for SentListing<F> {
    fn next_piece(&mut self) -> Result<Option<Bytes>, DavFailure> {
        let stage = std::mem::replace(&mut self.stage, ListingStage::End);
        match stage {
            ListingStage::End => Ok(None),
            ListingStage::Head => {
                self.stage = ListingStage::Page(None);
                let head = ListingHead {
                    title: &self.target.address.to_string(),
                    has_parent: !self.target.address.path.is_root(),
                };
                Ok(Some(listing_head(self.format, &head).into()))
            }
            ListingStage::Page(after) => self.page(after).map(Some),
        }
    }
}

impl<F: DavFiles> SentListing<F> {
    fn page(&mut self, after: Option<EntryPath>) -> Result<Bytes, DavFailure> {
        let mut is_first = after.is_none();
        let mut request = ListRequest::new(self.target.address.path.clone());
        request.after = after;
        request.limit = self.rows_max;
        let address = self.target.address.clone();
        // For each page: a slow client would otherwise keep the store open, and see a state that is long gone.
        let lease = self.files.open()?;
        let page = lease.read(move |tx| tx.list(&tx.view_of(&address)?, &request));
        let mut page = page.wait()?;
        let mut rows = String::new();
        let mut count = 0;
        for entry in &page.entries {
            let shown = self
                .target
                .at(entry.path.clone(), entry.state.is_directory());
            let hash = file_hash(entry).map(|it| it.to_string());
            let row = ListedEntry {
                name: shown.display_name(),
                kind: entry.state.kind.name(),
                href: &shown.href(),
                size: hash.as_ref().map(|_| entry.state.size),
                modified_ns: entry.state.mtime_ns,
                hash: hash.as_deref(),
            };
            rows.push_str(&listing_row(self.format, &row, is_first));
            is_first = false;
            count += 1;
            // A path of 4 KiB is thrice as long as a reference, and the piece waits in memory until it is read.
            if rows.len() >= LIST_PIECE_BYTES {
                break;
            }
        }
        if count < page.entries.len() {
            page.next = count
                .checked_sub(1)
                .map(|last| page.entries[last].path.clone());
        }
        self.rows_max = rows_after(count);
        match page.next {
            Some(next) => self.stage = ListingStage::Page(Some(next)),
            // The end goes with the last rows, so that a listing that breaks off is never whole.
            None => rows.push_str(&end_listing(self.format, None)),
        }
        Ok(rows.into())
    }
}
