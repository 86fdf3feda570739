//! The HTTP client that the assembly provides. This crate has none of its own.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;

use alknet_core::{BoxError, BoxFuture};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Body;
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};

use super::retry_after::{self, RetryAfter};

/// Sends one HTTPS request and returns the whole response.
///
/// The implementation verifies the server against the authorities that the node trusts, may refuse a body over 1 MiB,
/// and follows no redirects.
pub trait AcmeTransport: Send + Sync + 'static {
    /// Sends `request`, whose URI is absolute.
    fn send(
        &self,
        request: Request<Bytes>,
    ) -> BoxFuture<'static, Result<Response<Bytes>, BoxError>>;
}

/// The transport with the interface of the protocol's library.
pub(super) struct InstantAcmeTransport {
    pub(super) transport: Arc<dyn AcmeTransport>,
    /// Gets the pauses of refusals, which the library does not pass on.
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
            // The library takes every response to these requests for a success, and every refusal of the others for a
            // problem document.
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
            retry_after.record(parts.status, &parts.headers, &body);
            let refused = retry_after::is_refusal(parts.status);
            if refused && (plain || retry_after::problem(&body).is_null()) {
                let refusal_text = retry_after::refusal_text(parts.status, &body);
                return Err(instant_acme::Error::Other(refusal_text.into()));
            }
            Ok(BytesResponse {
                parts,
                body: Box::new(body),
            })
        })
    }
}
