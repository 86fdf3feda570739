//! The paths of the page, and the checks of who may see what.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use alknet_call::{CallError, Registration};
use alknet_core::{AuthToken, BoxError, Identity, IdentityProvider, MountBody};
use alknet_gateway::{Gateway, GatewayCall, HttpCaller, HttpIngress};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, ORIGIN, RETRY_AFTER};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use percent_encoding::percent_decode;
use serde_json::json;

use crate::answer::{self, PageResponse};
use crate::gather::gather;
use crate::history::MetricsHistory;
use crate::limits::FORM_BYTES_MAX;
use crate::render::{ConfirmPrompt, MessagePage, SCRIPT, STYLE, Templates};
use crate::session::{self, PageSessions, SCOPE, ViewerProof};
use crate::ticket::{LinkPurpose, PageAction, PageLinkStore};
use crate::view::view;
use crate::{live, operation};

/// The path before the ticket of a link that opens the page.
pub(crate) const ENTER: &str = "/status/enter/";
/// The path before the ticket of a link that asks to confirm an action.
pub(crate) const ACT: &str = "/status/act/";

/// The page for administrators. Clones share their state.
#[derive(Clone, Debug)]
pub struct AdminPage(Arc<AdminPageInner>);

pub(crate) struct AdminPageInner {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) identities: Arc<dyn IdentityProvider>,
    pub(crate) names: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    pub(crate) tickets: PageLinkStore,
    pub(crate) history: MetricsHistory,
    pub(crate) templates: Templates,
    sessions: PageSessions,
}

impl fmt::Debug for AdminPageInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminPage").finish_non_exhaustive()
    }
}

/// An administrator who may read the page.
#[derive(Clone, Debug)]
pub(crate) struct PageViewer {
    pub(crate) caller: HttpCaller,
    proof: ViewerProof,
    /// The session that the request belongs to; `None` if the request itself proved the identity.
    session: Option<String>,
}

impl PageViewer {
    /// Whether the viewer may still read the page. If so, this updates the caller to the rights that it has now. The
    /// check does not count as use of the session.
    pub(crate) fn is_let_in(&mut self, page: &AdminPageInner) -> bool {
        let session = self.session.as_deref();
        let lasts = session.is_none_or(|name| {
            let found = page.sessions.find(name, Instant::now(), false);
            found.is_some()
        });
        let identity = self.proof.resolve(&*page.identities).filter(|_| lasts);
        let is_some = identity.is_some();
        self.caller.identity = identity;
        is_some
    }
}

