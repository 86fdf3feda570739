//! Listings of directories and of buckets, as pages for people or as JSON.

use alknet_core::MountBody;
use alknet_store::limits::PAGE_ENTRIES_MAX;
use alknet_store::{BucketName, EntryPath, ListRequest};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION, VARY};
use http::{HeaderValue, Method, Response, StatusCode};

use crate::dav::{
    LISTING_HEADERS, ListedEntry, ListingFormat, ListingHead, TargetEntry, end_listing,
    listing_head, listing_row,
};
use crate::rights::FsRight;

use super::DavFiles;
use super::body::{BodySource, pulled};
use super::call::{CallerFiles, DavCall};
use super::conditions::file_hash;
use super::failure::DavFailure;
use super::get::text;
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
    let visible = call.requester().buckets(&[FsRight::Read]);
    let listed = call.with_store(move |store| {
        let head = ListingHead {
            title: "fs",
            has_parent: false,
        };
        let mut listing = listing_head(format, &head);
        let mut after: Option<BucketName> = None;
        let mut is_first = true;
        loop {
            // Page by page: a read of all buckets would keep a reader of the store busy.
            let (begin, visible) = (after.take(), visible.clone());
            let page = store.read(move |tx| visible.existing(tx, begin.as_ref(), PAGE_ENTRIES_MAX));
            let page = page.wait()?;
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
                listing.push_str(&listing_row(format, &row, is_first));
                is_first = false;
            }
            let Some(last) = page.last() else {
                break;
            };
            after = Some(last.name.clone());
        }
        listing.push_str(&end_listing(format, None));
        Ok(listing)
    });
    Ok(shown(format, text(call.method(), listed.await?)))
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
        let address = self.target.address.clone();
        // For each page: a slow client would otherwise keep the store open, and see a state that is long gone.
        let lease = self.files.open()?;
        let page = lease.read(move |tx| tx.list(&tx.view_of(&address)?, &request));
        let page = page.wait()?;
        let mut rows = String::new();
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
        }
        match page.next {
            Some(next) => self.stage = ListingStage::Page(Some(next)),
            // The end goes with the last rows, so that a listing that breaks off is never whole.
            None => rows.push_str(&end_listing(self.format, None)),
        }
        Ok(rows.into())
    }
}
