//! This node as a server of tools.

mod arguments;
mod content;
mod handler;
mod pinned;
mod schemas;
mod tools;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use alknet_core::{BoxError, MountBody};
use alknet_gateway::{ApiError, Code, Gateway, HttpCaller, HttpIngress, RequestId, RequestText};
use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Collected, Full, LengthLimitError, Limited};
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};

use crate::limits::REQUEST_BYTES_MAX;
use handler::McpToolHandler;
use pinned::PinnedTools;

pub use content::CONTENT_KEYWORD;

/// The challenge that asks the client for a token (RFC 6750 section 3).
const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"alknet\"");

/// The administrator's settings for the tools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct McpOptions {
    /// Operations that are tools of their own, with or without the leading slash.
    pub tools: Vec<String>,
    /// Host names, with or without a port, that requests may name. `None` if the server that carries this one checks
    /// them itself.
    pub hosts: Option<Vec<String>>,
    /// Origins of web pages that may send requests from a browser; the node refuses requests of any other origin.
    pub origins: Vec<String>,
}

/// Responds to requests at `/mcp`.
pub struct McpServer {
    gateway: Arc<Gateway>,
    now: ArcSwap<McpService>,
}

/// The state that the options determine.
struct McpService {
    service: StreamableHttpService<McpToolHandler, NeverSessionManager>,
    left_out: Vec<String>,
}

impl McpServer {
    /// Makes a server for the operations of `gateway`.
    #[must_use]
    pub fn new(gateway: Arc<Gateway>, options: McpOptions) -> Self {
        let now = ArcSwap::from_pointee(serving(&gateway, options));
        Self { gateway, now }
    }

    /// Replaces the options; requests in progress finish with the old ones.
    pub fn set_options(&self, options: McpOptions) {
        self.now.store(Arc::new(serving(&self.gateway, options)));
    }

    /// The operations of the options that cannot be tools, each with the reason, for the node's list of problems.
    #[must_use]
    pub fn left_out(&self) -> Vec<String> {
        self.now.load().left_out.clone()
    }

    /// Responds to one request, whose [`HttpCaller`] is among its extensions. A request without a caller, or whose
    /// caller has no identity, gets a challenge for a token.
    ///
    /// If the server that carries this one has already read the body and counted its bytes, it puts a [`RequestText`]
    /// into the extensions.
    pub async fn respond<B>(&self, mut request: Request<B>) -> Response<MountBody>
    where
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let caller = request.extensions_mut().remove::<HttpCaller>();
        let Some(caller) = caller.filter(|caller| caller.identity.is_some()) else {
            return challenge();
        };
        let id = caller.request_id;
        request
            .extensions_mut()
            .insert(caller.via(HttpIngress::Mcp));
        let request = match without_arguments(request).await {
            Ok(request) => request,
            Err(error) => return refusal(&error, &id),
        };
        // The whole request uses one state of the options.
        let now = self.now.load_full();
        let mut answer = now.service.handle(request).await;
        let headers = answer.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        answer.map(|body| MountBody::new(body.map_err(|never| -> BoxError { match never {} })))
    }
}

impl fmt::Debug for McpServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("McpServer").finish_non_exhaustive()
    }
}

/// The request for the library, with the arguments among the extensions.
async fn without_arguments<B>(request: Request<B>) -> Result<Request<Full<Bytes>>, ApiError>
where
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (mut parts, body) = request.into_parts();
    let upload = match parts.extensions.remove::<RequestText>() {
        Some(upload) => upload,
        None => read(body).await?.into(),
    };
    let (text, arguments) = arguments::split(upload)?;
    if let Some(arguments) = arguments {
        parts.extensions.insert(arguments);
    }
    // The header no longer matches the shortened body.
    parts.headers.remove(CONTENT_LENGTH);
    Ok(Request::from_parts(parts, Full::new(text)))
}

async fn read<B>(body: B) -> Result<Bytes, ApiError>
where
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    let read = Limited::new(body, REQUEST_BYTES_MAX).collect().await;
    let read = read.map(Collected::to_bytes);
    read.map_err(|error| match error.is::<LengthLimitError>() {
        true => ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            Code::PayloadTooLarge,
            format!("the body has more than {REQUEST_BYTES_MAX} bytes"),
        ),
        false => ApiError::malformed("", format!("the body breaks off: {error}")),
    })
}

fn serving(gateway: &Arc<Gateway>, options: McpOptions) -> McpService {
    let (pinned, left_out) = PinnedTools::new(&options.tools);
    let tools = McpToolHandler::new(Arc::clone(gateway), Arc::new(pinned));
    // Older versions of the protocol can work without sessions, and the newest has none.
    let config = StreamableHttpServerConfig::default()
        .with_legacy_session_mode(false)
        .with_json_response(true)
        .with_max_request_body_bytes(REQUEST_BYTES_MAX)
        .with_allowed_origins(options.origins.iter().map(|origin| exact(origin)))
        .enforce_origin_validation();
    let config = match options.hosts {
        None => config.disable_allowed_hosts(),
        // The library admits every host if the list is empty.
        Some(hosts) if hosts.is_empty() => config.with_allowed_hosts([NO_HOST]),
        Some(hosts) => config.with_allowed_hosts(hosts),
    };
    let sessions = Arc::new(NeverSessionManager::default());
    McpService {
        service: StreamableHttpService::new(move || Ok(tools.clone()), sessions, config),
        left_out,
    }
}

/// A name that is reserved and that no host has (RFC 6761 section 6.4).
const NO_HOST: &str = "no-host.invalid";

/// The origin with the default port of its scheme. The library would take an origin without a port to mean all ports.
fn exact(origin: &str) -> String {
    let port = match origin.split_once("://") {
        Some(("https", host)) if !has_port(host) => ":443",
        Some(("http", host)) if !has_port(host) => ":80",
        _ => "",
    };
    format!("{origin}{port}")
}

fn has_port(host: &str) -> bool {
    host.rsplit_once(':')
        .is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

fn challenge() -> Response<MountBody> {
    let error = ApiError::unauthenticated(
        "a token is needed here: send the header 'Authorization: Bearer alk_…'",
    );
    let mut answer = refusal(&error, &RequestId::next());
    answer.headers_mut().insert(WWW_AUTHENTICATE, CHALLENGE);
    answer
}

fn refusal(error: &ApiError, id: &RequestId) -> Response<MountBody> {
    let body = Bytes::from(error.body(id).to_string());
    let body = Full::new(body).map_err(|never| -> BoxError { match never {} });
    let mut answer = Response::new(MountBody::new(body));
    *answer.status_mut() = error.status;
    let headers = answer.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}
