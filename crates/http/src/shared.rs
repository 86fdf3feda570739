//! What all connections share.

use std::fmt;
use std::sync::Arc;

use alknet_call::Dispatcher;
use alknet_core::{BoxFuture, HttpMount, MountBody};
use alknet_gateway::{Caller, Gateway, Invocation, Tickets, limits::TICKET_TIME};
use arc_swap::ArcSwap;
use axum::Router;
use bytes::Bytes;
use http::{Request, Response};

use crate::outside::Outside;
use crate::routes::{self, RouteError};
use crate::settings::Settings;
use crate::site::Site;

/// Answers requests that were authenticated: the tools of models, the page of administrators.
pub trait Responder: Send + Sync + 'static {
    /// Answers one. Dropping the future means that the client has gone.
    fn respond(
        &self,
        request: Request<MountBody>,
        caller: Caller,
    ) -> BoxFuture<'_, Response<MountBody>>;

    /// Whether the request is of somebody it knows by other means than a token: then it is asked though
    /// nobody else would be told that it is there.
    fn knows(&self, _head: &http::request::Parts) -> bool {
        false
    }
}

/// How the node is, for `/healthz`.
pub trait Health: Send + Sync + 'static {
    /// `None` when nothing is wrong, else what, in words that may be read by everybody.
    fn degraded(&self) -> Option<String>;
}

/// Answers for a certificate authority (RFC 8555 section 8.3).
pub trait Challenges: Send + Sync + 'static {
    /// What is to be answered for a token; `None` where none is asked for.
    fn answer(&self, token: &str) -> Option<String>;
}

/// The description of the gateway.
pub trait Document: Send + Sync + 'static {
    /// The JSON text, where the operations have this digest.
    fn text(&self, digest: &str) -> Bytes;
}

/// What the handler is made of.
pub struct Parts {
    /// Who answers calls.
    pub dispatcher: Arc<Dispatcher>,
    /// The way to it.
    pub gateway: Arc<Gateway>,
    /// What is in force at first.
    pub settings: Settings,
    /// How the node is.
    pub health: Arc<dyn Health>,
    /// The description of the gateway.
    pub document: Arc<dyn Document>,
    /// Answers for a certificate authority.
    pub challenges: Option<Arc<dyn Challenges>>,
    /// Tools for models, at `/mcp`.
    pub mcp: Option<Arc<dyn Responder>>,
    /// The page of administrators, at `/` and `/status/…`.
    pub page: Option<Arc<dyn Responder>>,
    /// Whether calls over WebSocket are taken.
    pub websocket: bool,
    /// Folder of a static site.
    pub site: Option<std::path::PathBuf>,
    /// Views of other parts.
    pub mounts: Vec<Arc<dyn HttpMount>>,
    /// Routes of whoever builds on this program, with their paths, which no other may use.
    pub routes: Vec<(&'static str, axum::routing::MethodRouter)>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// What a ticket for a stream of events stands for.
pub(crate) type Awaited = (Caller, Invocation);

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) health: Arc<dyn Health>,
    pub(crate) document: Arc<dyn Document>,
    pub(crate) challenges: Option<Arc<dyn Challenges>>,
    pub(crate) mcp: Option<Arc<dyn Responder>>,
    pub(crate) page: Option<Arc<dyn Responder>>,
    pub(crate) websocket: bool,
    pub(crate) site: Option<Site>,
    pub(crate) tickets: Tickets<Awaited>,
    pub(crate) mounts: Vec<Arc<dyn HttpMount>>,
    /// Paths of the routes that were added.
    pub(crate) paths: Vec<&'static str>,
    pub(crate) router: Router,
    pub(crate) h3: bool,
    outside: ArcSwap<Outside>,
    settings: ArcSwap<Settings>,
}

impl Shared {
    pub(crate) fn new(parts: Parts, h3: bool) -> Result<Arc<Self>, RouteError> {
        let router = routes::router(&parts)?;
        parts.gateway.set_quota(parts.settings.quota);
        Ok(Arc::new(Self {
            dispatcher: parts.dispatcher,
            gateway: parts.gateway,
            health: parts.health,
            document: parts.document,
            challenges: parts.challenges,
            mcp: parts.mcp,
            page: parts.page,
            websocket: parts.websocket,
            site: parts.site.map(Site::new),
            tickets: Tickets::new(TICKET_TIME),
            mounts: parts.mounts,
            paths: parts.routes.iter().map(|(path, _)| *path).collect(),
            router,
            h3,
            outside: ArcSwap::default(),
            settings: ArcSwap::from_pointee(parts.settings),
        }))
    }

    pub(crate) fn set(&self, settings: Settings) {
        self.gateway.set_quota(settings.quota);
        self.settings.store(Arc::new(settings));
    }

    pub(crate) fn settings(&self) -> arc_swap::Guard<Arc<Settings>> {
        self.settings.load()
    }

    pub(crate) fn set_outside(&self, seen: Outside) {
        self.outside.store(Arc::new(seen));
    }

    pub(crate) fn outside(&self) -> arc_swap::Guard<Arc<Outside>> {
        self.outside.load()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("settings", &self.settings())
            .finish_non_exhaustive()
    }
}
