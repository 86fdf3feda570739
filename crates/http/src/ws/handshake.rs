//! Checks who may open a WebSocket, and responds to the handshake: RFC 6455 section 4 on HTTP/1.1, RFC 8441 on
//! HTTP/2.

use alknet_call::ErrorCode;
use alknet_gateway::ApiError;
use aws_lc_rs::digest;
use data_encoding::BASE64;
use http::header::{
    CONNECTION, HOST, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};

/// The subprotocol: the call protocol, with one message for each event.
const PROTOCOL: &str = "alknet.call";

/// The prefix of a subprotocol's name that is a token instead: a web page can set no other header.
const BEARER: &str = "alknet.bearer.";

/// The GUID of the handshake (RFC 6455 section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The only version of the protocol.
const VERSION: &str = "13";

/// The bytes of a handshake's key.
const KEY_BYTES: usize = 16;

/// The token in the list of subprotocols, which the node never logs.
///
/// # Errors
/// The list has several tokens, so the node cannot know which counts.
pub(crate) fn bearer(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let mut tokens = listed(headers, &SEC_WEBSOCKET_PROTOCOL)
        .filter_map(|protocol| protocol.strip_prefix(BEARER));
    match (tokens.next(), tokens.next()) {
        (token, None) => Ok(token),
        (_, Some(_)) => Err(bad(
            "there is more than one token in Sec-WebSocket-Protocol",
        )),
    }
}

fn is_extended<B>(request: &Request<B>) -> bool {
    let protocol = request.extensions().get::<hyper::ext::Protocol>();
    request.method() == Method::CONNECT && protocol.is_some_and(|it| it.as_str() == "websocket")
}

/// A request that may become a WebSocket.
#[derive(Debug)]
pub(super) struct WsUpgrade {
    /// The value of `Sec-WebSocket-Accept`, which only HTTP/1.1 has.
    accept: Option<HeaderValue>,
    /// Whether the client requested the subprotocol by name.
    names_protocol: bool,
}

impl WsUpgrade {
    /// The response that accepts the handshake.
    pub(super) fn response<B>(self, body: B) -> Response<B> {
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        if self.names_protocol {
            let name = HeaderValue::from_static(PROTOCOL);
            headers.insert(SEC_WEBSOCKET_PROTOCOL, name);
        }
        if let Some(accept) = self.accept {
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        }
        response
    }
}

/// Checks everything except the caller.
pub(super) fn check<B>(request: &Request<B>, origins: &[String]) -> Result<WsUpgrade, ApiError> {
    let headers = request.headers();
    check_origin(request, origins)?;
    let extended = matches!(request.version(), Version::HTTP_2 | Version::HTTP_3);
    let is_upgrade = if extended {
        is_extended(request)
    } else {
        request.method() == Method::GET
            && has(headers, &UPGRADE, "websocket")
            && has(headers, &CONNECTION, "upgrade")
    };
    let versions: Vec<_> = listed(headers, &SEC_WEBSOCKET_VERSION).collect();
    if !is_upgrade || versions != [VERSION] {
        return Err(upgrade_required());
    }
    // HTTP/2 has no key: its own framing shows that the server supports WebSocket (RFC 8441 section 5).
    let accept = if extended {
        None
    } else {
        Some(accept(headers)?)
    };
    let mut protocols = listed(headers, &SEC_WEBSOCKET_PROTOCOL).peekable();
    let none = protocols.peek().is_none();
    let names_protocol = protocols.any(|name| name == PROTOCOL);
    if !none && !names_protocol {
        return Err(bad("the subprotocol here is alknet.call"));
    }
    Ok(WsUpgrade {
        accept,
        names_protocol,
    })
}

/// Adds the headers that a response with this status needs.
pub(super) fn add_headers(headers: &mut HeaderMap, status: StatusCode) {
    // The client learns the supported version (RFC 6455 section 4.4).
    if status == StatusCode::UPGRADE_REQUIRED {
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    }
}

/// Refuses pages of other sites. A browser sends the page's origin, which other clients need not do.
fn check_origin<B>(request: &Request<B>, origins: &[String]) -> Result<(), ApiError> {
    let Some(origin) = request.headers().get(ORIGIN) else {
        return Ok(());
    };
    let origin = origin.to_str().unwrap_or_default();
    let ours = host(request).is_some_and(|host| is_same(origin, host));
    if ours || origins.iter().any(|listed| listed == origin) {
        return Ok(());
    }
    let why = "pages of this origin may not come in; see http.cors.origins";
    Err(ApiError::new(
        StatusCode::FORBIDDEN,
        ErrorCode::Forbidden,
        why,
    ))
}

fn host<B>(request: &Request<B>) -> Option<&str> {
    let authority = request.uri().authority().map(http::uri::Authority::as_str);
    authority.or_else(|| text(request.headers(), &HOST))
}

/// Whether an origin is this node, whose pages use TLS only.
fn is_same(origin: &str, host: &str) -> bool {
    let Some(theirs) = origin.strip_prefix("https://") else {
        return false;
    };
    // The default port may be present or absent.
    let plain = |host: &str| {
        host.strip_suffix(":443")
            .unwrap_or(host)
            .to_ascii_lowercase()
    };
    plain(theirs) == plain(host)
}

/// The value of `Sec-WebSocket-Accept` (RFC 6455 section 4.2.2).
fn accept(headers: &HeaderMap) -> Result<HeaderValue, ApiError> {
    let key = text(headers, &SEC_WEBSOCKET_KEY).unwrap_or_default();
    let bytes = BASE64.decode(key.as_bytes()).unwrap_or_default();
    if bytes.len() != KEY_BYTES || headers.get_all(SEC_WEBSOCKET_KEY).iter().count() != 1 {
        return Err(bad("Sec-WebSocket-Key is 16 bytes in base64"));
    }
    // SHA-1 protects nothing here: the value only shows that the server supports WebSocket (RFC 6455 section 1.3).
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key.as_bytes());
    hash.update(GUID);
    let accept = BASE64.encode(hash.finish().as_ref());
    HeaderValue::from_str(&accept).map_err(|_| bad("Sec-WebSocket-Key is 16 bytes in base64"))
}

fn bad(why: &str) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::InvalidInput, why)
}

fn upgrade_required() -> ApiError {
    let why = "this path is for WebSocket, version 13";
    ApiError::new(StatusCode::UPGRADE_REQUIRED, ErrorCode::InvalidInput, why)
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// The members of a list that may extend over several headers.
fn listed<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter();
    let values = values.filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|member| !member.is_empty())
}

fn has(headers: &HeaderMap, name: &HeaderName, member: &str) -> bool {
    listed(headers, name).any(|value| value.eq_ignore_ascii_case(member))
}
