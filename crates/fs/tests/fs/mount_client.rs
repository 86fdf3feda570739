//! Clients of the HTTP mount over the service.

use std::sync::Arc;

use alknet_core::{BoxError, CallerLookup, HttpMount, Identity, MountBody, MountCaller};
use alknet_fs::{DavMount, FsService};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};

use crate::scene::{FilesNode, ScopeTable, hung, identity};

/// The mount of a node, as one caller uses it.
#[derive(Clone)]
pub(crate) struct MountClient {
    mount: Arc<DavMount<FsService>>,
    identity: Option<Arc<Identity>>,
    lookup: Option<CallerLookup>,
}

/// Reads a body to its end. Returns its bytes, and whether it is whole.
pub(crate) async fn drain(mut body: MountBody) -> (usize, bool) {
    let read = async {
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => bytes += frame.into_data().map_or(0, |data| data.len()),
                Err(_) => return (bytes, false),
            }
        }
        (bytes, true)
    };
    tokio::time::timeout(hung(), read).await.expect("in time")
}

/// A response that was read to its end.
#[derive(Debug, PartialEq)]
pub(crate) struct MountAnswer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl MountAnswer {
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.and_then(|it| it.to_str().ok()).unwrap_or_default()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl MountClient {
    /// A caller with these scopes.
    pub(crate) fn new(node: &FilesNode, name: &str, scopes: &[&str]) -> Self {
        Self {
            identity: Some(identity(name, scopes)),
            ..Self::unknown(node)
        }
    }

    /// A caller that the node does not know.
    pub(crate) fn unknown(node: &FilesNode) -> Self {
        Self {
            mount: Arc::new(DavMount::new(Arc::new(node.service.clone()))),
            identity: None,
            lookup: None,
        }
    }

    /// A caller with the scopes that a table has for it, also while a request goes on.
    pub(crate) fn listed(node: &FilesNode, table: &Arc<ScopeTable>, name: &'static str) -> Self {
        let known = Arc::clone(table);
        Self {
            identity: table.find(name),
            lookup: Some(CallerLookup::new(move || known.find(name))),
            ..Self::unknown(node)
        }
    }

    /// The same mount with another caller.
    pub(crate) fn other(&self, name: &str, scopes: &[&str]) -> Self {
        Self {
            mount: Arc::clone(&self.mount),
            identity: Some(identity(name, scopes)),
            lookup: None,
        }
    }

    /// A request with a short body.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> MountAnswer {
        let body = body.into();
        // The server gives a request without a body one that has ended.
        let body = if body.is_empty() {
            MountBody::new(Empty::new().map_err(|never| match never {}))
        } else {
            let piece = stream::iter([Ok(Frame::data(body))]);
            MountBody::new(StreamBody::new(piece))
        };
        self.respond(method, path, fields, body).await
    }

    /// A request whose body comes in pieces.
    pub(crate) async fn stream(
        &self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        pieces: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
    ) -> MountAnswer {
        let body = StreamBody::new(pieces.map(|it| it.map(Frame::data)));
        self.respond(method, path, fields, MountBody::new(body))
            .await
    }

    async fn respond(
        &self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        body: MountBody,
    ) -> MountAnswer {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "node");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let request = request.body(body).expect("a request");
        let answered = async {
            let (parts, body) = self.answer(request).await.into_parts();
            let body = body.collect().await.expect("a whole body").to_bytes();
            MountAnswer {
                status: parts.status,
                headers: parts.headers,
                body: body.to_vec(),
            }
        };
        let answer = tokio::time::timeout(hung(), answered).await;
        answer.expect("in time")
    }

    async fn answer(&self, request: Request<MountBody>) -> Response<MountBody> {
        let caller = MountCaller {
            identity: self.identity.clone(),
            lookup: self.lookup.clone(),
            ..MountCaller::default()
        };
        Arc::clone(&self.mount).respond(request, caller).await
    }

    /// The body of a file, of which nothing is read yet.
    pub(crate) async fn begin(&self, path: &str) -> MountBody {
        self.begin_range(path, "all").await
    }

    /// The same of some ranges of it. Those in an unknown unit are the whole file.
    pub(crate) async fn begin_range(&self, path: &str, range: &str) -> MountBody {
        let body = MountBody::new(Empty::new().map_err(|never| match never {}));
        let request = Request::get(path).header("host", "node");
        let request = request.header("range", range).body(body);
        let answer = self.answer(request.expect("a request")).await;
        assert!(answer.status().is_success(), "{}", answer.status());
        answer.into_body()
    }

    /// A read of a whole file.
    pub(crate) async fn get(&self, path: &str) -> MountAnswer {
        self.send("GET", path, &[], "").await
    }

    /// A write of a whole file.
    pub(crate) async fn put(&self, path: &str, body: impl Into<Bytes>) -> MountAnswer {
        self.send("PUT", path, &[], body).await
    }
}
