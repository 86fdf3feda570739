//! Takes each request through its steps: its id, its limits, its host, its token, and the part that responds.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use alknet_core::{BoxError, CallerLookup, HttpMount, Identity, MountBody, MountCaller};
use alknet_gateway::{
    ApiError, CallerIdentity, Code, HttpCaller, HttpIngress, MemoryLease, NO_TOKEN, RequestId,
    RequestText,
};
use axum::body::Body;
use base64::Engine;
use http::header::{ALT_SVC, AUTHORIZATION, CONTENT_LENGTH, SERVER, STRICT_TRANSPORT_SECURITY};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Full};
use tower::ServiceExt;

use crate::access::AccessLogEntry;
use crate::connection::{HttpConnection, WebSocketGuard};
use crate::limits::{HEADER_FIELDS_MAX, MCP_BYTES_MAX, SESSIONS_MAX, URL_BYTES_MAX, VIEW_BYTES};
use crate::routes::{self, ACME, RouteKind};
use crate::settings::HttpSettings;
use crate::site::StaticSite;
use crate::{answer, api, cors, framing, request_body, ws};

/// The milliseconds after which a client may try again if its connection carries the most WebSockets that it may.
const SESSIONS_RETRY_MS: u64 = 1000;

/// A header with a token that belongs to no identity. The router parses it if a request has no such header.
static NO_HEADER: LazyLock<HeaderValue> = LazyLock::new(|| {
    let header = HeaderValue::try_from(format!("Bearer {NO_TOKEN}"));
    header.expect("a token is ASCII")
});

/// Responds to one request of a connection. It writes the caller and the operation into the log's `entry`.
pub(crate) async fn answer(
    conn: &Arc<HttpConnection>,
    arrived: &mut IncomingRequest,
    entry: &mut AccessLogEntry,
) -> Response<Body> {
    let settings = Arc::clone(&conn.shared.settings());
    let named = conn
        .last
        .get_or_find(&arrived.parts, &conn.shared, &settings);
    let head = arrived.parts.method == Method::HEAD;
    let origin = cors::allowed(&settings, &arrived.parts.headers);
    let scope = RequestScope {
        conn,
        settings: &settings,
        by_address: named.by_address,
        id: entry.id(),
        began: entry.began(),
    };
    let mut routed = scope.decide(arrived, named.own, entry).await;
    answer::set_nosniff(&mut routed.response);
    let headers = routed.response.headers_mut();
    if routed.of_api {
        if let Ok(id) = HeaderValue::from_str(scope.id.as_str()) {
            headers.insert(answer::REQUEST_ID, id);
        }
        if let Some(origin) = &origin {
            cors::allow(headers, origin);
        }
    }
    if let Some(server) = &settings.server {
        headers.insert(SERVER, server.clone());
    }
    headers.insert(ALT_SVC, named.services.clone());
    if let Some(policy) = &named.policy {
        headers.insert(STRICT_TRANSPORT_SECURITY, policy.clone());
    }
    if head {
        routed.response = without_body(routed.response);
    }
    routed.response
}

/// A response with its kind.
struct RoutedResponse {
    response: Response<Body>,
    /// Whether the response carries the request's id.
    of_api: bool,
}

impl RoutedResponse {
    fn plain(response: Response<Body>) -> Self {
        Self {
            response,
            of_api: false,
        }
    }

    fn api(response: Response<Body>) -> Self {
        Self {
            response,
            of_api: true,
        }
    }
}

/// One request in progress.
struct RequestScope<'a> {
    conn: &'a Arc<HttpConnection>,
    settings: &'a HttpSettings,
    /// Whether the request names the node by an address.
    by_address: bool,
    id: RequestId,
    began: Instant,
}

/// The request itself. It is large, and each function that passes it on by value would move it.
pub(crate) struct IncomingRequest {
    parts: Parts,
    body: Body,
}

impl IncomingRequest {
    pub(crate) fn new(request: Request<Body>) -> Self {
        let (parts, body) = request.into_parts();
        Self { parts, body }
    }

