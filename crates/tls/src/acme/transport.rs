//! The HTTP client that the assembly gives us: this crate brings none of its own.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;

use alknet_core::{BoxError, BoxFuture};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Body;
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};

use super::retry_after::{self, RetryAfter};

/// Sends one HTTPS request and returns the whole answer.
///
/// The server must be verified against the authorities the node trusts; a body over 1 MiB may be
/// refused. Redirects are not to be followed.
pub trait AcmeTransport: Send + Sync + 'static {
    /// Sends `request`, whose URI is absolute.
    fn send(
        &self,
        request: Request<Bytes>,
    ) -> BoxFuture<'static, Result<Response<Bytes>, BoxError>>;
}

/// The transport as the protocol's library wants it.
pub(super) struct InstantAcmeTransport {
    pub(super) transport: Arc<dyn AcmeTransport>,
    /// What refusals say that the library does not pass on.
    pub(super) retry_after: Arc<RetryAfter>,
}

type AcmeResponse = Result<BytesResponse, instant_acme::Error>;

impl HttpClient for InstantAcmeTransport {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = AcmeResponse> + Send>> {
        let transport = Arc::clone(&self.transport);
        let retry_after = Arc::clone(&self.retry_after);
        Box::pin(async move {
            let (parts, mut body) = request.into_parts();
            // The library takes every answer to these for what it asked for, and to others every refusal
            // for a problem document.
            let plain = parts.method != Method::POST;
            let mut whole = Vec::new();
            while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                let Ok(frame) = frame;
                whole.extend(frame.into_data().unwrap_or_default());
            }
            let answer = transport
                .send(Request::from_parts(parts, whole.into()))
                .await
                .map_err(instant_acme::Error::Other)?;
            let (parts, body) = answer.into_parts();
            retry_after.hear(parts.status, &parts.headers, &body);
            let refused = retry_after::is_refusal(parts.status);
            if refused && (plain || retry_after::problem(&body).is_null()) {
                let said = retry_after::said(parts.status, &body);
                return Err(instant_acme::Error::Other(said.into()));
            }
            Ok(BytesResponse {
                parts,
                body: Box::new(body),
            })
        })
    }
}