impl AdminPage {
    /// A page for the identities that `identities` knows, which calls operations through `gateway`. `names` returns
    /// the host names that the node answers to over HTTP, besides its addresses; links may use them.
    pub fn new(
        gateway: Arc<Gateway>,
        identities: Arc<dyn IdentityProvider>,
        names: impl Fn() -> Vec<String> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(AdminPageInner {
            gateway,
            identities,
            names: Box::new(names),
            tickets: PageLinkStore::default(),
            history: MetricsHistory::default(),
            templates: Templates::new(),
            sessions: PageSessions::default(),
        }))
    }

    /// The operation `node/page-ticket`, which the node registers.
    #[must_use]
    pub fn operation(&self) -> Registration {
        operation::registration(&self.0)
    }

    /// The identity of a request's session, as long as it is an administrator's. The check does not count as use of
    /// the session.
    #[must_use]
    pub fn session_of(&self, headers: &HeaderMap) -> Option<Arc<Identity>> {
        let name = session::cookie_of(headers)?;
        let proof = self.0.sessions.find(name, Instant::now(), false)?;
        proof.resolve(&*self.0.identities)
    }

    /// Whether a request has a session of the page or a valid link. If the node hides the page, only such a request
    /// gets a response from it.
    #[must_use]
    pub fn knows(&self, uri: &Uri, headers: &HeaderMap) -> bool {
        let path = uri.path();
        let ticket = path.strip_prefix(ENTER).or_else(|| path.strip_prefix(ACT));
        let by_link =
            ticket.is_some_and(|name| self.0.tickets.find(name, Instant::now()).is_some());
        by_link || self.session_of(headers).is_some()
    }

    /// Responds to a request for `/` or a path below `/status/`. `caller` is the identity that the request itself
    /// proved. Only this function reads the page's own cookie.
    pub async fn respond<B>(&self, request: Request<B>, caller: HttpCaller) -> Response<MountBody>
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<BoxError>,
    {
        let page = &self.0;
        let (head, body) = request.into_parts();
        let reads = matches!(head.method, Method::GET | Method::HEAD);
        let posts = head.method == Method::POST;
        let request = PageRequest {
            page,
            uri: &head.uri,
            headers: &head.headers,
            caller,
        };
        let path = head.uri.path();
        // The static files are cached by browsers and need no limit.
        let is_asset = matches!(path, "/status/style.css" | "/status/live.js");
        if !is_asset && page.gateway.admit(&request.caller).is_err() {
            let slower = "Too many requests came from there: try again in a moment.\n";
            return answer::plain(StatusCode::TOO_MANY_REQUESTS, slower);
        }
        match path {
            "/" | "/status" | "/status/" if reads => request.index().await,
            "/status/style.css" if reads => answer::asset("text/css; charset=utf-8", STYLE),
            "/status/live.js" if reads => answer::asset("text/javascript; charset=utf-8", SCRIPT),
            "/status/events" if reads => request.events(),
            "/status/enter" if posts => request.enter_by_token(&form(&head.headers, body).await),
            "/status/leave" if posts => request.leave(),
            path if path.starts_with(ENTER) => match head.method {
                // A HEAD request must not use up the link.
                Method::GET => request.enter_by_link(&path[ENTER.len()..]),
                _ => answer::method("GET"),
            },
            path if path.starts_with(ACT) => {
                let ticket = &path[ACT.len()..];
                match head.method {
                    Method::GET | Method::HEAD => request.question(ticket),
                    Method::POST => request.act(ticket, &form(&head.headers, body).await).await,
                    _ => answer::method("GET, HEAD, POST"),
                }
            }
            "/" | "/status/style.css" | "/status/live.js" | "/status/events" => {
                answer::method("GET, HEAD")
            }
            // A browser that goes back to the address of a form gets the page.
            "/status/enter" | "/status/leave" if reads => answer::see_root(),
            _ => answer::nothing(),
        }
    }
}

impl AdminPageInner {
    /// Records that a viewer reads the page, and starts the task that takes samples unless one runs.
    pub(crate) fn record_view(self: &Arc<Self>, viewer: &PageViewer) {
        if self.history.record_view(Instant::now()) {
            tokio::spawn(live::sample(Arc::downgrade(self), viewer.clone()));
        }
    }
}

/// One request for the page.
struct PageRequest<'a> {
    page: &'a Arc<AdminPageInner>,
    uri: &'a Uri,
    headers: &'a HeaderMap,
    caller: HttpCaller,
}

