//! The steps of every request: its name, its bounds, its host, its token, and whoever answers it.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use alknet_core::{BoxError, HttpMount, MountBody, MountCaller};
use alknet_gateway::{ApiError, Caller, Code, Known, Lease, NO_TOKEN, RequestId, Upload, Via};
use axum::body::Body;
use base64::Engine;
use http::header::{ALT_SVC, AUTHORIZATION, CONTENT_LENGTH, SERVER, STRICT_TRANSPORT_SECURITY};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Full};
use tower::ServiceExt;

use crate::access::Line;
use crate::connection::{Conn, Session};
use crate::limits::{HEADER_FIELDS_MAX, MCP_BYTES_MAX, SESSIONS_MAX, URL_BYTES_MAX, VIEW_BYTES};
use crate::routes::{self, ACME, Kind};
use crate::settings::Settings;
use crate::{answer, api, cors, framing, upload, ws};

/// What whoever wants one more WebSocket than a connection carries is told to wait.
const SESSIONS_RETRY_MS: u64 = 1000;

/// The header of nobody's token, which is read where there is none.
static NO_HEADER: LazyLock<HeaderValue> = LazyLock::new(|| {
    let header = HeaderValue::try_from(format!("Bearer {NO_TOKEN}"));
    header.expect("a token is ASCII")
});

