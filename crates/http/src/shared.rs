//! What all connections share.

use std::fmt;
use std::sync::Arc;

use alknet_call::Dispatcher;
use alknet_core::{BoxFuture, HttpMount, MountBody};
use alknet_gateway::{Gateway, GatewayCall, HttpCaller, TicketStore, limits::TICKET_TIME};
use arc_swap::ArcSwap;
use axum::Router;
use bytes::Bytes;
use http::{Request, Response};

use crate::alt_svc::PublicReachability;
use crate::routes::{self, RouteError};
use crate::settings::HttpSettings;
use crate::site::StaticSite;

/// Answers requests that were authenticated: the tools of models, the page of administrators.
pub trait MountResponder: Send + Sync + 'static {
    /// Answers one. Dropping the future means that the client has gone.
    fn respond(
        &self,
        request: Request<MountBody>,
        caller: HttpCaller,
    ) -> BoxFuture<'_, Response<MountBody>>;

    /// Whether the request proves by other means than a token that its sender is known. Such a request is passed on
    /// although the node hides this part from others.
    fn knows(&self, _head: &http::request::Parts) -> bool {
        false
    }
}

/// How the node is, for `/healthz`.
pub trait HealthSource: Send + Sync + 'static {
    /// `None` when nothing is wrong, else what, in words that every client may read.
    fn degraded(&self) -> Option<String>;
}

/// Answers for a certificate authority (RFC 8555 section 8.3).
pub trait AcmeChallenges: Send + Sync + 'static {
    /// What is to be answered for a token; `None` where none is asked for.
    fn answer(&self, token: &str) -> Option<String>;
}

/// The description of the gateway.
pub trait DescriptionSource: Send + Sync + 'static {
    /// The JSON text, where the operations have this digest.
    fn text(&self, digest: &str) -> Bytes;
}

/// What the handler is made of.
pub struct HttpHandlerParts {
    /// Who answers calls.
    pub dispatcher: Arc<Dispatcher>,
    /// The way to it.
    pub gateway: Arc<Gateway>,
    /// What is in force at first.
    pub settings: HttpSettings,
    /// How the node is.
    pub health: Arc<dyn HealthSource>,
    /// The description of the gateway.
    pub document: Arc<dyn DescriptionSource>,
    /// Answers for a certificate authority.
    pub challenges: Option<Arc<dyn AcmeChallenges>>,
    /// Tools for models, at `/mcp`.
    pub mcp: Option<Arc<dyn MountResponder>>,
    /// The page of administrators, at `/` and `/status/…`.
    pub page: Option<Arc<dyn MountResponder>>,
    /// Whether calls over WebSocket are taken.
    pub websocket: bool,
    /// Folder of a static site.
    pub site: Option<std::path::PathBuf>,
    /// Views of other parts.
    pub mounts: Vec<Arc<dyn HttpMount>>,
    /// Routes of the application that embeds this crate, with their paths, which no other may use.
    pub routes: Vec<(&'static str, axum::routing::MethodRouter)>,
}

impl fmt::Debug for HttpHandlerParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpHandlerParts")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// What a ticket for a stream of events stands for.
pub(crate) type Awaited = (HttpCaller, GatewayCall);

/// What all connections share.
pub(crate) struct HttpShared {
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) health: Arc<dyn HealthSource>,
    pub(crate) document: Arc<dyn DescriptionSource>,
    pub(crate) challenges: Option<Arc<dyn AcmeChallenges>>,
    pub(crate) mcp: Option<Arc<dyn MountResponder>>,
    pub(crate) page: Option<Arc<dyn MountResponder>>,
    pub(crate) websocket: bool,
    pub(crate) site: Option<StaticSite>,
    pub(crate) tickets: TicketStore<Awaited>,
    pub(crate) mounts: Vec<Arc<dyn HttpMount>>,
    /// Paths of the routes that were added.
    pub(crate) paths: Vec<&'static str>,
    pub(crate) router: Router,
    pub(crate) h3: bool,
    outside: ArcSwap<PublicReachability>,
    settings: ArcSwap<HttpSettings>,
}

impl HttpShared {
    pub(crate) fn new(parts: HttpHandlerParts, h3: bool) -> Result<Arc<Self>, RouteError> {
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
            site: parts.site.map(StaticSite::new),
            tickets: TicketStore::new(TICKET_TIME),
            mounts: parts.mounts,
            paths: parts.routes.iter().map(|(path, _)| *path).collect(),
            router,
            h3,
            outside: ArcSwap::default(),
            settings: ArcSwap::from_pointee(parts.settings),
        }))
    }

    pub(crate) fn set(&self, settings: HttpSettings) {
        self.gateway.set_quota(settings.quota);
        self.settings.store(Arc::new(settings));
    }

    pub(crate) fn settings(&self) -> arc_swap::Guard<Arc<HttpSettings>> {
        self.settings.load()
    }

    pub(crate) fn set_outside(&self, seen: PublicReachability) {
        self.outside.store(Arc::new(seen));
    }

    pub(crate) fn outside(&self) -> arc_swap::Guard<Arc<PublicReachability>> {
        self.outside.load()
    }
}

impl fmt::Debug for HttpShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpShared")
            .field("settings", &self.settings())
            .finish_non_exhaustive()
    }
}
