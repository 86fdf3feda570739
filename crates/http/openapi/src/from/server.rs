//! The server of an import: its address, and how this node authenticates to it.

use std::time::Duration;

use alknet_call::{
    CallError, Ctx, ErrorCode, ImportCallPermit, ImportCallPermits, ImportReservation, ImportShare,
};
use alknet_core::{Capability, CapabilityError, DialErrorKind, Secret};
use alknet_http_client::{HttpClient, HttpError, HttpRequestOptions, ResponseBody};
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Request, Response, StatusCode};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::form_urlencoded::byte_serialize;
use zeroize::Zeroizing;

use super::answer::of_http;
use super::limits::{ANSWER_BYTES_MAX, CHANGE_ANSWER_BYTES_MIN, TOKEN_BYTES_MAX};
use super::plan::RequestPlan;

/// The node stops using a token this long before it expires.
const TOKEN_MARGIN: Duration = Duration::from_secs(30);
/// The lifetime of a token whose server does not state one.
const TOKEN_TIME: Duration = Duration::from_secs(300);
/// The longest time of one call.
const CALL_TIME_MAX: Duration = Duration::from_secs(600);

/// The source of access tokens (RFC 6749 section 4.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSource {
    /// The endpoint, which comes from the configuration and never from a document.
    pub url: String,
    /// The scopes to request; an empty list requests the server's default.
    pub scopes: Vec<String>,
}

/// The server of one import, for all of its operations.
#[derive(Debug)]
pub(super) struct ImportServer {
    /// The name of the import, for errors.
    pub(super) import: String,
    pub(super) client: HttpClient,
    /// The base URL, without a slash at its end.
    pub(super) base: String,
    /// The name of the capability that authenticates the requests.
    pub(super) credential: Option<String>,
    pub(super) tokens: Option<OAuthTokens>,
    /// The memory that requests and responses count against.
    pub(super) memory: ImportShare,
    pub(super) permits: ImportCallPermits,
}

/// What one call holds of its server's resources until it ends.
pub(super) struct OpenApiCall {
    memory: ImportShare,
    /// Memory that is reserved for the response to a change.
    reservation: Option<ImportReservation>,
    _permit: ImportCallPermit,
}

impl OpenApiCall {
    /// The memory that the response counts against.
    pub(super) fn memory(&self) -> &ImportShare {
        let reserved = self.reservation.as_ref().map(ImportReservation::share);
        reserved.unwrap_or(&self.memory)
    }
}

/// The current access token.
pub(super) struct OAuthTokens {
    source: TokenSource,
    cached: Mutex<Option<OAuthToken>>,
}

struct OAuthToken {
    text: Secret,
    until: Instant,
}

impl OAuthTokens {
    pub(super) fn new(source: TokenSource) -> Self {
        Self {
            source,
            cached: Mutex::new(None),
        }
    }
}

impl std::fmt::Debug for OAuthTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("OAuthTokens")
            .field(&self.source.url)
            .finish()
    }
}

impl ImportServer {
    /// Takes the server's resources that a call needs. A change also reserves memory for its response: without the
    /// memory, the server would make the change and the caller would not learn its result.
    ///
    /// # Errors
    /// `OVERLOADED` if the requester, or all requesters together, hold as much as they may. Nothing was sent then.
    pub(super) fn begin(
        &self,
        plan: &RequestPlan,
        streams: bool,
        ctx: &Ctx,
    ) -> Result<OpenApiCall, CallError> {
        let permit = self.permits.take(ctx)?;
        let memory = self.memory.for_call(ctx);
        // A stream may last long, so it reserves no more than its first events need.
        let most = match streams {
            true => CHANGE_ANSWER_BYTES_MIN,
            false => ANSWER_BYTES_MAX,
        };
        let reserve = || memory.reserve(most, CHANGE_ANSWER_BYTES_MIN);
        let reservation = (!plan.is_query).then(reserve).transpose()?;
        Ok(OpenApiCall {
            memory,
            reservation,
            _permit: permit,
        })
    }

    /// Sends the request that `plan` makes of `input`, with the credential that the operation may use.
    pub(super) async fn ask(
        &self,
        plan: &RequestPlan,
        input: &serde_json::Value,
        streams: bool,
        (ctx, call): (&Ctx, &OpenApiCall),
    ) -> Result<Response<ResponseBody>, CallError> {
        let request = plan.request(&self.base, input)?;
        // A name that the input has once may occur many times in the body, so the body counts by itself. The
        // reservation is for the response.
        let mut claim = call.memory.claim();
        claim.becomes(request.body().len())?;
        let changes = (!plan.is_query).then_some(ctx);
        let mut exchange = match streams {
            true => HttpRequestOptions::streaming(),
            false => HttpRequestOptions::default(),
        };
        if let Some(deadline) = ctx.deadline().filter(|_| !streams) {
            let left = deadline.saturating_duration_since(Instant::now());
            exchange.whole = Some(left.min(CALL_TIME_MAX));
            exchange.head = left.min(CALL_TIME_MAX);
        }
        // A query is idempotent, so it may be sent twice (RFC 9110 section 9.2.2).
        exchange.retry = plan.is_query;
        let Some(name) = self.credential.as_ref().filter(|_| plan.is_ours) else {
            return self.send(request, &exchange, changes).await;
        };
        let credential = ctx.capabilities().get(name)?.clone();
        let Some(tokens) = &self.tokens else {
            let exchange = exchange.with_credential(Some(credential));
            return self.send(request, &exchange, changes).await;
        };
        let (token, fresh) = self.token(tokens, &credential, false).await?;
        let with = |token: &HeaderValue| {
            let mut request = request.clone();
            request.headers_mut().insert(AUTHORIZATION, token.clone());
            request
        };
        let answer = self.send(with(&token), &exchange, changes).await?;
        // A new token would be refused again, so only an older one is replaced.
        if answer.status() != StatusCode::UNAUTHORIZED || fresh {
            return Ok(answer);
        }
        // The server revoked the token before it expired. It refused the request, so it has changed nothing.
        if let Some(ctx) = changes {
            ctx.set_sent(false);
        }
        let (token, _) = self.token(tokens, &credential, true).await?;
        self.send(with(&token), &exchange, changes).await
    }