impl PageRequest<'_> {
    async fn index(self) -> PageResponse {
        let Some(viewer) = self.viewer(true) else {
            return self.entry(StatusCode::OK, None);
        };
        let page = self.page;
        page.record_view(&viewer);
        let gathered = gather(&page.gateway, &viewer.caller, &page.history).await;
        let view = view(&gathered, &page.history, &self.address());
        answer::page(StatusCode::OK, page.templates.page(&view))
    }

    fn events(self) -> PageResponse {
        // An open page reads events by itself, so this does not keep its session alive.
        let Some(viewer) = self.viewer(false) else {
            // The standard of event streams makes the browser stop reconnecting at this status.
            return answer::plain(StatusCode::NO_CONTENT, "");
        };
        match live::events(self.page, viewer, self.address()) {
            Ok(body) => answer::events(body),
            Err(_) => answer::plain(
                StatusCode::TOO_MANY_REQUESTS,
                "Too many pages are open: close some.\n",
            ),
        }
    }

    fn enter_by_link(self, ticket: &str) -> PageResponse {
        let enters = |purpose| purpose == LinkPurpose::Enter;
        let link = self.page.tickets.take(ticket, Instant::now(), enters);
        let Some((_, proof)) = link else {
            // A viewer with a session has only opened the link again.
            return match self.viewer(true) {
                Some(_) => answer::see_root(),
                None => self.entry(StatusCode::GONE, Some(USED)),
            };
        };
        self.begin(proof)
    }

    fn enter_by_token(self, form: &PageForm) -> PageResponse {
        if let Some(refused) = self.foreign_form(form) {
            return refused;
        }
        let text = form.field("token").unwrap_or_default();
        let token = AuthToken::new(text.trim().to_owned());
        // A wrong token may be a guess, and counts against the network that it comes from.
        let identity = match self.caller.gate.by_token(&token) {
            Ok(identity) => identity,
            Err(error) => return self.wrong_token_form(&error),
        };
        if !identity.scopes.allows(SCOPE) {
            return self.entry(StatusCode::FORBIDDEN, Some(NARROW));
        }
        self.begin(ViewerProof::token(identity.id.clone(), Arc::new(token)))
    }

    /// The form again after a wrong token, or 429 after too many wrong tokens from one network.
    fn wrong_token_form(&self, error: &CallError) -> PageResponse {
        let Some(wait_ms) = error.retry_after_ms else {
            return self.entry(StatusCode::FORBIDDEN, Some(WRONG));
        };
        let mut answer = self.entry(StatusCode::TOO_MANY_REQUESTS, Some(WAIT));
        let wait_s = wait_ms.div_ceil(1000).max(1);
        answer.headers_mut().insert(RETRY_AFTER, wait_s.into());
        answer
    }

    /// Begins a session and shows the page.
    fn begin(&self, proof: ViewerProof) -> PageResponse {
        let Some(identity) = proof.resolve(&*self.page.identities) else {
            return self.entry(StatusCode::FORBIDDEN, Some(NARROW));
        };
        // The browser keeps only one cookie, so the old session would otherwise stay until it expires.
        if let Some(old) = session::cookie_of(self.headers) {
            self.page.sessions.end(old);
        }
        let Some(name) = self.page.sessions.begin(proof, Instant::now()) else {
            return answer::plain(
                StatusCode::SERVICE_UNAVAILABLE,
                "The system has no randomness yet: try again.\n",
            );
        };
        tracing::info!(by = identity.id.as_str(), "page.enter");
        let comes_from = self.headers.get("sec-fetch-site");
        let is_cross_site = comes_from.is_some_and(|from| from != "none" && from != "same-origin");
        let redirect = match is_cross_site {
            false => answer::see_root(),
            // A browser that follows a link from another site sends no strict cookie, also not with the redirect that
            // follows. It sends the cookie only if a page of this site causes the request.
            true => answer::page(
                StatusCode::OK,
                self.page.templates.plain(&MessagePage {
                    title: "You are signed in".to_owned(),
                    refresh: true,
                    ..MessagePage::default()
                }),
            ),
        };
        answer::with_cookie(redirect, &session::cookie(&name))
    }

    fn leave(self) -> PageResponse {
        if let Some(name) = session::cookie_of(self.headers) {
            self.page.sessions.end(name);
        }
        answer::with_cookie(answer::see_root(), &session::no_cookie())
    }

    /// Asks for the confirmation of a link's action. The answer uses up the link, not the question.
    fn question(self, ticket: &str) -> PageResponse {
        let found = self.page.tickets.find(ticket, Instant::now());
        let Some((LinkPurpose::Act(action), proof)) = found else {
            return self.entry(StatusCode::GONE, Some(USED));
        };
        let Some(identity) = proof.resolve(&*self.page.identities) else {
            return self.entry(StatusCode::FORBIDDEN, Some(NARROW));
        };
        let plain = MessagePage {
            title: action.question().to_owned(),
            text: Some(action.consequence().to_owned()),
            act: Some(ConfirmPrompt {
                ticket: ticket.to_owned(),
                verb: action.verb(),
                who: identity.id.to_string(),
            }),
            ..MessagePage::default()
        };
        answer::page(StatusCode::OK, self.page.templates.plain(&plain))
    }

    /// Performs a link's action. The link is the proof: this reads no cookie, and only the receiver of the link has
    /// it. The link is in the path, because a node that hides from unknown peers looks for it there before it
    /// responds.
    async fn act(self, ticket: &str, form: &PageForm) -> PageResponse {
        if let Some(refused) = self.foreign_form(form) {
            return refused;
        }
        let acts = |purpose| matches!(purpose, LinkPurpose::Act(_));
        let link = self.page.tickets.take(ticket, Instant::now(), acts);
        let Some((LinkPurpose::Act(action), proof)) = link else {
            return self.entry(StatusCode::GONE, Some(USED));
        };
        let Some(identity) = proof.resolve(&*self.page.identities) else {
            return self.entry(StatusCode::FORBIDDEN, Some(NARROW));
        };
        tracing::info!(
            by = identity.id.as_str(),
            action = action.name(),
            "page.act"
        );
        let caller = self.caller_of(&proof, Some(identity));
        self.done(action, &caller).await
    }

    async fn done(&self, action: PageAction, caller: &HttpCaller) -> PageResponse {
        let call = GatewayCall::for_operation(action.operation(), &json!({}));
        let outcome = self.page.gateway.invoke(caller, call).await;
        let (status, plain) = match outcome {
            Ok(_) => (
                StatusCode::OK,
                MessagePage {
                    title: action.done().to_owned(),
                    text: Some("You can close this page.".to_owned()),
                    ..MessagePage::default()
                },
            ),
            Err(error) => (
                error.status,
                MessagePage {
                    title: "It was not done".to_owned(),
                    wrong: Some(crate::text::foreign(&error.error.message)),
                    ..MessagePage::default()
                },
            ),
        };
        answer::page(status, self.page.templates.plain(&plain))
    }

    /// The viewer: the identity that the request proved, or else that of its session.
    fn viewer(&self, used: bool) -> Option<PageViewer> {
        let proved = self.caller.identity.as_ref();
        if let Some(identity) = proved.filter(|it| it.scopes.allows(SCOPE)) {
            let id = identity.id.clone();
            let proof = match (&self.caller.token, self.caller.gate.key()) {
                (Some(token), _) => ViewerProof::token(id, Arc::clone(token)),
                (None, Some(key)) => ViewerProof::key(id, key),
                (None, None) => ViewerProof::name(id),
            };
            return Some(PageViewer {
                caller: self.caller.clone().via(HttpIngress::Page),
                proof,
                session: None,
            });
        }
        // A token in the request decides, whatever cookie comes with it.
        if self.caller.token.is_some() {
            return None;
        }
        let name = session::cookie_of(self.headers)?;
        let proof = self.page.sessions.find(name, Instant::now(), used)?;
        let Some(identity) = proof.resolve(&*self.page.identities) else {
            self.page.sessions.end(name);
            return None;
        };
        Some(PageViewer {
            caller: self.caller_of(&proof, Some(identity)),
            proof,
            session: Some(name.to_owned()),
        })
    }

    fn caller_of(&self, proof: &ViewerProof, identity: Option<Arc<Identity>>) -> HttpCaller {
        if let Some(identity) = &identity {
            // The connection is no longer one of an unknown peer.
            self.caller.gate.authenticated(identity);
        }
        HttpCaller {
            identity,
            token: proof.bearer(),
            proved_by: proof.proved_by(),
            account: None,
            ..self.caller.clone().via(HttpIngress::Page)
        }
    }

    /// The form to sign in, with the reason for showing it.
    fn entry(&self, status: StatusCode, wrong: Option<&str>) -> PageResponse {
        let plain = MessagePage {
            title: "Sign in to the status page".to_owned(),
            wrong: wrong.map(str::to_owned),
            entry: true,
            host: self.authority().unwrap_or_default(),
            ..MessagePage::default()
        };
        answer::page(status, self.page.templates.plain(&plain))
    }

    /// Refuses a form from another site's page, and a body that is no form.
    fn foreign_form(&self, form: &PageForm) -> Option<PageResponse> {
        let own = match self.headers.get(ORIGIN) {
            // Programs other than browsers send no origin, and no other site controls their requests.
            None => true,
            Some(origin) => {
                let origin = origin
                    .to_str()
                    .ok()
                    .and_then(|it| it.strip_prefix("https://"));
                origin.is_some() && origin == self.authority().as_deref()
            }
        };
        match form {
            _ if !own => Some(answer::plain(
                StatusCode::FORBIDDEN,
                "Another page sent this form.\n",
            )),
            PageForm::Refused(status) => {
                Some(answer::plain(*status, "This is no form of the page.\n"))
            }
            PageForm::Fields(_) => None,
        }
    }

    /// The host and port under which the browser reached the node.
    fn authority(&self) -> Option<String> {
        let own = self.uri.authority().map(ToString::to_string);
        own.or_else(|| Some(self.headers.get(HOST)?.to_str().ok()?.to_owned()))
    }

    /// The address under which the browser reached the node, with the port. A device on the way may map the node's
    /// port to another one.
    fn address(&self) -> String {
        let authority = self.authority().unwrap_or_default();
        let parsed = authority.parse::<http::uri::Authority>();
        let whole = |it: http::uri::Authority| {
            format!("{}:{}", it.host(), it.port_u16().unwrap_or(HTTPS_PORT))
        };
        parsed.map(whole).unwrap_or_default()
    }
}

