//! An image that a server has, read as it arrives.

use std::io::{self, Read};
use std::sync::Arc;

use alknet_core::{DialAllowList, PeerAddr};
use alknet_endpoint::EndpointDialer;
use alknet_http_client::{ClientOptions, HttpClient, HttpRequestOptions, Redirects, ResponseBody};
use bytes::{Buf, Bytes};
use http::header::CONTENT_LENGTH;
use http::{Request, StatusCode, Uri};
use http_body_util::BodyExt;
use tokio::runtime::Runtime;

use crate::cli::{CommandError, CommandExit, chain_text};

/// The body of a response, for a reader that waits.
pub(super) struct ImageDownload {
    runtime: Runtime,
    body: ResponseBody,
    rest: Bytes,
}

/// Whether a source is a URL of a server.
pub(super) fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

impl ImageDownload {
    /// Requests the file. Returns it with its size, if the server says one.
    pub(super) fn open(url: &str) -> Result<(Self, Option<u64>), CommandError> {
        let uri: Uri = url
            .parse()
            .map_err(|error| CommandError::usage(format!("{url} is no URL: {error}")))?;
        let options = ClientOptions {
            // A person names the server, which may be one of the own network.
            reach: DialAllowList::Anywhere,
            plain: plain_server(&uri).into_iter().collect(),
            // Releases lie on other servers than the pages that name them. A plain server is allowed only as the first.
            redirects: Redirects::Any,
            ..ClientOptions::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| CommandError::local(format!("cannot start the runtime: {error}")))?;
        let request = Request::get(uri).body(Bytes::new());
        let request = request.map_err(|error| CommandError::usage(format!("{url}: {error}")))?;
        let answer = runtime.block_on(async {
            let dialer = Arc::new(EndpointDialer::new(None));
            let client = HttpClient::new(dialer, options);
            client
                .send_with(request, &HttpRequestOptions::streaming())
                .await
        });
        let unreachable =
            |text: String| CommandError::new(CommandExit::Unreachable, "UNAVAILABLE", text);
        let answer = answer.map_err(|error| unreachable(chain_text(&error.into())))?;
        if answer.status() != StatusCode::OK {
            return Err(unreachable(format!(
                "{url}: the server answers {}",
                answer.status()
            )));
        }
        let bytes = answer.headers().get(CONTENT_LENGTH);
        let bytes = bytes.and_then(|bytes| bytes.to_str().ok()?.parse().ok());
        let download = Self {
            runtime,
            body: answer.into_body(),
            rest: Bytes::new(),
        };
        Ok((download, bytes))
    }
}

/// The server of a URL without TLS.
fn plain_server(uri: &Uri) -> Option<PeerAddr> {
    let authority = uri
        .authority()
        .filter(|_| uri.scheme_str() == Some("http"))?;
    let port = authority.port_u16().unwrap_or(80);
    format!("{}:{port}", authority.host()).parse().ok()
}

impl Read for ImageDownload {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            let frame = self.runtime.block_on(self.body.frame());
            match frame {
                None => return Ok(0),
                Some(Err(error)) => return Err(io::Error::other(error)),
                // Trailers are no part of the body.
                Some(Ok(frame)) => self.rest = frame.into_data().unwrap_or_default(),
            }
        }
        let bytes = buffer.len().min(self.rest.len());
        self.rest.copy_to_slice(&mut buffer[..bytes]);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_url_without_tls_names_a_plain_server() {
        let server = |url: &str| {
            let uri: Uri = url.parse().expect("a URL");
            plain_server(&uri).map(|server| server.address())
        };
        assert_eq!(
            server("http://192.0.2.7/a"),
            Some("192.0.2.7:80".to_owned())
        );
        assert_eq!(server("http://[::1]:8080/a"), Some("[::1]:8080".to_owned()));
        assert_eq!(server("https://example.org/a"), None);
        assert!(is_url("https://example.org/a") && !is_url("alknet.raw") && !is_url("-"));
    }
}
