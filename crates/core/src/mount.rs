//! HTTP views of parts that have no HTTP server of their own.

use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};

use crate::handler::{BoxError, BoxFuture};
use crate::identity::Identity;

/// A handler of all requests below one path of the node's HTTP server. The server has authenticated the request,
/// bounded its head and counted it; the rest is up to the mount.
pub trait HttpMount: Send + Sync + 'static {
    /// First part of every path that it serves: `/` and one segment, such as `/git`. If two mounts have one prefix,
    /// or a mount has one of the server's own, the node does not start.
    fn prefix(&self) -> &'static str;

    /// Whether a token may also come as the password of Basic authentication, for standard clients that know no other
    /// way.
    fn takes_basic(&self) -> bool {
        false
    }

    /// The requests that each identity may make to this mount, which then do not count against its other requests over
    /// HTTP. Where the configuration permits an identity more, that counts. Without a budget, and without an identity, a
    /// request counts as all others do.
    fn request_budget(&self) -> Option<MountRequestBudget> {
        None
    }

    /// Answers one request. The server drops the future when the client has gone.
    fn respond(
        self: Arc<Self>,
        request: Request<MountBody>,
        caller: MountCaller,
    ) -> BoxFuture<'static, Response<MountBody>>;
}

/// Requests that one identity may make to a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountRequestBudget {
    /// Requests per second, on average.
    pub per_second: u32,
    /// Requests at once before the average counts.
    pub burst: u32,
}

/// The caller of a mount.
#[derive(Clone, Debug, Default)]
pub struct MountCaller {
    /// The identity that the request's token proved, or else the connection's key.
    pub identity: Option<Arc<Identity>>,
    /// Looks the identity up again. Without it, the identity stays as it is.
    pub lookup: Option<CallerLookup>,
    /// The address of the caller.
    pub remote: Option<SocketAddr>,
    /// The request's id in the log.
    pub request_id: Arc<str>,
}

impl MountCaller {
    /// The identity with the scopes that it has by now, or `None` if the token or the key has none any more. A mount whose
    /// response, or whose request, goes on for longer asks again from time to time. It costs a look-up in memory.
    ///
    /// ```
    /// use alknet_core::{CallerLookup, MountCaller};
    ///
    /// let revoked = MountCaller {
    ///     lookup: Some(CallerLookup::new(|| None)),
    ///     ..MountCaller::default()
    /// };
    /// assert!(revoked.identity_now().is_none());
    /// ```
    #[must_use]
    pub fn identity_now(&self) -> Option<Arc<Identity>> {
        match &self.lookup {
            Some(CallerLookup(find)) => find(),
            None => self.identity.clone(),
        }
    }
}

/// Finds the identity of a caller while its request is under way. Clones are the same.
#[derive(Clone)]
pub struct CallerLookup(Arc<dyn Fn() -> Option<Arc<Identity>> + Send + Sync>);

impl CallerLookup {
    /// Looks up by this function, which does not block and may run on any thread.
    #[must_use]
    pub fn new(find: impl Fn() -> Option<Arc<Identity>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(find))
    }
}

impl fmt::Debug for CallerLookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallerLookup")
    }
}

/// A request or response body of any type.
pub struct MountBody(Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>);

impl MountBody {
    /// Wraps a body.
    pub fn new(body: impl Body<Data = Bytes, Error = BoxError> + Send + 'static) -> Self {
        Self(Box::pin(body))
    }
}

impl fmt::Debug for MountBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
