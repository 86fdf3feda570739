//! The server behind an import: where it is, and how this node makes itself known to it.

use std::time::Duration;

use alknet_call::{
    CallError, Ctx, ErrorCode, ImportCallPermit, ImportCallPermits, ImportReservation, ImportShare,
};
use alknet_core::{Capability, CapabilityError, Secret};
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

/// Before its end a token is no longer used.
const TOKEN_MARGIN: Duration = Duration::from_secs(30);
/// How long a token is used that does not say how long it lasts.
const TOKEN_TIME: Duration = Duration::from_secs(300);
/// Longest time of one call.
const CALL_TIME_MAX: Duration = Duration::from_secs(600);

/// Where access tokens come from (RFC 6749 section 4.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSource {
    /// The endpoint, from the configuration and never from a document.
    pub url: String,
    /// What is asked for; empty for what the server gives by itself.
    pub scopes: Vec<String>,
}

/// How operations of one import reach their server.
#[derive(Debug)]
pub(super) struct ImportServer {
    pub(super) client: HttpClient,
    /// Without a slash at its end.
    pub(super) base: String,
    /// The name of the capability that makes requests the node's.
    pub(super) credential: Option<String>,
    pub(super) tokens: Option<OAuthTokens>,
    /// What requests and answers count against.
    pub(super) memory: ImportShare,
    pub(super) places: ImportCallPermits,
}

/// What one call has of its server until it is over.
pub(super) struct OpenApiCall {
    memory: ImportShare,
    /// Kept free for the answer to a change.
    reservation: Option<ImportReservation>,
    _place: ImportCallPermit,
}

impl OpenApiCall {
    /// What the answer counts against.
    pub(super) fn memory(&self) -> &ImportShare {
        let reserved = self.reservation.as_ref().map(ImportReservation::share);
        reserved.unwrap_or(&self.memory)
    }
}

/// The access token of the moment.
pub(super) struct OAuthTokens {
    source: TokenSource,
    held: Mutex<Option<OAuthToken>>,
}

struct OAuthToken {
    text: Secret,
    until: Instant,
}

impl OAuthTokens {
    pub(super) fn new(source: TokenSource) -> Self {
        Self {
            source,
            held: Mutex::new(None),
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
    /// Takes what a call needs of the server's share. For a change that includes room for the answer: a server that
    /// has made a change and whose answer finds no room leaves the caller without a word of it.
    ///
    /// # Errors
    /// `OVERLOADED` where its requester, or all, have what they may. Nothing was sent.
    pub(super) fn begin(
        &self,
        plan: &RequestPlan,
        streams: bool,
        ctx: &Ctx,
    ) -> Result<OpenApiCall, CallError> {
        let place = self.places.take(ctx)?;
        let memory = self.memory.for_call(ctx);
        // A stream may last, and keeps no more free than its first events need.
        let most = match streams {
            true => CHANGE_ANSWER_BYTES_MIN,
            false => ANSWER_BYTES_MAX,
        };
        let reserve = || memory.reserve(most, CHANGE_ANSWER_BYTES_MIN);
        let reservation = (!plan.is_query).then(reserve).transpose()?;
        Ok(OpenApiCall {
            memory,
            reservation,
            _place: place,
        })
    }

    /// Sends what `plan` makes of `input`, with the credential that the operation may use.
    pub(super) async fn ask(
        &self,
        plan: &RequestPlan,
        input: &serde_json::Value,
        streams: bool,
        (ctx, call): (&Ctx, &OpenApiCall),
    ) -> Result<Response<ResponseBody>, CallError> {
        let request = plan.request(&self.base, input)?;
        // Names that the input has once may be in it many times. What is reserved is for the answer.
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
        // RFC 9110 section 9.2.2: without harm it may be sent twice.
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
        // One that was got just now would be refused again.
        if answer.status() != StatusCode::UNAUTHORIZED || fresh {
            return Ok(answer);
        }
        // Taken back before its time, so that the server has done nothing.
        if let Some(ctx) = changes {
            ctx.set_sent(false);
        }
        let (token, _) = self.token(tokens, &credential, true).await?;
        self.send(with(&token), &exchange, changes).await
    }

    /// Sends a request, which is a change where `changes` is the call that makes it.
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
        let unsent = answer.as_ref().is_err_and(HttpError::is_before_sending);
        if let Some(ctx) = changes.filter(|_| unsent) {
            ctx.set_sent(false);
        }
        answer.map_err(of_http)
    }

    /// The header with a valid token, and whether it was got just now. An operation that may no longer
    /// use the credential gets no header, whatever token is held.
    async fn token(
        &self,
        tokens: &OAuthTokens,
        credential: &Capability,
        refresh: bool,
    ) -> Result<(HeaderValue, bool), CallError> {
        // Held while a token is fetched: who needs one meanwhile waits for the same.
        let mut held = tokens.held.lock().await;
        if let Err(error) = credential.authorize(&mut |_, _, _| ()) {
            *held = None;
            return Err(error.into());
        }
        let good = held
            .as_ref()
            .filter(|token| !refresh && Instant::now() < token.until);
        if let Some(token) = good {
            return Ok((header(&token.text)?, false));
        }
        // If the next one cannot be got, the old one is not used again.
        *held = None;
        let token = self.fetch(&tokens.source, credential).await?;
        let header = header(&token.text)?;
        *held = Some(token);
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
            // RFC 6749 section 3.3: scopes are parted by spaces.
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
        let wrong = "the authorization server's answer holds no bearer token";
        let granted: OAuthTokenResponse = serde_json::from_slice(&body)
            .map_err(|_| CallError::new(ErrorCode::Unavailable, wrong))?;
        // RFC 6749 section 7.1: what is of another type is not to be used.
        if !granted.token_type.eq_ignore_ascii_case("bearer") {
            return Err(CallError::unavailable(wrong));
        }
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

/// Longest time that any token is believed to last.
const TOKEN_TIME_MAX: f64 = 86_400.0;

/// No number of a server makes a time that cannot be reckoned with.
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
    // Left out of logs, and of the tables of HPACK (RFC 7541 section 7.1.3).
    header.set_sensitive(true);
    Ok(header)
}