/// The default port of `https://`.
const HTTPS_PORT: u16 = 443;

const USED: &str = "This link was used already, or is more than a minute old. \
Run the command again for a new one.";
const WRONG: &str = "This node does not know this token.";
const WAIT: &str = "This node does not know this token, and too many unknown tokens came from your network. \
Wait before you try again.";
const NARROW: &str = "You may not see the status page: it is for administrators, and a token \
needs the scope admin.";

/// The content of a form.
enum PageForm {
    Fields(Vec<(String, String)>),
    Refused(StatusCode),
}

impl PageForm {
    fn field(&self, name: &str) -> Option<String> {
        let Self::Fields(fields) = self else {
            return None;
        };
        let found = fields.iter().find(|(own, _)| own == name);
        found.map(|(_, value)| value.clone())
    }
}

/// Reads a form as browsers send it.
async fn form<B>(headers: &HeaderMap, body: B) -> PageForm
where
    B: Body<Data = Bytes> + Send,
    B::Error: Into<BoxError>,
{
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).map(str::trim);
    if !kind.is_some_and(|kind| kind.eq_ignore_ascii_case("application/x-www-form-urlencoded")) {
        return PageForm::Refused(StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }
    let Ok(read) = Limited::new(body, FORM_BYTES_MAX).collect().await else {
        return PageForm::Refused(StatusCode::PAYLOAD_TOO_LARGE);
    };
    PageForm::Fields(fields(&read.to_bytes()))
}

fn fields(text: &[u8]) -> Vec<(String, String)> {
    // A form writes a space as a plus sign (the URL standard, application/x-www-form-urlencoded).
    let decoded = |part: &[u8]| {
        let spaced: Vec<u8> = part
            .iter()
            .map(|b| if *b == b'+' { b' ' } else { *b })
            .collect();
        percent_decode(&spaced).decode_utf8_lossy().into_owned()
    };
    let pairs = text.split(|b| *b == b'&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let at = pair.iter().position(|b| *b == b'=').unwrap_or(pair.len());
            let value = pair.get(at + 1..).unwrap_or_default();
            (decoded(&pair[..at]), decoded(value))
        })
        .collect()
}

#[cfg(test)]
mod tests;
