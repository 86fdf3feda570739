//! The steps of every request: its name, its bounds, its host, its token, and whoever answers it.

use std::sync::Arc;
use std::time::Instant;

use alknet_core::{MountBody, MountCaller};
use alknet_gateway::{ApiError, Caller, Code, Known, RequestId, Via};
use axum::body::Body;
use base64::Engine;
use http::header::{ALT_SVC, AUTHORIZATION, CONTENT_LENGTH, SERVER, X_CONTENT_TYPE_OPTIONS};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body as _;
use tower::ServiceExt;

use crate::connection::{Conn, Session};
use crate::limits::{ALT_SVC_MAX_AGE_S, HEADER_FIELDS_MAX, SESSIONS_MAX, URL_BYTES_MAX};
use crate::routes::{self, ACME, Kind};
use crate::settings::Settings;
use crate::{answer, api, cors, hosts, ws};

/// What whoever wants one more WebSocket than a connection carries is told to wait.
const SESSIONS_RETRY_MS: u64 = 1000;

/// Answers one request of a connection.
pub(crate) async fn answer(conn: &Arc<Conn>, request: Request<Body>) -> Response<Body> {
    let started = Instant::now();
    let id = RequestId::next();
    let settings = Arc::clone(&conn.shared.settings());
    let line = Line::of(&request);
    let authority = hosts::authority(&request);
    let head = *request.method() == Method::HEAD;
    let origin = cors::allowed(&settings, request.headers());
    let asked = Asked {
        conn,
        settings: &settings,
        id: &id,
    };
    let (parts, body) = request.into_parts();
    let mut told = asked.decide(parts, body, authority.as_ref()).await;
    let headers = told.response.headers_mut();
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(X_CONTENT_TYPE_OPTIONS, nosniff);
    if told.of_api {
        if let Ok(id) = HeaderValue::from_str(id.as_str()) {
            headers.insert(answer::REQUEST_ID, id);
        }
        if let Some(origin) = &origin {
            cors::allow(headers, origin);
        }
    }
    if let Some(server) = &settings.server {
        headers.insert(SERVER, server.clone());
    }
    if let Some(services) = alt_svc(conn, authority.as_ref()) {
        headers.insert(ALT_SVC, services);
    }
    if head {
        told.response = without_body(told.response);
    }
    line.log(conn, &id, &told, started);
    told.response
}

/// An answer, and what the log has to know about it.
pub(crate) struct Told {
    response: Response<Body>,
    /// Whether it is one that carries the request's name.
    of_api: bool,
    who: Option<Arc<str>>,
    operation: Option<String>,
}

impl Told {
    fn plain(response: Response<Body>) -> Self {
        Self {
            response,
            of_api: false,
            who: None,
            operation: None,
        }
    }

    fn api(response: Response<Body>, caller: &Caller) -> Self {
        let operation = response.extensions().get::<api::Operation>();
        Self {
            operation: operation.map(|operation| operation.0.clone()),
            who: caller.identity.as_ref().map(|who| who.id.as_str().into()),
            response,
            of_api: true,
        }
    }

    fn refused(response: Response<Body>) -> Self {
        Self {
            of_api: true,
            ..Self::plain(response)
        }
    }
}

/// One request on its way.
struct Asked<'a> {
    conn: &'a Arc<Conn>,
    settings: &'a Settings,
    id: &'a RequestId,
}

