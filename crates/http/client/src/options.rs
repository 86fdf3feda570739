//! Settings of a client, and of one request.

use std::time::Duration;

use alknet_core::{Capability, DialAllowList, PeerAddr, PeerVerification};

use crate::host::HostRule;
use crate::limits::{BODY_IDLE, CONNECT_TIMEOUT, EXCHANGE_TIMEOUT, HEAD_TIMEOUT, STREAM_IDLE};
use crate::origin::HttpOrigin;

/// Settings of a client. None of them comes from the environment.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Hosts that the client may contact; `None` allows every host.
    pub hosts: Option<Vec<HostRule>>,
    /// Addresses that the client may dial: by default those of the public Internet. The dialler checks it for the
    /// hosts whose names it resolves.
    pub reach: DialAllowList,
    /// Servers that the client contacts without TLS; it refuses every other `http://`. Pins in the list have no
    /// effect.
    pub plain: Vec<PeerAddr>,
    /// Servers that prove their identity by pinned keys instead of a public certificate.
    pub pinned: Vec<PeerAddr>,
    /// Whether the client offers HTTP/2 first; a server without it gets HTTP/1.1.
    pub http2: bool,
    /// The redirects that the client follows.
    pub redirects: Redirects,
    /// Time from the resolution of the name to a connection that speaks HTTP.
    pub connect: Duration,
    /// Value of the header `user-agent` in requests without one.
    pub user_agent: Option<http::HeaderValue>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            hosts: None,
            reach: DialAllowList::Public { also: Vec::new() },
            plain: Vec::new(),
            pinned: Vec::new(),
            http2: false,
            redirects: Redirects::SameOrigin,
            connect: CONNECT_TIMEOUT,
            user_agent: Some(http::HeaderValue::from_static("alknet")),
        }
    }
}

impl ClientOptions {
    /// How the server must prove its identity.
    pub(crate) fn expect(&self, origin: &HttpOrigin) -> PeerVerification {
        let pins = self.pinned.iter().filter(|one| origin.is_at(one));
        let pins: Vec<_> = pins.flat_map(|one| one.pins.iter().copied()).collect();
        match pins.is_empty() {
            true => PeerVerification::WebPki,
            false => PeerVerification::Pinned(pins),
        }
    }
}

/// The redirects of `GET` and `HEAD` that the client follows; it returns all others as responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Redirects {
    /// All that the other rules allow. Another server gets no credentials and no header that could be one.
    Any,
    /// No redirects: the client returns them as responses.
    No,
    /// Redirects to the same scheme, host and port; others are errors.
    SameOrigin,
}

/// Settings of one request.
#[derive(Clone, Debug)]
pub struct HttpRequestOptions {
    /// Time to the end of the body; `None` if it has no end.
    pub whole: Option<Duration>,
    /// Time to the head of the response.
    pub head: Duration,
    /// Longest silence within the body.
    pub idle: Duration,
    /// The credential that identifies the node to the server. Only the client, which writes it into the request, sees
    /// it.
    pub credential: Option<Capability>,
    /// Whether the client retries if the server cannot be reached or is unavailable (429, 502, 503, 504), for
    /// requests that change nothing.
    pub retry: bool,
}

impl Default for HttpRequestOptions {
    fn default() -> Self {
        Self {
            whole: Some(EXCHANGE_TIMEOUT),
            head: HEAD_TIMEOUT,
            idle: BODY_IDLE,
            credential: None,
            retry: false,
        }
    }
}

impl HttpRequestOptions {
    /// For responses that may go on without end, such as streams of events.
    #[must_use]
    pub fn streaming() -> Self {
        Self {
            whole: None,
            idle: STREAM_IDLE,
            ..Self::default()
        }
    }

    /// Like `streaming`, with a credential for the server.
    #[must_use]
    pub fn with_credential(mut self, credential: Option<Capability>) -> Self {
        self.credential = credential;
        self
    }
}
