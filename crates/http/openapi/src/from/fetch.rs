//! Fetches documents that are not files from the address in the configuration.

use std::sync::Arc;

use alknet_core::Dialer;
use alknet_http_client::{HttpError, HttpRequestOptions};
use bytes::Bytes;
use http::header::ACCEPT;
use http::{Request, StatusCode};
use thiserror::Error;

use super::limits::DOCUMENT_BYTES_MAX;
use super::{BaseUrlError, OpenApiOptions, address, client};

/// The reason why a document was not fetched. All reasons but the first may be gone at the next attempt.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The address of the document or of the server is invalid.
    #[error(transparent)]
    Address(#[from] BaseUrlError),
    /// The document did not arrive, or is longer than a document may be.
    #[error("the document at {url} cannot be fetched: {why}")]
    Http {
        /// The URL of the document.
        url: String,
        /// The error that caused this one.
        why: HttpError,
    },
    /// The server responds with another status than a successful one.
    #[error("the document at {url} cannot be fetched: the server answered {status}")]
    Status {
        /// The URL of the document.
        url: String,
        /// The status of the response.
        status: StatusCode,
    },
}

/// Fetches the document at `url` by the rules for the server of `options`: the same addresses may be dialled, and the
/// same keys are trusted. The request has the import's credential only if that server has the document too. Only
/// operations request access tokens.
///
/// # Errors
/// The document cannot be fetched.
pub async fn fetch_document(
    url: &str,
    options: &OpenApiOptions,
    dialer: Arc<dyn Dialer>,
) -> Result<Bytes, FetchError> {
    let at = address(url, options.plain)?;
    let (client, server) = client(options, dialer, Some(&at))?;
    // The credential of a token source is for that source alone, not for the document's server.
    let is_ours = at == server && options.tokens.is_none();
    let credential = options.credential.clone().filter(|_| is_ours);
    let request = Request::get(url)
        .header(ACCEPT, "application/json, application/yaml, */*")
        .body(Bytes::new())
        .map_err(|_| BaseUrlError(url.chars().take(200).collect()))?;
    let exchange = HttpRequestOptions {
        retry: true,
        ..HttpRequestOptions::default()
    };
    let failed = |why| FetchError::Http {
        url: url.to_owned(),
        why,
    };
    let exchange = exchange.with_credential(credential);
    let answer = client.send_with(request, &exchange).await.map_err(failed)?;
    if !answer.status().is_success() {
        return Err(FetchError::Status {
            url: url.to_owned(),
            status: answer.status(),
        });
    }
    let body = answer.into_body().collect_bounded(DOCUMENT_BYTES_MAX).await;
    body.map_err(failed)
}