/// Answers one request of a connection. The log's `line` is told who asks, and for what.
pub(crate) async fn answer(
    conn: &Arc<Conn>,
    arrived: &mut Arrived,
    line: &mut Line,
) -> Response<Body> {
    let settings = Arc::clone(&conn.shared.settings());
    let named = conn.last.named(&arrived.parts, &conn.shared, &settings);
    let head = arrived.parts.method == Method::HEAD;
    let origin = cors::allowed(&settings, &arrived.parts.headers);
    let asked = Asked {
        conn,
        settings: &settings,
        id: line.id(),
        began: line.began(),
    };
    let mut told = asked.decide(arrived, named.own, line).await;
    answer::never_guessed(&mut told.response);
    let headers = told.response.headers_mut();
    if told.of_api {
        if let Ok(id) = HeaderValue::from_str(asked.id.as_str()) {
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
        told.response = without_body(told.response);
    }
    told.response
}

/// An answer.
struct Told {
    response: Response<Body>,
    /// Whether it is one that carries the request's name.
    of_api: bool,
}

impl Told {
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

/// One request on its way.
struct Asked<'a> {
    conn: &'a Arc<Conn>,
    settings: &'a Settings,
    id: RequestId,
    began: Instant,
}

/// The request itself. It is large, and would be moved by each of those who hand it on.
pub(crate) struct Arrived {
    parts: Parts,
    body: Body,
}

impl Arrived {
    pub(crate) fn new(request: Request<Body>) -> Self {
        let (parts, body) = request.into_parts();
        Self { parts, body }
    }

    /// Takes it out, for those who want all of it.
    fn take(&mut self) -> Request<Body> {
        let (nothing, _) = Request::new(()).into_parts();
        let parts = std::mem::replace(&mut self.parts, nothing);
        Request::from_parts(parts, std::mem::take(&mut self.body))
    }
}

impl Asked<'_> {
    async fn decide(&self, arrived: &mut Arrived, own: bool, line: &mut Line) -> Told {
        let shared = &self.conn.shared;
        let parts = &arrived.parts;
        if let Some(refused) = self.oversized(parts) {
            return refused;
        }
        if !own {
            let misdirected = StatusCode::MISDIRECTED_REQUEST;
            return Told::plain(answer::plain_not_found(misdirected));
        }
        let path = parts.uri.path();
        // Looked up for the paths of this crate as well: one that is found sooner than a path that is not there is
        // told from it, where the node hides.
        let added = shared
            .paths
            .iter()
            .any(|route| routes::matches(route, path));
        let custom = added | routes::mount(&shared.mounts, path).is_some();
        let kind = match routes::kind(path, custom) {
            Kind::Session if !shared.websocket => Kind::Other,
            kind => kind,
        };
        if let Some(told) = self.open_to_everybody(kind, parts) {
            return told;
        }
        // Looked up for every path alike: the time it takes says nothing about which there are.
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
            line.asked_by(who);
        }
        let hidden =
            self.settings.stealth && who.is_none() && !alknet_core::mutant_a(1144);
        if kind == Kind::Other || (hidden && !self.shown(kind, parts)) {
            return Told::plain(self.nothing(parts).await);
        }
        if !matches!(kind, Kind::Page | Kind::Ticket)
            && let Some(origin) = cors::allowed(self.settings, &parts.headers)
            && let Some(response) = cors::preflight(parts, &origin)
        {
            return Told::plain(response);
        }
        match (kind, known) {
            (Kind::Page, known) => self.page(arrived, known.unwrap_or_default()).await,
            (Kind::Session, Ok(known)) => self.session(arrived, &self.caller(known)),
            (_, Ok(known)) => self.route(kind, arrived, &self.caller(known), line).await,
            (_, Err(_)) if hidden => Told::plain(self.nothing(parts).await),
            (_, Err(error)) => self.refused_stranger(&error),
        }
    }

    fn refused(&self, error: &ApiError) -> Told {
        Told::api(answer::error(error, &self.id))
    }

    /// Whoever is nobody is told so only so often.
    fn refused_stranger(&self, error: &ApiError) -> Told {
        let nobody = self.caller(Known::default());
        match self.conn.shared.gateway.admit(&nobody) {
            Ok(()) => self.refused(error),
            Err(too_many) => self.refused(&too_many),
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

    /// What is given to everybody counts for the address that it is sent to.
    fn lease(&self) -> Lease {
        let account = self.conn.account(None);
        self.conn.shared.gateway.lease_of(&account)
    }

    async fn nothing(&self, parts: &Parts) -> Response<Body> {
        let site = self.conn.shared.site.as_ref();
        if let Some(site) = site
            && let Some(page) = site.answer(parts, self.lease()).await
        {
            return page;
        }
        let first_page = match site {
            Some(site) => site.first_page(self.lease()).await,
            None => None,
        };
        answer::decoy(self.settings, first_page)
    }

    async fn route(
        &self,
        kind: Kind,
        arrived: &mut Arrived,
        caller: &Caller,
        line: &mut Line,
    ) -> Told {
        let shared = &self.conn.shared;
        if kind == Kind::Ticket {
            return match api::ticket(shared, &arrived.parts, self.settings.stealth, line) {
                Some(response) => Told::api(response),
                None => Told::plain(self.nothing(&arrived.parts).await),
            };
        }
        let open = kind == Kind::Custom
            || (kind == Kind::Api(routes::Api::Description) && self.settings.public_openapi);
        if let Err(error) = shared.gateway.admit(caller) {
            return self.refused(&error);
        }
        if caller.identity.is_none() && !open {
            return self.refused(&ApiError::unauthenticated(answer::NO_TOKEN));
        }
        let response = match kind {
            Kind::Api(path) => {
                let request = (&arrived.parts, &mut arrived.body);
                api::answer(shared, path, caller, request, line).await
            }
            Kind::Mcp => match &shared.mcp {
                Some(mcp) => match self.upload(arrived, caller).await {
                    Ok(upload) => {
                        let body = Full::new(upload.text.clone());
                        let body = body.map_err(|never| -> BoxError { match never {} });
                        let request = arrived.take().map(|_| MountBody::new(body));
                        let caller = caller.clone().via(Via::Mcp);
                        let mut request = with(request, &caller);
                        request.extensions_mut().insert(upload);
                        self.model(mcp.as_ref(), request, caller).await
                    }
                    Err(error) => answer::error(&error, &self.id),
                },
                None => return Told::plain(self.nothing(&arrived.parts).await),
            },
            Kind::Custom => {
                let request = arrived.take();
                self.custom(request, caller).await
            }
            _ => return Told::plain(self.nothing(&arrived.parts).await),
        };
        Told::api(response)
    }

    /// The answer of tools, which make all of it before the first byte is sent: counted until it is taken.
    async fn model(
        &self,
        mcp: &dyn crate::Responder,
        request: Request<MountBody>,
        caller: Caller,
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
            Ok(response) => response.map(|body| answer::counted(body, lease)),
            Err(error) => answer::error(&error, &self.id),
        };
        answer::private(&mut response);
        response
    }

    /// The answer of a part that reads on as the client takes it. What may change something has memory for all of
    /// its answer before it runs.
    async fn viewed(
        &self,
        mount: Arc<dyn HttpMount>,
        request: Request<MountBody>,
        (who, lease): (MountCaller, Lease),
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
            Ok(response) => response.map(|body| answer::counted(body, lease)),
            Err(error) => answer::error(&error, &self.id),
        }
    }

    /// Reads the body for a part that is given all of it.
    async fn upload(&self, arrived: &mut Arrived, caller: &Caller) -> Result<Upload, ApiError> {
        let room = upload::Room {
            lease: self.conn.shared.gateway.lease(caller),
            most: MCP_BYTES_MAX,
            time: self.settings.patience.body_time,
        };
        upload::whole(&arrived.parts.headers, &mut arrived.body, room).await
    }

    /// A WebSocket is for everybody whose token is not wrong: whoever has none is nobody in it.
    fn session(&self, arrived: &mut Arrived, caller: &Caller) -> Told {
        let refuse = |error: &ApiError| {
            let mut told = self.refused(error);
            ws::add_headers(told.response.headers_mut(), error.status);
            told
        };
        if let Err(error) = self.conn.shared.gateway.admit(caller) {
            return refuse(&error);
        }
        let visitor = ws::Visitor {
            carrier: self.conn.connection.clone(),
            auth: self.conn.auth.clone(),
            token: caller.token.clone(),
        };
        let mut request = arrived.take();
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
            Ok(response) => Told::api(response),
            Err(error) => refuse(&error),
        }
    }

    async fn page(&self, arrived: &mut Arrived, known: Known) -> Told {
        let Some(page) = &self.conn.shared.page else {
            return Told::plain(self.nothing(&arrived.parts).await);
        };
        let request = arrived.take();
        let caller = self.caller(known).via(Via::Page);
        let request = with(request, &caller);
        let late = Late::default();
        let request = request.map(|body| late.watch(body));
        let response = page.respond(request, caller).await;
        Told::plain(self.in_time(&late, answer::mounted(response)))
    }

    /// Views of other parts, and routes of whoever builds on this program.
    async fn custom(&self, request: Request<Body>, caller: &Caller) -> Response<Body> {
        let shared = &self.conn.shared;
        let late = Late::default();
        let request = request.map(|body| late.watch(body));
        let path = request.uri().path();
        if let Some(mount) = routes::mount(&shared.mounts, path) {
            let who = MountCaller {
                identity: caller.identity.clone(),
                remote: caller.remote,
                request_id: caller.request_id.as_str().into(),
            };
            let lease = shared.gateway.lease(caller);
            let mount = Arc::clone(mount);
            let response = self.viewed(mount, request, (who, lease)).await;
            return self.in_time(&late, response);
        }
        let caller = caller.clone().via(Via::Custom("route"));
        let request = with(request.map(Body::new), &caller);
        let answered = shared.router.clone().oneshot(request).await;
        self.in_time(&late, answered.unwrap_or_else(|never| match never {}))
    }

    /// The answer of whoever read the body, unless it came too slowly.
    fn in_time(&self, late: &Late, response: Response<Body>) -> Response<Body> {
        if late.0.load(Ordering::Acquire) {
            return answer::error(&upload::slow(), &self.id);
        }
        response
    }

    fn caller(&self, known: Known) -> Caller {
        let caller = Caller {
            gate: self.conn.gate.clone(),
            proved_by: None,
            account: Some(self.conn.account(known.identity.as_deref())),
            identity: known.identity,
            token: known.token,
            via: Via::Http,
            remote: self.conn.remote,
            began: self.began,
            request_id: self.id,
        };
        if caller.identity.is_some() {
            self.conn.raise();
        }
        caller
    }

    /// The token of a request: in its own header, or as the password of those who know nothing else.
    fn token<'p>(&self, kind: Kind, parts: &'p Parts) -> Option<Cow<'p, str>> {
        let Some(header) = parts.headers.get(AUTHORIZATION) else {
            // Read as any other, so that the time it takes does not say whether a header is looked for.
            std::hint::black_box(self.read_token(kind, parts, std::hint::black_box(&*NO_HEADER)));
            // A page can set no header but one.
            let token = (kind == Kind::Session).then(|| ws::bearer(&parts.headers))?;
            return token.map_or(Some(Cow::Borrowed("")), |token| token.map(Cow::Borrowed));
        };
        self.read_token(kind, parts, header)
    }

    fn read_token<'p>(
        &self,
        kind: Kind,
        parts: &Parts,
        header: &'p HeaderValue,
    ) -> Option<Cow<'p, str>> {
        let header = header.to_str().ok()?;
        let (scheme, rest) = header.split_once(' ')?;
        if scheme.eq_ignore_ascii_case("bearer") {
            return Some(rest.trim().into());
        }
        let mount = routes::mount(&self.conn.shared.mounts, parts.uri.path());
        let basic = scheme.eq_ignore_ascii_case("basic") && kind == Kind::Custom;
        if !basic || !mount.is_some_and(|mount| mount.takes_basic()) {
            // Something that stands for nobody, rather than nothing.
            return Some("".into());
        }
        let pair = base64::engine::general_purpose::STANDARD.decode(rest.trim());
        let pair = pair.ok().and_then(|pair| String::from_utf8(pair).ok());
        Some(
            pair.and_then(|pair| Some(pair.split_once(':')?.1.to_owned().into()))
                .unwrap_or_default(),
        )
    }

    fn oversized(&self, parts: &Parts) -> Option<Told> {
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
        if self.settings.stealth && !alknet_core::mutant_a(1146) {
            // No word of whose server it is.
            return Some(Told::plain(answer::plain_not_found(status)));
        }
        let error = ApiError::new(status, Code::InvalidInput, what);
        Some(self.refused(&error))
    }
}

fn with<B>(mut request: Request<B>, caller: &Caller) -> Request<B> {
    request.extensions_mut().insert(caller.clone());
    request
}

/// Whether a body came too slowly for whoever else reads it.
#[derive(Default)]
struct Late(Arc<AtomicBool>);

impl Late {
    fn watch(&self, body: Body) -> MountBody {
        use http_body_util::BodyExt;
        let late = Arc::clone(&self.0);
        MountBody::new(body.map_err(move |error| -> BoxError {
            late.fetch_or(framing::is_slow(&error), Ordering::AcqRel);
            error.into()
        }))
    }
}

/// Bytes that an answer is known to have.
fn length(response: &Response<Body>) -> usize {
    usize::try_from(response.body().size_hint().lower()).unwrap_or(usize::MAX)
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
