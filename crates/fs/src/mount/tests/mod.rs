//! Requests against a store of the test's own, through the trait of mounts.

mod changes;
mod files;
mod lists;
mod locks;
mod properties;
mod uploads;

use std::sync::Arc;

use alknet_core::{BoxError, HttpMount, Identity, IdentityKind, MountBody, MountCaller};
use alknet_store::{FileStoreOptions, NewBucket, Store};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use super::{DavFiles, DavMount};
use crate::error::FsError;

struct MountTestFiles(Arc<Store>);

impl DavFiles for MountTestFiles {
    type Lease = Arc<Store>;

    fn open(&self, _: &str) -> Result<Arc<Store>, FsError> {
        Ok(Arc::clone(&self.0))
    }
}

/// `alice` and `dan` may do everything in `docs`, `carol` may read it, `dave` may write to it, and `bob` has no right. No
/// identity has one in `secret`.
fn scopes_of(name: &str) -> &'static [&'static str] {
    match name {
        "alice" | "dan" => &["fs:read:docs", "fs:write:docs"],
        "carol" => &["fs:read:docs"],
        "dave" => &["fs:write:docs"],
        _ => &[],
    }
}

/// A mount, and what it serves.
struct TestMount {
    mount: Arc<DavMount<MountTestFiles>>,
    runtime: Runtime,
    _folder: TempDir,
}

/// A response that was read to its end.
struct TestResponse {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
    /// Bytes of the longest piece in which the body came.
    longest: usize,
}

impl TestResponse {
    #[track_caller]
    fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.body);
        self
    }

    fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.and_then(|it| it.to_str().ok()).unwrap_or_default()
    }
}

impl TestMount {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(&folder.path().join("fs"), FileStoreOptions::default());
        let store = store.expect("a store");
        for name in ["docs", "secret"] {
            let bucket = NewBucket::new(name.parse().expect("a name"), "alice");
            let made = store.write(move |tx| tx.create_bucket(&bucket)).wait();
            made.expect("a bucket");
        }
        Self {
            mount: Arc::new(DavMount::new(Arc::new(MountTestFiles(Arc::new(store))))),
            runtime: Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime"),
            _folder: folder,
        }
    }

    /// A request of `alice`.
    fn send(&self, method: &str, path: &str, fields: &[(&str, &str)], body: &str) -> TestResponse {
        let body = Ok(Bytes::copy_from_slice(body.as_bytes()));
        self.send_as(Some("alice"), (method, path), fields, vec![body])
    }

    fn send_as(
        &self,
        identity: Option<&str>,
        (method, path): (&str, &str),
        fields: &[(&str, &str)],
        body: Vec<Result<Bytes, BoxError>>,
    ) -> TestResponse {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "node");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let pieces = body
            .into_iter()
            .filter(|it| it.as_ref().map_or(true, |it| !it.is_empty()));
        let pieces: Vec<_> = pieces.map(|it| it.map(Frame::data)).collect();
        let body = if pieces.is_empty() {
            super::respond::full(Bytes::new())
        } else {
            MountBody::new(StreamBody::new(stream::iter(pieces)))
        };
        let caller = MountCaller {
            identity: identity.map(identity_of),
            ..MountCaller::default()
        };
        let mount = Arc::clone(&self.mount);
        let request = request.body(body).expect("a request");
        self.runtime.block_on(async {
            let (parts, mut pieces) = mount.respond(request, caller).await.into_parts();
            let (mut body, mut longest) = (Vec::new(), 0);
            while let Some(piece) = pieces.frame().await {
                let piece = piece.expect("a whole body").into_data();
                let piece = piece.expect("no trailers");
                longest = longest.max(piece.len());
                body.extend_from_slice(&piece);
            }
            TestResponse {
                status: parts.status,
                headers: parts.headers,
                body: String::from_utf8_lossy(&body).into_owned(),
                longest,
            }
        })
    }
}

fn identity_of(name: &str) -> Arc<Identity> {
    Arc::new(Identity {
        id: name.parse().expect("an id"),
        kind: IdentityKind::Token,
        scopes: scopes_of(name).iter().collect(),
        resources: Default::default(),
        generation: 0,
    })
}
