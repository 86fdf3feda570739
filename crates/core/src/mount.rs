//! Views over HTTP of parts that know no HTTP server.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};

use crate::handler::{BoxError, BoxFuture};
use crate::identity::Identity;

/// What answers below one path of the node's HTTP server. The server has authenticated the request,
/// bounded its head and counted it; the rest is the mount's.
pub trait HttpMount: Send + Sync + 'static {
    /// First part of every path it answers: `/` and one segment, such as `/git`. Two mounts with one
    /// prefix, or one that the server uses itself, keep the node from starting.
    fn prefix(&self) -> &'static str;

    /// Whether a token may also come as the password of Basic authentication, for stock clients that
    /// know nothing else.
    fn takes_basic(&self) -> bool {
        false
    }

    /// Answers one request. Dropping the future means that the client has gone.
    fn respond(
        self: Arc<Self>,
        request: Request<MountBody>,
        caller: MountCaller,
    ) -> BoxFuture<'static, Response<MountBody>>;
}

/// Who asks a mount.
#[derive(Clone, Debug, Default)]
pub struct MountCaller {
    /// The identity that the request's token, or else the connection's key, proved.
    pub identity: Option<Arc<Identity>>,
    /// Where the request came from.
    pub remote: Option<SocketAddr>,
    /// What it is called in the log.
    pub request_id: Arc<str>,
}

/// A body of any kind, as it comes or goes.
pub struct MountBody(Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>);

impl MountBody {
    /// Wraps a body.
    pub fn new(body: impl Body<Data = Bytes, Error = BoxError> + Send + 'static) -> Self {
        Self(Box::pin(body))
    }
}

impl std::fmt::Debug for MountBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MountBody")
    }
}

impl Body for MountBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0.as_mut().poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
