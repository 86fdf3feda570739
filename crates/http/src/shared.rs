//! The state that all connections share.

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

/// A part that responds to authenticated requests: the tools for models, or the page for administrators.
pub trait MountResponder: Send + Sync + 'static {
    /// Responds to one request. Dropping the future means that the client has disconnected.
    fn respond(
        &self,
        request: Request<MountBody>,
        caller: HttpCaller,
    ) -> BoxFuture<'_, Response<MountBody>>;

    /// Whether the request proves by other means than a token that its sender is known. Such a request reaches this
    /// part even if the node hides.
    fn knows(&self, _head: &http::request::Parts) -> bool {
        false
    }
}

/// The node's health, for `/healthz`.
pub trait HealthSource: Send + Sync + 'static {
    /// `None` if the node has no problem, or a description that every client may read.
    fn degraded(&self) -> Option<String>;
}

/// Responses for a certificate authority (RFC 8555 section 8.3).
pub trait AcmeChallenges: Send + Sync + 'static {
    /// The response for a token; `None` if no challenge has it.
    fn answer(&self, token: &str) -> Option<String>;
}

/// The description of the gateway.
pub trait DescriptionSource: Send + Sync + 'static {
    /// The JSON text for operations with this digest.
    fn text(&self, digest: &str) -> Bytes;
}

/// The parts of a handler.
pub struct HttpHandlerParts {
    /// Runs the calls.
    pub dispatcher: Arc<Dispatcher>,
    /// The gateway in front of the dispatcher.
    pub gateway: Arc<Gateway>,
    /// The first settings.
    pub settings: HttpSettings,
    /// The node's health.
    pub health: Arc<dyn HealthSource>,
    /// The description of the gateway.
    pub document: Arc<dyn DescriptionSource>,
    /// Responses for a certificate authority.
    pub challenges: Option<Arc<dyn AcmeChallenges>>,
    /// The tools for models, at `/mcp`.
    pub mcp: Option<Arc<dyn MountResponder>>,
    /// The page for administrators, at `/` and `/status/…`. Beside a site it answers at the addresses of the node only.
    pub page: Option<Arc<dyn MountResponder>>,
    /// Whether the node accepts calls over WebSocket.
    pub websocket: bool,
    /// The folder of a static site. Beside a page it answers under the names of the node only.
    pub site: Option<std::path::PathBuf>,
    /// Mounts of other parts.
    pub mounts: Vec<Arc<dyn HttpMount>>,
    /// Routes of the application that embeds this crate, with their paths, which no other part may use.
    pub routes: Vec<(&'static str, axum::routing::MethodRouter)>,
}

impl fmt::Debug for HttpHandlerParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpHandlerParts")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// The value of a ticket for a stream of events.
pub(crate) type Awaited = (HttpCaller, GatewayCall);

/// The state that all connections share.
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
    /// The paths of the added routes.
    pub(crate) paths: Vec<&'static str>,
    pub(crate) router: Router,
    pub(crate) h3: bool,
    reachability: ArcSwap<PublicReachability>,
    settings: ArcSwap<HttpSettings>,
}

impl HttpShared {
    pub(crate) fn new(parts: HttpHandlerParts, h3: bool) -> Result<Arc<Self>, RouteError> {
        let router = routes::router(&parts)?;
        let open_files = parts.settings.site_open_files;
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
            site: parts.site.map(|folder| StaticSite::new(folder, open_files)),
            tickets: TicketStore::new(TICKET_TIME),
            mounts: parts.mounts,
            paths: parts.routes.iter().map(|(path, _)| *path).collect(),
            router,
            h3,
            reachability: ArcSwap::default(),
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

    pub(crate) fn set_reachability(&self, seen: PublicReachability) {
        self.reachability.store(Arc::new(seen));
    }

    pub(crate) fn reachability(&self) -> arc_swap::Guard<Arc<PublicReachability>> {
        self.reachability.load()
    }
}

impl fmt::Debug for HttpShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpShared")
            .field("settings", &self.settings())
            .finish_non_exhaustive()
    }
}