    /// Takes the request out, for parts that need all of it.
    fn take(&mut self) -> Request<Body> {
        let (nothing, _) = Request::new(()).into_parts();
        let parts = std::mem::replace(&mut self.parts, nothing);
        Request::from_parts(parts, std::mem::take(&mut self.body))
    }
}

impl RequestScope<'_> {
    async fn decide(
        &self,
        arrived: &mut IncomingRequest,
        own: bool,
        entry: &mut AccessLogEntry,
    ) -> RoutedResponse {
        let shared = &self.conn.shared;
        let parts = &arrived.parts;
        if let Some(refused) = self.oversized(parts) {
            return refused;
        }
        // A node in stealth mode must not reveal to an unknown peer which names are its own. The peer gets the
        // response of a web server that serves this site or decoy under every name.
        if !own && !self.settings.stealth {
            return self.refused_name();
        }
        let path = parts.uri.path();
        // The lookup also runs for the paths of this crate: if such a path were found sooner than an absent one, a
        // client could distinguish them by time on a node that hides.
        let added = shared
            .paths
            .iter()
            .any(|route| routes::matches(route, path));
        // This is `|` instead of `||` for the same reason.
        let custom = added | routes::mount(&shared.mounts, path).is_some();
        let kind = match routes::kind(path, custom) {
            // Without WebSockets, the path does not exist.
            RouteKind::Session if !shared.websocket => RouteKind::Other,
            RouteKind::Page if self.page().is_none() => RouteKind::Other,
            kind => kind,
        };
        if let Some(response) = self.open_to_every_client(kind, parts) {
            return response;
        }
        // The token is authenticated for every path, so that the time does not reveal which paths exist.
        let token = self.token(kind, parts);
        let known = shared
            .gateway
            .authenticate(&self.conn.gate, token.as_deref());
        self.conn.guessed(known.is_err());
        let who = known
            .as_ref()
            .ok()
            .and_then(|known| known.identity.as_ref());
        if let Some(who) = who {
            entry.set_caller(who);
        }
        if !own && who.is_some() {
            return misdirected();
        }
        let hidden = self.settings.stealth && who.is_none();
        if kind == RouteKind::Other || (hidden && !(own && self.shown(kind, parts))) {
            return RoutedResponse::plain(self.nothing(parts, who.map(AsRef::as_ref)).await);
        }
        if !matches!(kind, RouteKind::Page | RouteKind::Ticket)
            && let Some(origin) = cors::allowed(self.settings, &parts.headers)
            && let Some(response) = cors::preflight(parts, &origin)
        {
            return RoutedResponse::plain(response);
        }
        match (kind, known) {
            // The page has sessions of its own, so it treats a wrong token like none.
            (RouteKind::Page, known) => self.page_answer(arrived, known.unwrap_or_default()).await,
            (RouteKind::Session, Ok(known)) => self.session(arrived, &self.caller(known)),
            (_, Ok(known)) => self.route(kind, arrived, &self.caller(known), entry).await,
            (_, Err(_)) if hidden => RoutedResponse::plain(self.nothing(parts, None).await),
            (_, Err(error)) => self.refused_unknown(&error),
        }
    }

    fn refused(&self, error: &ApiError) -> RoutedResponse {
        RoutedResponse::api(answer::error(error, &self.id))
    }

    /// Refuses an unknown peer. The refusal counts against the rate of the peer's network.
    fn refused_unknown(&self, error: &ApiError) -> RoutedResponse {
        let unknown = self.caller(CallerIdentity::default());
        match self.conn.shared.gateway.admit(&unknown) {
            Ok(()) => self.refused(error),
            Err(too_many) => self.refused(&too_many),
        }
    }

    /// Refuses a name that is not the node's. The client is not known yet, so the refusal counts against the rate of its
    /// network.
    fn refused_name(&self) -> RoutedResponse {
        let unknown = self.caller(CallerIdentity::default());
        match self.conn.shared.gateway.admit(&unknown) {
            Ok(()) => misdirected(),
            Err(too_many) => self.refused(&too_many),
        }
    }

    /// The responses that do not depend on the caller.
    fn open_to_every_client(&self, kind: RouteKind, parts: &Parts) -> Option<RoutedResponse> {
        let shared = &self.conn.shared;
        let get = matches!(parts.method, Method::GET | Method::HEAD);
        match kind {
            RouteKind::Health if self.settings.healthz && get => {
                Some(RoutedResponse::plain(api::health(shared)))
            }
            RouteKind::Acme if get => {
                let token = parts.uri.path().strip_prefix(ACME)?;
                let answer = shared.challenges.as_ref()?.answer(token)?;
                Some(RoutedResponse::plain(answer::text(StatusCode::OK, answer)))
            }
            _ => None,
        }
    }

    /// The page, unless the site answers under the authority of the request. With a site, the page has the addresses of
    /// the node for its origins, and the site has the names: a script of the site in the page's origin, such as a service
    /// worker, would read what administrators type into the page and the links that they open.
    fn page(&self) -> Option<&Arc<dyn crate::MountResponder>> {
        let page = self.conn.shared.page.as_ref();
        page.filter(|_| self.by_address || self.conn.shared.site.is_none())
    }

    /// The site, unless the page answers under the authority of the request.
    fn site(&self) -> Option<&StaticSite> {
        let site = self.conn.shared.site.as_ref();
        site.filter(|_| !self.by_address || self.conn.shared.page.is_none())
    }

    /// Whether a client without a token gets a response although the node hides.
    fn shown(&self, kind: RouteKind, parts: &Parts) -> bool {
        let knows = |page: &Arc<dyn crate::MountResponder>| page.knows(parts);
        match kind {
            RouteKind::Page => self.page().is_some_and(knows),
            // The ticket in the path proves the caller.
            RouteKind::Ticket => true,
            _ => false,
        }
    }

    /// Memory for a response that every client may get. It counts against the identity that the request proved, and
    /// otherwise against the network of the client: unknown peers of some networks take no files from known ones.
    fn lease(&self, who: Option<&Identity>) -> MemoryLease {
        let account = self.conn.account(who);
        self.conn.shared.gateway.lease_of(&account)
    }

    /// The answer where the node has nothing else: a file of the site, or the decoy. `who` decides only whose memory it
    /// counts against, and no byte of it.
    async fn nothing(&self, parts: &Parts, who: Option<&Identity>) -> Response<Body> {
        let site = self.site();
        if let Some(site) = site
            && let Some(page) = site.answer(parts, self.lease(who)).await
        {
            return page;
        }
        let first_page = match site {
            Some(site) => site.first_page(self.lease(who)).await,
            None => None,
        };
        answer::decoy(self.settings, first_page)
    }

    /// The answer for a path that this node does not serve.
    async fn absent(&self, parts: &Parts, caller: &HttpCaller) -> RoutedResponse {
        RoutedResponse::plain(self.nothing(parts, caller.identity.as_deref()).await)
    }

    async fn route(
        &self,
        kind: RouteKind,
        arrived: &mut IncomingRequest,
        caller: &HttpCaller,
        entry: &mut AccessLogEntry,
    ) -> RoutedResponse {
        let shared = &self.conn.shared;
        if kind == RouteKind::Ticket {
            return match api::ticket(shared, &arrived.parts, self.settings.stealth, entry) {
                Some(response) => RoutedResponse::api(response),
                None => self.absent(&arrived.parts, caller).await,
            };
        }
        let open = kind == RouteKind::Custom
            || (kind == RouteKind::Api(routes::ApiRoute::Description)
                && self.settings.public_openapi);
        // The rate is limited before the request causes any work.
        let mount = routes::mount(&shared.mounts, arrived.parts.uri.path());
        let mount = mount.filter(|_| kind == RouteKind::Custom);
        let budget = mount.and_then(|it| Some((it.prefix(), it.request_budget()?)));
        let admitted = match budget {
            Some(budget) => shared.gateway.admit_to_mount(caller, budget),
            None => shared.gateway.admit(caller),
        };
        if let Err(error) = admitted {
            return self.refused(&error);
        }
        if caller.identity.is_none() && !open {
            return self.refused(&ApiError::unauthenticated(answer::NO_TOKEN));
        }
        let response = match kind {
            RouteKind::Api(path) => {
                let request = (&arrived.parts, &mut arrived.body);
                api::answer(shared, path, caller, request, entry).await
            }
            RouteKind::Mcp => match &shared.mcp {
                Some(mcp) => match self.upload(arrived, caller).await {
                    Ok(upload) => {
                        let body = Full::new(upload.text.clone());
                        let body = body.map_err(|never| -> BoxError { match never {} });
                        let request = arrived.take().map(|_| MountBody::new(body));
                        let caller = caller.clone().via(HttpIngress::Mcp);
                        let mut request = with(request, &caller);
                        request.extensions_mut().insert(upload);
                        self.model(mcp.as_ref(), request, caller).await
                    }
                    Err(error) => answer::error(&error, &self.id),
                },
                None => return self.absent(&arrived.parts, caller).await,
            },
            RouteKind::Custom => {
                let request = arrived.take();
                self.custom(request, caller).await
            }
            _ => return self.absent(&arrived.parts, caller).await,
        };
        RoutedResponse::api(response)
    }

    /// The response of the tools. They make all of it before its first byte is sent, so it counts until the client
    /// has received it.
    async fn model(
        &self,
        mcp: &dyn crate::MountResponder,
        request: Request<MountBody>,
        caller: HttpCaller,
    ) -> Response<Body> {
        let lease = self.conn.shared.gateway.lease(&caller);
        let answered = async {
            let reserve = lease.reserve()?;
            let response = answer::mounted(mcp.respond(request, caller).await);
            reserve.answer(length(&response))?;
            Ok::<_, ApiError>(response)
        };
        let answered = answered.await;
        let mut response = match answered {
            Ok(response) => response.map(|body| answer::lease_body(body, lease)),
            Err(error) => answer::error(&error, &self.id),
        };
        answer::private(&mut response);
        response
    }

    /// The response of a mount that is read while the client receives it. A request that may change something
    /// reserves memory for its response before it runs.
    async fn viewed(
        &self,
        mount: Arc<dyn HttpMount>,
        request: Request<MountBody>,
        (who, lease): (MountCaller, MemoryLease),
    ) -> Response<Body> {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let answered = async {
            if !reads {
                lease.more(VIEW_BYTES)?;
            }
            let response = answer::mounted(mount.respond(request, who).await);
            let bytes = length(&response).min(VIEW_BYTES);
            match reads {
                true => lease.more(bytes)?,
                false => lease.settle(bytes)?,
            }
            Ok::<_, ApiError>(response)
        };
        let answered = answered.await;
        match answered {
            Ok(response) => response.map(|body| answer::lease_body(body, lease)),
            Err(error) => answer::error(&error, &self.id),
        }
    }

    /// Reads the body for a part that needs all of it.
    async fn upload(
        &self,
        arrived: &mut IncomingRequest,
        caller: &HttpCaller,
    ) -> Result<RequestText, ApiError> {
        let allowance = request_body::UploadAllowance {
            lease: self.conn.shared.gateway.lease(caller),
            most: MCP_BYTES_MAX,
            time: self.settings.patience.body_time,
        };
        request_body::whole(&arrived.parts.headers, &mut arrived.body, allowance).await
    }

    /// A WebSocket is open to every client whose token is not wrong: a client without a token has no identity in it.
    fn session(&self, arrived: &mut IncomingRequest, caller: &HttpCaller) -> RoutedResponse {
        let refuse = |error: &ApiError| {
            let mut routed = self.refused(error);
            ws::add_headers(routed.response.headers_mut(), error.status);
            routed
        };
        if let Err(error) = self.conn.shared.gateway.admit(caller) {
            return refuse(&error);
        }
        let visitor = ws::WsPeer {
            carrier: self.conn.connection.clone(),
            auth: self.conn.auth.clone(),
            token: caller.token.clone(),
        };
        let mut request = arrived.take();
        let (dispatcher, origins) = (&self.conn.shared.dispatcher, &self.settings.origins);
        let Some(hold) = WebSocketGuard::begin(self.conn) else {
            let why = format!("a connection carries {SESSIONS_MAX} WebSockets at most");
            return refuse(&ApiError::overloaded(why, SESSIONS_RETRY_MS));
        };
        let begun = ws::respond(
            &mut request,
            visitor,
            dispatcher,
            origins,
            hold,
            Body::empty(),
        );
        match begun {
            Ok(response) => RoutedResponse::api(response),
            Err(error) => refuse(&error),
        }
    }

    async fn page_answer(
        &self,
        arrived: &mut IncomingRequest,
        known: CallerIdentity,
    ) -> RoutedResponse {
        let Some(page) = self.page() else {
            let who = known.identity.as_deref();
            return RoutedResponse::plain(self.nothing(&arrived.parts, who).await);
        };
        let request = arrived.take();
        let caller = self.caller(known).via(HttpIngress::Page);
        let request = with(request, &caller);
        let late = SlowBodyFlag::default();
        let request = request.map(|body| late.watch(body));
        let response = page.respond(request, caller).await;
        RoutedResponse::plain(self.in_time(&late, answer::mounted(response)))
    }

    /// Responses of mounts, and of routes of the application that embeds this crate.
    async fn custom(&self, request: Request<Body>, caller: &HttpCaller) -> Response<Body> {
        let shared = &self.conn.shared;
        let late = SlowBodyFlag::default();
        let request = request.map(|body| late.watch(body));
        let path = request.uri().path();
        if let Some(mount) = routes::mount(&shared.mounts, path) {
            // Without the quota, which is not to last as long as a response does.
            let source = HttpCaller {
                account: None,
                ..caller.clone()
            };
            let who = MountCaller {
                identity: caller.identity.clone(),
                lookup: Some(CallerLookup::new(move || source.identity_now())),
                remote: caller.remote,
                request_id: caller.request_id.as_str().into(),
            };
            let lease = shared.gateway.lease(caller);
            let mount = Arc::clone(mount);
            let response = self.viewed(mount, request, (who, lease)).await;
            return self.in_time(&late, response);
        }
        let caller = caller.clone().via(HttpIngress::Custom("route"));
        let request = with(request.map(Body::new), &caller);
        let answered = shared.router.clone().oneshot(request).await;
        self.in_time(&late, answered.unwrap_or_else(|never| match never {}))
    }

    /// The response of the part that read the body, unless the body came too slowly.
    fn in_time(&self, late: &SlowBodyFlag, response: Response<Body>) -> Response<Body> {
        if late.0.load(Ordering::Acquire) {
            return answer::error(&request_body::slow(), &self.id);
        }
        response
    }

    fn caller(&self, known: CallerIdentity) -> HttpCaller {
        let caller = HttpCaller {
            gate: self.conn.gate.clone(),
            proved_by: None,
            account: Some(self.conn.account(known.identity.as_deref())),
            identity: known.identity,
            token: known.token,
            via: HttpIngress::Http,
            remote: self.conn.remote,
            began: self.began,
            request_id: self.id,
        };
        if caller.identity.is_some() {
            self.conn.raise();
        }
        caller
    }

    /// The token of a request: from its own header, or from the password of a client that supports only basic
    /// authentication.
    fn token<'p>(&self, kind: RouteKind, parts: &'p Parts) -> Option<Cow<'p, str>> {
        let Some(header) = parts.headers.get(AUTHORIZATION) else {
            // The placeholder is parsed like a real header, so that the time does not reveal whether the node looks
            // for one.
            std::hint::black_box(self.read_token(kind, parts, std::hint::black_box(&*NO_HEADER)));
            // A web page can set no other header for a WebSocket.
            let token = (kind == RouteKind::Session).then(|| ws::bearer(&parts.headers))?;
            return token.map_or(Some(Cow::Borrowed("")), |token| token.map(Cow::Borrowed));
        };
        self.read_token(kind, parts, header)
    }

    fn read_token<'p>(
        &self,
        kind: RouteKind,
        parts: &Parts,
        header: &'p HeaderValue,
    ) -> Option<Cow<'p, str>> {
        let header = header.to_str().ok()?;
        let (scheme, rest) = header.split_once(' ')?;
        // The name of a scheme ignores case (RFC 9110 section 11.1).
        if scheme.eq_ignore_ascii_case("bearer") {
            return Some(rest.trim().into());
        }
        let mount = routes::mount(&self.conn.shared.mounts, parts.uri.path());
        let basic = scheme.eq_ignore_ascii_case("basic") && kind == RouteKind::Custom;
        if !basic || !mount.is_some_and(|mount| mount.takes_basic()) {
            // The result is a token that belongs to no identity, so the request fails instead of counting as one
            // without a token.
            return Some("".into());
        }
        let pair = base64::engine::general_purpose::STANDARD.decode(rest.trim());
        let pair = pair.ok().and_then(|pair| String::from_utf8(pair).ok());
        // The user name, which ends at the first colon (RFC 7617 section 2), is ignored; the password is the token.
        Some(
            pair.and_then(|pair| Some(pair.split_once(':')?.1.to_owned().into()))
                .unwrap_or_default(),
        )
    }

    fn oversized(&self, parts: &Parts) -> Option<RoutedResponse> {
        let url = parts
            .uri
            .path_and_query()
            .map_or(0, |url| url.as_str().len());
        let (status, what) = if url > URL_BYTES_MAX {
            let what = format!("a path with its query has at most {URL_BYTES_MAX} bytes");
            (StatusCode::URI_TOO_LONG, what)
        } else if parts.headers.len() > HEADER_FIELDS_MAX {
            let what = format!("a request has at most {HEADER_FIELDS_MAX} header fields");
            (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, what)
        } else {
            return None;
        };
        if self.settings.stealth {
            // A node that hides does not reveal whose server it is.
            return Some(RoutedResponse::plain(answer::plain_not_found(status)));
        }
        let error = ApiError::new(status, Code::InvalidInput, what);
        Some(self.refused(&error))
    }
}

