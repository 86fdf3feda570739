//! Documents that are not files: they are fetched from where the configuration says.

use std::sync::Arc;

use alknet_core::Dialer;
use alknet_http_client::{HttpError, HttpRequestOptions};
use bytes::Bytes;
use http::header::ACCEPT;
use http::{Request, StatusCode};
use thiserror::Error;

use super::limits::DOCUMENT_BYTES_MAX;
use super::{BaseUrlError, OpenApiOptions, client, place};

/// Why a document was not fetched. All but the first may be otherwise at the next try.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The document's address, or that of the server, is not valid.
    #[error(transparent)]
    Address(#[from] BaseUrlError),
    /// It did not come, or is longer than a document may be.
    #[error("the document at {url} cannot be fetched: {why}")]
    Http {
        /// Where it should be.
        url: String,
        /// Error that caused this one.
        why: HttpError,
    },
    /// The server answers with something else.
    #[error("the document at {url} cannot be fetched: the server answered {status}")]
    Status {
        /// Where it should be.
        url: String,
        /// With what.
        status: StatusCode,
    },
}

/// Fetches the document at `url` by the rules that count for the server of `options`: the same addresses are
/// dialled, and the same keys believed. It is asked for with the import's credential where it is that server's
/// own; access tokens are asked for by operations only.
///
/// # Errors
/// It cannot be had.
pub async fn fetch_document(
    url: &str,
    options: &OpenApiOptions,
    dialer: Arc<dyn Dialer>,
) -> Result<Bytes, FetchError> {
    let at = place(url, options.plain)?;
    let (client, server) = client(options, dialer, Some(&at))?;
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
