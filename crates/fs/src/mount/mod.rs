//! The view of files over HTTP at `/fs`, and WebDAV of class 2 (RFC 4918). The protocol itself is in [`dav`](crate::dav).

mod body;
mod call;
mod changes;
mod conditions;
mod failure;
mod get;
mod listing;
mod locks;
mod properties;
mod put;
mod respond;
mod right;
mod service_files;
#[cfg(test)]
mod tests;
mod uploads;

use std::ops::Deref;
use std::sync::Arc;

use alknet_core::{BoxFuture, HttpMount, MountBody, MountCaller, MountRequestBudget};
use alknet_store::{BucketId, ContentHash, Store, StoreError};
use http::header::{ALLOW, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};

use crate::dav::{DavTarget, MOUNT_PREFIX};
use crate::error::FsError;
use crate::limits::{MOUNT_REQUESTS_BURST, MOUNT_REQUESTS_PER_SECOND};
use crate::requester::FsRequester;
use call::DavCall;
use failure::DavFailure;
use respond::{empty, header_value};
use uploads::PendingUploads;

/// Classes of WebDAV: locks are class 2. Without it, macOS mounts for reading only.
const CLASSES: &str = "1, 2";

/// Methods of entries.
const METHODS: &str =
    "OPTIONS, GET, HEAD, PUT, DELETE, MKCOL, COPY, MOVE, PROPFIND, PROPPATCH, LOCK, UNLOCK";

/// Where the mount gets the store from.
pub trait DavFiles: Send + Sync + 'static {
    /// The store in the hands of a request.
    type Lease: Deref<Target = Store> + Send + 'static;

    /// The store, whose reads count for an identity. Blocks.
    ///
    /// # Errors
    /// The store is not served at present.
    fn open(&self, identity: &str) -> Result<Self::Lease, FsError>;

    /// Gets a content whose bytes a bucket waits for, or that is damaged here, from other nodes.
    ///
    /// # Errors
    /// [`FsError::Unavailable`] if no other node sends it, or the same of the store if none is asked.
    fn fetch(&self, _bucket: BucketId, hash: ContentHash) -> BoxFuture<'_, Result<(), FsError>> {
        Box::pin(std::future::ready(Err(StoreError::ContentUnavailable {
            hash,
        }
        .into())))
    }
}

/// Serves files at `/fs`.
#[derive(Debug)]
pub struct DavMount<F> {
    files: Arc<F>,
    uploads: Arc<PendingUploads>,
}

impl<F: DavFiles> DavMount<F> {
    /// Serves these files to each caller as its scopes allow, by the rules of the operations ([`FsRequester`]).
    #[must_use]
    pub fn new(files: Arc<F>) -> Self {
        Self {
            files,
            uploads: Arc::default(),
        }
    }

    async fn answer(
        &self,
        parts: Parts,
        body: MountBody,
        caller: &MountCaller,
    ) -> Result<Response<MountBody>, DavFailure> {
        let Some(identity) = caller.identity.clone() else {
            return Ok(challenge());
        };
        if parts.method == Method::OPTIONS {
            return Ok(options());
        }
        let requester = FsRequester::of_identity(identity);
        let call = DavCall::new((&self.files, &self.uploads), (requester, caller), parts)?;
        if let DavTarget::Upload(id) = call.target() {
            let id = *id;
            return uploads::answer(call, id, body).await;
        }
        match call.method().as_str() {
            "GET" | "HEAD" => get::answer(call).await,
            "PUT" => put::answer(call, body).await,
            "DELETE" => changes::delete(call).await,
            "MKCOL" => changes::make_collection(call, body).await,
            "COPY" => changes::copy(call).await,
            "MOVE" => changes::rename(call).await,
            "PROPFIND" => properties::find(call, body).await,
            "PROPPATCH" => properties::patch(call, body).await,
            "LOCK" => locks::lock(call, body).await,
            "UNLOCK" => locks::unlock(call).await,
            _ => Ok(with_methods(empty(StatusCode::METHOD_NOT_ALLOWED))),
        }
    }
}

impl<F: DavFiles> HttpMount for DavMount<F> {
    fn prefix(&self) -> &'static str {
        MOUNT_PREFIX
    }

    fn takes_basic(&self) -> bool {
        true
    }

    /// A client of many small files asks more often than callers of operations do. What it causes is bounded by the quotas
    /// of buckets, sessions and memory.
    fn request_budget(&self) -> Option<MountRequestBudget> {
        Some(MountRequestBudget {
            per_second: MOUNT_REQUESTS_PER_SECOND,
            burst: MOUNT_REQUESTS_BURST,
        })
    }

    fn respond(
        self: Arc<Self>,
        request: Request<MountBody>,
        caller: MountCaller,
    ) -> BoxFuture<'static, Response<MountBody>> {
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            // Locks name their paths, and the response names them by the tree of the request.
            let target = DavTarget::parse(parts.uri.path()).ok();
            let answer = self.answer(parts, body, &caller).await;
            answer.unwrap_or_else(|failure| failure.into_response(target.as_ref(), &caller))
        })
    }
}

/// Asks for a token. A client that knows no tokens sends it as the password of Basic.
fn challenge() -> Response<MountBody> {
    let mut response = empty(StatusCode::UNAUTHORIZED);
    let headers = response.headers_mut();
    for scheme in [
        "Basic realm=\"alknet\", charset=\"UTF-8\"",
        "Bearer realm=\"alknet\"",
    ] {
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
    }
    response
}

fn options() -> Response<MountBody> {
    let mut response = with_methods(empty(StatusCode::OK));
    let headers = response.headers_mut();
    headers.insert("dav", header_value(CLASSES));
    // Without it, Windows does not take the server for one of WebDAV.
    headers.insert("ms-author-via", HeaderValue::from_static("DAV"));
    response
}

fn with_methods(mut response: Response<MountBody>) -> Response<MountBody> {
    response.headers_mut().insert(ALLOW, header_value(METHODS));
    response
}