/// The response to a request for a name that is not the node's. A client that uses one connection for several names
/// tries again on another one (RFC 9110 section 15.5.20).
fn misdirected() -> RoutedResponse {
    let status = StatusCode::MISDIRECTED_REQUEST;
    RoutedResponse::plain(answer::plain_not_found(status))
}

fn with<B>(mut request: Request<B>, caller: &HttpCaller) -> Request<B> {
    request.extensions_mut().insert(caller.clone());
    request
}

/// Whether the body came too slowly, for bodies that another part reads.
#[derive(Default)]
struct SlowBodyFlag(Arc<AtomicBool>);

impl SlowBodyFlag {
    fn watch(&self, body: Body) -> MountBody {
        use http_body_util::BodyExt;
        let late = Arc::clone(&self.0);
        MountBody::new(body.map_err(move |error| -> BoxError {
            late.fetch_or(framing::is_slow(&error), Ordering::AcqRel);
            error.into()
        }))
    }
}

/// The number of bytes that the response is known to have.
fn length(response: &Response<Body>) -> usize {
    usize::try_from(response.body().size_hint().lower()).unwrap_or(usize::MAX)
}

/// The response to a HEAD request: all but the body.
fn without_body(response: Response<Body>) -> Response<Body> {
    let length = response.body().size_hint().exact();
    let mut response = response.map(|_| Body::empty());
    if let Some(length) = length {
        // The length is that of the response to a GET (RFC 9110 section 8.6).
        let headers: &mut HeaderMap = response.headers_mut();
        headers.entry(CONTENT_LENGTH).or_insert(length.into());
    }
    response
}