impl Asked<'_> {
    async fn decide(&self, parts: Parts, body: Body, authority: Option<&Authority>) -> Told {
        let shared = &self.conn.shared;
        if let Some(refused) = self.oversized(&parts) {
            return Told::plain(refused);
        }
        if !authority.is_some_and(|authority| self.settings.hosts.has(authority)) {
            let misdirected = StatusCode::MISDIRECTED_REQUEST;
            return Told::plain(answer::plain_not_found(misdirected));
        }
        let path = parts.uri.path();
        let custom = || {
            let added = shared
                .paths
                .iter()
                .any(|route| routes::matches(route, path));
            added || routes::mount(&shared.mounts, path).is_some()
        };
        let kind = match routes::kind(path, custom) {
            Kind::Session if !shared.websocket => Kind::Other,
            kind => kind,
        };
        if let Some(told) = self.open_to_everybody(kind, &parts) {
            return told;
        }
        // Looked up for every path alike: the time it takes says nothing about which there are.
        let token = self.token(kind, &parts);
        let known = shared
            .gateway
            .authenticate(&self.conn.gate, token.as_deref());
        let proved = known.as_ref().is_ok_and(|known| known.identity.is_some());
        if kind == Kind::Other || (self.settings.stealth && !proved && !self.shown(kind, &parts)) {
            return Told::plain(self.nothing(&parts).await);
        }
        if !matches!(kind, Kind::Page | Kind::Ticket)
            && let Some(origin) = cors::allowed(self.settings, &parts.headers)
            && let Some(response) = cors::preflight(&parts, &origin)
        {
            return Told::plain(response);
        }
        match (kind, known) {
            (Kind::Page, known) => self.page(parts, body, known.unwrap_or_default()).await,
            (Kind::Session, Ok(known)) => self.session(parts, body, &self.caller(known)),
            (_, Ok(known)) => self.route(kind, parts, body, self.caller(known)).await,
            (_, Err(error)) => Told::refused(answer::error(&error, self.id)),
        }
    }

    /// What needs no look at who asks.
    fn open_to_everybody(&self, kind: Kind, parts: &Parts) -> Option<Told> {
        let shared = &self.conn.shared;
        let get = matches!(parts.method, Method::GET | Method::HEAD);
        match kind {
            Kind::Health if self.settings.healthz && get => Some(Told::plain(api::health(shared))),
            Kind::Acme if get => {
                let token = parts.uri.path().strip_prefix(ACME)?;
                let answer = shared.challenges.as_ref()?.answer(token)?;
                Some(Told::plain(answer::text(StatusCode::OK, answer)))
            }
            _ => None,
        }
    }

    /// Whether whoever has no token is shown something there although the node tells nothing.
    fn shown(&self, kind: Kind, parts: &Parts) -> bool {
        let asked = |page: &Arc<dyn crate::Responder>| page.knows(parts);
        match kind {
            Kind::Page => self.conn.shared.page.as_ref().is_some_and(asked),
            // The ticket is one.
            Kind::Ticket => true,
            _ => false,
        }
    }

    async fn nothing(&self, parts: &Parts) -> Response<Body> {
        let site = self.conn.shared.site.as_ref();
        if let Some(site) = site
            && let Some(page) = site.answer(parts).await
        {
            return page;
        }
        let first_page = match site {
            Some(site) => site.first_page().await,
            None => None,
        };
        answer::decoy(self.settings, first_page)
    }

    async fn route(&self, kind: Kind, parts: Parts, body: Body, caller: Caller) -> Told {
        let shared = &self.conn.shared;
        if kind == Kind::Ticket {
            return match api::ticket(shared, &parts) {
                Some(response) => Told::refused(response),
                None => Told::plain(self.nothing(&parts).await),
            };
        }
        let open = kind == Kind::Custom
            || (kind == Kind::Api(routes::Api::Description) && self.settings.public_openapi);
        if caller.identity.is_none() && !open {
            let error = ApiError::unauthenticated(answer::NO_TOKEN);
            return Told::refused(answer::error(&error, self.id));
        }
        if let Err(error) = shared.gateway.admit(&caller) {
            return Told::refused(answer::error(&error, self.id));
        }
        let response = match kind {
            Kind::Api(path) => {
                let request = Request::from_parts(parts, body);
                api::answer(shared, path, &caller, request).await
            }
            Kind::Mcp => match &shared.mcp {
                Some(mcp) => {
                    let request = Request::from_parts(parts, body);
                    let caller = caller.clone().via(Via::Mcp);
                    let request = with(request, &caller);
                    answer::mounted(mcp.respond(request.map(mount_body), caller).await)
                }
                None => return Told::plain(self.nothing(&parts).await),
            },
            Kind::Custom => {
                let request = Request::from_parts(parts, body);
                self.custom(request, &caller).await
            }
            _ => return Told::plain(self.nothing(&parts).await),
        };
        Told::api(response, &caller)
    }

    /// A WebSocket is for everybody whose token is not wrong: whoever has none is nobody in it.
    fn session(&self, parts: Parts, body: Body, caller: &Caller) -> Told {
        let refuse = |error: &ApiError| {
            let mut response = answer::error(error, self.id);
            ws::add_headers(response.headers_mut(), error.status);
            Told::refused(response)
        };
        if let Err(error) = self.conn.shared.gateway.admit(caller) {
            return refuse(&error);
        }
        let visitor = ws::Visitor {
            carrier: self.conn.connection.clone(),
            auth: self.conn.auth.clone(),
            token: caller.token.clone(),
        };
        let mut request = Request::from_parts(parts, body);
        let (dispatcher, origins) = (&self.conn.shared.dispatcher, &self.settings.origins);
        let Some(hold) = Session::begin(self.conn) else {
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
            Ok(response) => Told::api(response, caller),
            Err(error) => refuse(&error),
        }
    }

    async fn page(&self, parts: Parts, body: Body, known: Known) -> Told {
        let Some(page) = &self.conn.shared.page else {
            return Told::plain(self.nothing(&parts).await);
        };
        let request = Request::from_parts(parts, body);
        let caller = self.caller(known).via(Via::Page);
        let request = with(request, &caller);
        let response = page.respond(request.map(mount_body), caller).await;
        Told::plain(answer::mounted(response))
    }

    /// Views of other parts, and routes of whoever builds on this program.
    async fn custom(&self, request: Request<Body>, caller: &Caller) -> Response<Body> {
        let shared = &self.conn.shared;
        let path = request.uri().path();
        if let Some(mount) = routes::mount(&shared.mounts, path) {
            let who = MountCaller {
                identity: caller.identity.clone(),
                remote: caller.remote,
                request_id: caller.request_id.as_str().into(),
            };
            let respond = Arc::clone(mount).respond(request.map(mount_body), who);
            return answer::mounted(respond.await);
        }
        let caller = caller.clone().via(Via::Custom("route"));
        let answered = shared.router.clone().oneshot(with(request, &caller)).await;
        answered.unwrap_or_else(|never| match never {})
    }

    fn caller(&self, known: Known) -> Caller {
        let caller = Caller {
            gate: self.conn.gate.clone(),
            identity: known.identity,
            token: known.token,
            via: Via::Http,
            remote: self.conn.remote,
            request_id: self.id.clone(),
        };
        if caller.identity.is_some() {
            self.conn.raise();
        }
        caller
    }

    /// The token of a request: in its own header, or as the password of those who know nothing else.
    fn token(&self, kind: Kind, parts: &Parts) -> Option<String> {
        let Some(header) = parts.headers.get(AUTHORIZATION) else {
            // A page can set no header but one.
            let token = (kind == Kind::Session).then(|| ws::bearer(&parts.headers))?;
            return token.map_or_else(|_| Some(String::new()), |token| token.map(str::to_owned));
        };
        let header = header.to_str().ok()?;
        let (scheme, rest) = header.split_once(' ')?;
        if scheme.eq_ignore_ascii_case("bearer") {
            return Some(rest.trim().to_owned());
        }
        let mount = routes::mount(&self.conn.shared.mounts, parts.uri.path());
        let basic = scheme.eq_ignore_ascii_case("basic") && kind == Kind::Custom;
        if !basic || !mount.is_some_and(|mount| mount.takes_basic()) {
            // Something that stands for nobody, rather than nothing.
            return Some(String::new());
        }
        let pair = base64::engine::general_purpose::STANDARD.decode(rest.trim());
        let pair = pair.ok().and_then(|pair| String::from_utf8(pair).ok());
        Some(
            pair.and_then(|pair| Some(pair.split_once(':')?.1.to_owned()))
                .unwrap_or_default(),
        )
    }

    fn oversized(&self, parts: &Parts) -> Option<Response<Body>> {
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
        let error = ApiError::new(status, Code::InvalidInput, what);
        Some(answer::error(&error, self.id))
    }
}