    /// Sends a request. For a change, `changes` is the call that makes it.
    async fn send(
        &self,
        request: Request<Bytes>,
        exchange: &HttpRequestOptions,
        changes: Option<&Ctx>,
    ) -> Result<Response<ResponseBody>, CallError> {
        if let Some(ctx) = changes {
            ctx.set_sent(true);
        }
        let answer = self.client.send_with(request, exchange).await;
        let is_unsent = answer.as_ref().is_err_and(HttpError::is_before_sending);
        if let Some(ctx) = changes.filter(|_| is_unsent) {
            ctx.set_sent(false);
        }
        answer.map_err(|error| self.not_sent(error))
    }

    /// The error of a request, which names the import if its server was not reached.
    fn not_sent(&self, error: HttpError) -> CallError {
        let kind = match &error {
            HttpError::Dial(error) => Some(error.kind),
            _ => None,
        };
        let mut error = of_http(error);
        if let Some(kind) = kind {
            let hint = match kind {
                DialErrorKind::Refused | DialErrorKind::Unreachable => "; is the server running?",
                _ => "",
            };
            error.message = format!("import '{}': {}{hint}", self.import, error.message);
        }
        error
    }

    /// The header with a valid token, and whether the token is new. An operation that may no longer use the
    /// credential gets no header, even if a token is cached.
    async fn token(
        &self,
        tokens: &OAuthTokens,
        credential: &Capability,
        refresh: bool,
    ) -> Result<(HeaderValue, bool), CallError> {
        // The lock is held while a token is fetched, so that other calls wait for the same token.
        let mut cached = tokens.cached.lock().await;
        // The credential may have been revoked since the token was fetched.
        if let Err(error) = credential.authorize(&mut |_, _, _| ()) {
            *cached = None;
            return Err(error.into());
        }
        let good = cached
            .as_ref()
            .filter(|token| !refresh && Instant::now() < token.until);
        if let Some(token) = good {
            return Ok((header(&token.text)?, false));
        }
        // If the node cannot get a new token, it does not use the old one again.
        *cached = None;
        let token = self.fetch(&tokens.source, credential).await?;
        let header = header(&token.text)?;
        *cached = Some(token);
        Ok((header, true))
    }

    async fn fetch(
        &self,
        source: &TokenSource,
        credential: &Capability,
    ) -> Result<OAuthToken, CallError> {
        let mut form = "grant_type=client_credentials".to_owned();
        if !source.scopes.is_empty() {
            form.push_str("&scope=");
            // Spaces separate the scopes (RFC 6749 section 3.3).
            form.extend(byte_serialize(source.scopes.join(" ").as_bytes()));
        }
        let request = Request::post(&source.url)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .body(form.into())
            .map_err(|error| CallError::internal(error.to_string()))?;
        let exchange = HttpRequestOptions::default().with_credential(Some(credential.clone()));
        let answer = self.client.send_with(request, &exchange).await;
        let answer = answer.map_err(of_http)?;
        if !answer.status().is_success() {
            let status = answer.status();
            let message =
                format!("the authorization server answered {status}; check the credential");
            return Err(CallError::unavailable(message));
        }
        let body = answer.into_body().collect_bounded(TOKEN_BYTES_MAX).await;
        let body = Zeroizing::new(body.map_err(of_http)?.to_vec());
        let no_token = "the authorization server's answer holds no bearer token";
        let granted: OAuthTokenResponse = serde_json::from_slice(&body)
            .map_err(|_| CallError::new(ErrorCode::Unavailable, no_token))?;
        // A client must not use a token of a type that it does not know (RFC 6749 section 7.1).
        if !granted.token_type.eq_ignore_ascii_case("bearer") {
            return Err(CallError::unavailable(no_token));
        }
        // The lifetime is only recommended in the response (RFC 6749 section 5.1).
        let lasts = granted.expires_in.map_or(TOKEN_TIME, capped);
        Ok(OAuthToken {
            text: Secret::new(granted.access_token.into_bytes()),
            until: Instant::now() + lasts.saturating_sub(TOKEN_MARGIN),
        })
    }
}

#[derive(Deserialize)]
struct OAuthTokenResponse {
    access_token: String,
    token_type: String,
    #[serde(default)]
    expires_in: Option<f64>,
}

/// The longest lifetime, in seconds, that the node accepts from a server.
const TOKEN_TIME_MAX: f64 = 86_400.0;

/// Limits a lifetime from a server, so that it is always a valid duration.
fn capped(seconds: f64) -> Duration {
    match seconds.is_nan() {
        true => Duration::ZERO,
        false => Duration::from_secs_f64(seconds.clamp(0.0, TOKEN_TIME_MAX)),
    }
}

fn header(token: &Secret) -> Result<HeaderValue, CallError> {
    let text = Zeroizing::new([b"Bearer ", token.expose()].concat());
    let mut header =
        HeaderValue::from_bytes(&text).map_err(|_| CallError::from(CapabilityError::Unusable))?;
    // Logs omit a sensitive header, and HPACK keeps it out of its tables (RFC 7541 section 7.1.3).
    header.set_sensitive(true);
    Ok(header)
}
