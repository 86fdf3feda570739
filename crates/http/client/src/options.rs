//! What a client may do, and what one request may.

use std::time::Duration;

use alknet_core::{Capability, DialAllowList, PeerAddr, PeerVerification};

use crate::host::HostRule;
use crate::limits::{BODY_IDLE, CONNECT_TIMEOUT, EXCHANGE_TIMEOUT, HEAD_TIMEOUT, STREAM_IDLE};
use crate::origin::HttpOrigin;

/// What a client may do. Nothing of it is ever read from the environment.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Hosts that may be asked; `None`: any.
    pub hosts: Option<Vec<HostRule>>,
    /// Addresses that may be dialled: those of the public Internet unless it says otherwise. For
    /// hosts whose names are resolved by the dialler it is looked at there.
    pub reach: DialAllowList,
    /// Servers that are spoken to without TLS; of any other `http://` is refused. Pins in it mean
    /// nothing.
    pub plain: Vec<PeerAddr>,
    /// Servers that are known by their keys, and not by a public certificate.
    pub pinned: Vec<PeerAddr>,
    /// Whether HTTP/2 is asked for first; a server without it gets HTTP/1.1.
    pub http2: bool,
    /// What is followed.
    pub redirects: Redirects,
    /// Everything from the name to a connection that speaks HTTP.
    pub connect: Duration,
    /// Value of the header `user-agent`, of requests that bring none.
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
    /// How a server has to prove who it is.
    pub(crate) fn expect(&self, origin: &HttpOrigin) -> PeerVerification {
        let pins = self.pinned.iter().filter(|one| origin.is_at(one));
        let pins: Vec<_> = pins.flat_map(|one| one.pins.iter().copied()).collect();
        match pins.is_empty() {
            true => PeerVerification::WebPki,
            false => PeerVerification::Pinned(pins),
        }
    }
}

/// Redirects of `GET` and `HEAD` that are followed; others are answers like any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Redirects {
    /// Any that the other rules allow. No other server gets credentials, or any header that could be one.
    Any,
    /// None: they are answers.
    No,
    /// To the same scheme, host and port; others are errors.
    SameOrigin,
}

/// How one request is made.
#[derive(Clone, Debug)]
pub struct HttpRequestOptions {
    /// Everything up to the end of the body; `None` where it has no end.
    pub whole: Option<Duration>,
    /// Everything up to the head of the answer.
    pub head: Duration,
    /// Longest silence within the body.
    pub idle: Duration,
    /// The credential by which the server knows the node. The client writes it into the request and shows it to no
    /// other code.
    pub credential: Option<Capability>,
    /// Whether the request is asked again if the server cannot be reached or says that it cannot now
    /// (429, 502, 503, 504): for requests that change nothing.
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
    /// For answers that go on for as long as both want: streams of events.
    #[must_use]
    pub fn streaming() -> Self {
        Self {
            whole: None,
            idle: STREAM_IDLE,
            ..Self::default()
        }
    }

    /// As the node, to that server.
    #[must_use]
    pub fn with_credential(mut self, credential: Option<Capability>) -> Self {
        self.credential = credential;
        self
    }
}
