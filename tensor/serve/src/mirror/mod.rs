//! The files of a store over HTTP: whole, or the part that `Range` names, for clients that do not
//! speak `alknet/tensor`.

mod body;
mod range;

use std::convert::Infallible;
use std::sync::Arc;

use alknet_call::{CallError, ErrorCode};
use alknet_core::{BoxFuture, HttpMount, MountBody, MountCaller};
use alknet_tensor::FileId;
use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    RETRY_AFTER,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::json;

use crate::error::ServeError;
use crate::part::FilePart;
use crate::path::{StorePath, TensorFileRef};
use crate::store::{TensorStore, prepare_outboard};

use body::MirrorBody;
use range::{MirrorRange, wanted};

/// First segment of the files' URL paths.
const PREFIX: &str = "/tensor";

type MirrorHttpResponse = Response<MountBody>;

/// Serves the files of a store at `/tensor/` followed by their id or path.
#[derive(Debug)]
pub struct Mirror {
    store: Arc<TensorStore>,
}

impl Mirror {
    /// Serves `store` to each caller as its scopes allow.
    #[must_use]
    pub const fn new(store: Arc<TensorStore>) -> Self {
        Self { store }
    }

    async fn answer(
        &self,
        request: &Parts,
        caller: &MountCaller,
    ) -> Result<MirrorHttpResponse, ServeError> {
        let whole = match request.method {
            Method::GET => false,
            Method::HEAD => true,
            _ => return Ok(other_method(caller)),
        };
        // Unknown peers get the answer of a missing file, so they cannot probe for names.
        let identity = caller.identity.as_ref().ok_or(ServeError::Missing)?;
        let id = self
            .store
            .resolve(&identity.scopes, &src(request.uri.path())?)?;
        let object = self.store.opened(id, &identity.id).await?;
        let len = object.meta().file_len();
        let tag = format!("\"{id}\"");
        let mut head = HeaderMap::new();
        head.insert(ETAG, value(&tag));
        head.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        // The caller's scopes may change and the path may lead to another file, so a cache asks
        // again each time.
        head.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
        let (status, range) = match wanted(&request.headers, &tag, len, whole) {
            MirrorRange::All => (StatusCode::OK, 0..len),
            MirrorRange::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
            MirrorRange::Known => {
                return Ok(with(StatusCode::NOT_MODIFIED, head, full(Bytes::new())));
            }
            MirrorRange::Changed => return Ok(changed(caller)),
            MirrorRange::Beyond => return Ok(beyond(len, caller)),
        };
        if status == StatusCode::PARTIAL_CONTENT {
            let sent_range = format!("bytes {}-{}/{len}", range.start, range.end - 1);
            head.insert(CONTENT_RANGE, value(&sent_range));
        }
        let binary = HeaderValue::from_static("application/octet-stream");
        head.insert(CONTENT_TYPE, binary);
        head.insert(CONTENT_LENGTH, (range.end - range.start).into());
        if whole {
            return Ok(with(status, head, full(Bytes::new())));
        }
        let bytes = range.end - range.start;
        let flight = self.store.bytes_in_flight().enter(&identity.id, bytes)?;
        let root = Some(object.id().0);
        let outboard = prepare_outboard(&self.store, &object, 0..len, root, &identity.id).await?;
        let part = FilePart::checked(&object, outboard, range);
        let sent = MirrorBody::new(part, flight, Arc::clone(&caller.request_id));
        Ok(with(status, head, MountBody::new(sent)))
    }
}

impl HttpMount for Mirror {
    fn prefix(&self) -> &'static str {
        PREFIX
    }

    fn respond(
        self: Arc<Self>,
        request: Request<MountBody>,
        caller: MountCaller,
    ) -> BoxFuture<'static, MirrorHttpResponse> {
        Box::pin(async move {
            // GET and HEAD have no body with a meaning (RFC 9110 section 9.3.1).
            let (head, _) = request.into_parts();
            let answer = self.answer(&head, &caller).await;
            answer.unwrap_or_else(|error| failed(error, &caller))
        })
    }
}

/// The file that a URL path names. A path that is no valid name is answered as a missing file.
fn src(path: &str) -> Result<TensorFileRef, ServeError> {
    let name = path
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.strip_prefix('/'))
        .ok_or(ServeError::Missing)?;
    match name.parse::<FileId>() {
        Ok(id) => Ok(TensorFileRef::Id(id)),
        Err(_) => StorePath::parse(name)
            .map(TensorFileRef::Path)
            .map_err(|_| ServeError::Missing),
    }
}

fn other_method(caller: &MountCaller) -> MirrorHttpResponse {
    let error = CallError::invalid_input("this path takes GET and HEAD");
    let mut answer = refused(StatusCode::METHOD_NOT_ALLOWED, &error, caller);
    let allowed = HeaderValue::from_static("GET, HEAD");
    answer.headers_mut().insert(ALLOW, allowed);
    answer
}

fn changed(caller: &MountCaller) -> MirrorHttpResponse {
    let error = CallError::new(ErrorCode::Conflict, "the file here is another one");
    refused(StatusCode::PRECONDITION_FAILED, &error, caller)
}

fn beyond(len: u64, caller: &MountCaller) -> MirrorHttpResponse {
    let error = CallError::invalid_input(format!("the file has {len} bytes"));
    let mut answer = refused(StatusCode::RANGE_NOT_SATISFIABLE, &error, caller);
    let size = value(&format!("bytes */{len}"));
    answer.headers_mut().insert(CONTENT_RANGE, size);
    answer
}

/// The response to a request that fails.
fn failed(error: ServeError, caller: &MountCaller) -> MirrorHttpResponse {
    let status = match &error {
        ServeError::Missing => StatusCode::NOT_FOUND,
        // RFC 6585 section 4: 429 may come with Retry-After.
        ServeError::Busy(..) => StatusCode::TOO_MANY_REQUESTS,
        error => {
            let (id, code) = (&caller.request_id, error.code());
            tracing::warn!("{id}: a tensor could not be served: {code}: {error}");
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    let mut answer = refused(status, &error.into(), caller);
    if status == StatusCode::TOO_MANY_REQUESTS {
        let second = HeaderValue::from_static("1");
        answer.headers_mut().insert(RETRY_AFTER, second);
    }
    answer
}

/// An error in the form that every HTTP path of the node uses.
fn refused(status: StatusCode, error: &CallError, caller: &MountCaller) -> MirrorHttpResponse {
    let mut body = json!({ "code": error.code, "message": error.message,
                           "retryable": error.retryable });
    if let Some(details) = &error.details {
        body["details"] = (**details).clone();
    }
    body["request_id"] = (&*caller.request_id).into();
    let mut head = HeaderMap::new();
    head.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    head.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let text = json!({ "error": body }).to_string();
    with(status, head, full(text.into()))
}

fn with(status: StatusCode, head: HeaderMap, body: MountBody) -> MirrorHttpResponse {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    *answer.headers_mut() = head;
    answer
}

fn full(bytes: Bytes) -> MountBody {
    let body = Full::new(bytes);
    MountBody::new(body.map_err(|never: Infallible| match never {}))
}

/// A header value of digits and ASCII signs, which are valid in every header.
fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}