fn with(mut request: Request<Body>, caller: &Caller) -> Request<Body> {
    request.extensions_mut().insert(caller.clone());
    request
}

fn mount_body(body: Body) -> MountBody {
    use http_body_util::BodyExt;
    MountBody::new(body.map_err(Into::into))
}

/// Where HTTP/3 is served: at the same number (RFC 9114 section 3.1.1).
fn alt_svc(conn: &Conn, authority: Option<&Authority>) -> Option<HeaderValue> {
    if !conn.shared.h3 {
        return None;
    }
    let port = authority?.port_u16().unwrap_or(443);
    HeaderValue::from_str(&format!("h3=\":{port}\"; ma={ALT_SVC_MAX_AGE_S}")).ok()
}

/// What HEAD gets: everything but the body.
fn without_body(response: Response<Body>) -> Response<Body> {
    let length = response.body().size_hint().exact();
    let mut response = response.map(|_| Body::empty());
    if let Some(length) = length {
        let headers: &mut HeaderMap = response.headers_mut();
        headers.entry(CONTENT_LENGTH).or_insert(length.into());
    }
    response
}

/// A line of the access log: no query, no body, no token.
struct Line {
    method: Method,
    path: String,
}

impl Line {
    fn of(request: &Request<Body>) -> Self {
        let path = request.uri().path();
        let path = match path {
            // A ticket is a secret as long as it was not used.
            _ if path.starts_with(routes::TICKET) => routes::TICKET,
            _ if path.starts_with("/status/enter/") => "/status/enter/",
            _ => path,
        };
        Self {
            method: request.method().clone(),
            path: path.chars().take(256).collect(),
        }
    }

    fn log(&self, conn: &Conn, id: &RequestId, told: &Told, started: Instant) {
        tracing::info!(
            target: "alknet_access",
            id = id.as_str(),
            who = told.who.as_deref().unwrap_or("-"),
            status = told.response.status().as_u16(),
            bytes = told.response.body().size_hint().exact(),
            ms = started.elapsed().as_millis() as u64,
            http = conn.protocol,
            operation = told.operation.as_deref(),
            remote = conn.remote.map(tracing::field::display),
            "{} {}",
            self.method,
            self.path,
        );
    }
}
