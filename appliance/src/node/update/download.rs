//! Bundles from servers: streamed to PID 1, and taken up again where a connection broke.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use alknet_core::{Backoff, DialAllowList, Dialer};
use alknet_http_client::{
    ClientOptions, HttpClient, HttpError, HttpRequestOptions, Redirects, ResponseBody,
};
use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, RANGE};
use http::{Request, StatusCode, Uri};
use http_body_util::BodyExt;

use super::piece_pacing::PIECE_BYTES_MAX;
use super::session::{
    SESSION_TIME_MAX, SessionTurn, StagingError, StagingOutcome, StagingRequest, StagingSession,
    StagingSessions,
};

/// How often in a row a download that gets no further is taken up again.
const TRIES_MAX: u32 = 8;
/// First and longest pause before that.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The most characters of an address.
const URL_CHARS_MAX: usize = 2048;

/// Why a bundle does not come from a server. The text is one line.
#[derive(Debug)]
pub(super) enum DownloadError {
    /// The text is no address that is asked.
    Address(String),
    /// The server cannot be reached, or what it sends is no HTTP.
    Http(HttpError),
    /// The server does not say how long the bundle is.
    NoLength,
    /// The server has something else now than when the download began.
    Other,
    /// Another status than that of success.
    Status(StatusCode),
    /// The whole download took too long.
    TooSlow,
}

impl fmt::Display for DownloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(why) => f.write_str(why),
            Self::Http(error) => error.fmt(f),
            Self::NoLength => f.write_str("the server does not say how long the bundle is"),
            Self::Other => f.write_str("the bundle changed on the server during the download"),
            Self::Status(status) => write!(f, "the server answers {status}"),
            Self::TooSlow => write!(
                f,
                "the bundle did not come within {} h",
                SESSION_TIME_MAX.as_secs() / 3600
            ),
        }
    }
}

impl From<HttpError> for DownloadError {
    fn from(error: HttpError) -> Self {
        Self::Http(error)
    }
}

/// What downloads bundles. Clones share it.
#[derive(Clone)]
pub(super) struct BundleDownloader {
    dialer: Arc<dyn Dialer>,
    /// Settings of every client. Tests allow a server without TLS.
    options: ClientOptions,
    pause: (Duration, Duration),
    /// The address that is asked in the place of every other one, or the folder with the files of their names.
    #[cfg(test)]
    instead: Arc<std::sync::OnceLock<String>>,
}

/// A bundle that a server begins to send.
pub(super) struct OpenedBundle {
    client: HttpClient,
    url: Uri,
    /// The whole length.
    pub(super) bytes: u64,
    body: ResponseBody,
}

impl BundleDownloader {
    pub(super) fn new(dialer: Arc<dyn Dialer>) -> Self {
        let options = ClientOptions {
            // Servers of releases lead to the servers that have the files. The client follows to https only.
            redirects: Redirects::Any,
            ..ClientOptions::default()
        };
        Self {
            dialer,
            options,
            pause: PAUSE,
            #[cfg(test)]
            instead: Arc::default(),
        }
    }

    /// Asks this address in the place of every other one.
    #[cfg(test)]
    pub(super) fn instead(&self, url: String) {
        self.instead.set(url).expect("once");
    }

    #[cfg(test)]
    fn redirected(&self, url: &str) -> String {
        match (self.instead.get(), url.rsplit_once('/')) {
            (Some(folder), Some((_, name))) if folder.ends_with('/') => format!("{folder}{name}"),
            (Some(other), _) => other.clone(),
            (None, _) => url.to_owned(),
        }
    }

    /// A downloader that also asks this server without TLS, and makes no pauses.
    #[cfg(test)]
    pub(super) fn with_plain(mut self, server: alknet_core::PeerAddr) -> Self {
        self.options.plain.push(server);
        self.pause = (Duration::ZERO, Duration::ZERO);
        self
    }

    /// Asks for a bundle. `anywhere` also permits addresses that are not of the public Internet.
    pub(super) async fn open(
        &self,
        url: &str,
        anywhere: bool,
    ) -> Result<OpenedBundle, DownloadError> {
        #[cfg(test)]
        let url = &self.redirected(url);
        let url = checked(url)?;
        let mut options = self.options.clone();
        if anywhere {
            options.reach = DialAllowList::Anywhere;
        }
        let client = HttpClient::new(Arc::clone(&self.dialer), options);
        let (headers, body) = ask(&client, &url, 0).await?;
        let bytes = length(&headers).ok_or(DownloadError::NoLength)?;
        Ok(OpenedBundle {
            client,
            url,
            bytes,
            body,
        })
    }

    /// Begins a session with what the server sends, and goes on in a task of its own.
    pub(super) fn begin(
        &self,
        sessions: &StagingSessions,
        bundle: OpenedBundle,
        (request, turn): (StagingRequest, Option<SessionTurn>),
    ) -> Result<Arc<StagingSession>, StagingError> {
        let session = sessions.begin(request, turn)?;
        let sending = Sending {
            sessions: sessions.clone(),
            session: Arc::clone(&session),
            pause: self.pause,
        };
        tokio::spawn(sending.run(bundle));
        Ok(session)
    }
}

/// The address, if it may be asked.
fn checked(url: &str) -> Result<Uri, DownloadError> {
    let refused = |why: &str| DownloadError::Address(format!("'{}' {why}", shortened(url)));
    if url.chars().count() > URL_CHARS_MAX {
        return Err(refused("is too long for an address"));
    }
    let uri: Uri = url.parse().map_err(|_| refused("is no address"))?;
    // The address is in the log and in answers, which must not have a password.
    let has_user = uri.authority().is_some_and(|it| it.as_str().contains('@'));
    match has_user {
        true => Err(refused("has a user, which is not sent")),
        false => Ok(uri),
    }
}

/// An address as others may see it: without a user, a query and a fragment, in which secrets can be.
pub(super) fn shortened(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let plain = match (url.find("://"), url[..end].rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => {
            format!("{}…{}", &url[..scheme + 3], &url[at..end])
        }
        _ => url[..end].to_owned(),
    };
    plain.chars().take(200).collect()
}

/// Asks for the bytes from `from` on.
async fn ask(
    client: &HttpClient,
    url: &Uri,
    from: u64,
) -> Result<(HeaderMap, ResponseBody), DownloadError> {
    let mut request = Request::get(url.clone()).header(ACCEPT_ENCODING, "identity");
    if from > 0 {
        request = request.header(RANGE, format!("bytes={from}-"));
    }
    let request = request.body(Bytes::new());
    let request = request.map_err(|error| DownloadError::Address(error.to_string()))?;
    // The download as a whole has a limit of its own, and silence ends the body.
    let options = HttpRequestOptions {
        whole: None,
        ..HttpRequestOptions::default()
    };
    let answer = client.send_with(request, &options).await?;
    let (head, body) = answer.into_parts();
    match head.status {
        StatusCode::OK => Ok((head.headers, body)),
        StatusCode::PARTIAL_CONTENT if from > 0 => Ok((head.headers, body)),
        status => Err(DownloadError::Status(status)),
    }
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The first byte and the whole length of `Content-Range: bytes 5-9/10` (RFC 9110 section 14.4).
fn range(headers: &HeaderMap) -> Option<(u64, u64)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, whole) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.parse().ok()?, whole.parse().ok()?))
}

/// A download on its way to PID 1.
struct Sending {
    sessions: StagingSessions,
    session: Arc<StagingSession>,
    pause: (Duration, Duration),
}

impl Sending {
    async fn run(self, bundle: OpenedBundle) {
        let sent = tokio::time::timeout(SESSION_TIME_MAX, self.send(bundle));
        let sent = sent.await.unwrap_or(Err(DownloadError::TooSlow));
        let Err(error) = sent else { return };
        tracing::warn!(%error, session = self.session.id, "the download of an update ended");
        let session = (
            self.session.id.as_str(),
            self.session.request.owner.as_str(),
        );
        // If it is not found, it has ended already.
        let given_up = self.sessions.give_up(session, error.to_string());
        given_up.await.ok();
    }

    async fn send(&self, bundle: OpenedBundle) -> Result<(), DownloadError> {
        let OpenedBundle {
            client,
            url,
            bytes,
            mut body,
        } = bundle;
        let mut pauses = Backoff::new(self.pause.0, self.pause.1);
        let (mut skip, mut tries) = (0, 0);
        loop {
            let before = self.session.offset();
            let copied = self.copy(body, skip).await;
            let error = match copied {
                Ok(true) => return Ok(()),
                Ok(false) => DownloadError::Other,
                Err(error) => error,
            };
            let offset = self.session.offset();
            if offset > before {
                tries = 0;
                pauses.reset();
            }
            // A connection that broke is worth another try; a server that sends too little says so by its length.
            (body, skip) = loop {
                tries += 1;
                if tries > TRIES_MAX {
                    return Err(error);
                }
                tokio::time::sleep(pauses.next(random())).await;
                match ask(&client, &url, offset).await {
                    Ok((headers, body)) => {
                        break (body, skipped(&headers, offset, bytes)?);
                    }
                    Err(DownloadError::Http(_)) => {}
                    Err(DownloadError::Status(status)) if status.is_server_error() => {}
                    Err(other) => return Err(other),
                }
            };
        }
    }

    /// Sends what comes after the first `skip` bytes. `true` after the last byte of the bundle, or if nothing more is
    /// wanted.
    async fn copy(&self, mut body: ResponseBody, mut skip: u64) -> Result<bool, DownloadError> {
        while let Some(frame) = body.frame().await {
            let Ok(mut data) = frame?.into_data() else {
                continue;
            };
            let left_out = skip.min(data.len() as u64);
            skip -= left_out;
            // At most the length of the data.
            drop(data.split_to(left_out as usize));
            while !data.is_empty() {
                let piece = data.split_to(data.len().min(PIECE_BYTES_MAX));
                let at = (
                    self.session.id.as_str(),
                    self.session.request.owner.as_str(),
                );
                let taken = self
                    .sessions
                    .write(at, (self.session.offset(), piece))
                    .await;
                match taken {
                    Ok(taken)
                        if taken.plan.is_none() && taken.offset < self.session.request.bytes => {}
                    // PID 1 has decided, or the session was given up.
                    Ok(_) | Err(StagingError::Ended(_)) | Err(StagingError::NoSession) => {
                        return Ok(true);
                    }
                    Err(StagingError::TooMuch(_)) => return Err(DownloadError::Other),
                    Err(error) => {
                        // Without further pieces the session ends by itself.
                        tracing::warn!(
                            ?error,
                            session = self.session.id,
                            "a piece of an update was not taken"
                        );
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }
}

/// How much of an answer PID 1 has already. A server without ranges sends everything again.
fn skipped(headers: &HeaderMap, offset: u64, bytes: u64) -> Result<u64, DownloadError> {
    match range(headers) {
        Some((first, whole)) if first == offset && whole == bytes => Ok(0),
        Some(_) => Err(DownloadError::Other),
        None if length(headers) == Some(bytes) => Ok(offset),
        None => Err(DownloadError::Other),
    }
}

fn random() -> u32 {
    let mut bytes = [0; 4];
    // Without randomness each pause is the shortest one.
    getrandom::fill(&mut bytes).ok();
    u32::from_ne_bytes(bytes)
}

/// What is left of an outcome for the caller of a check.
pub(super) fn planned(
    outcome: StagingOutcome,
) -> Result<alknet_init::control::UpdatePlan, alknet_call::CallError> {
    match outcome {
        StagingOutcome::Planned(plan) => Ok(plan),
        other => Err(other.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_how_much_of_it_is_there_already() {
        let headers = |text: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in text {
                headers.insert(*name, value.parse().expect("a value"));
            }
            headers
        };
        let part = headers(&[("content-range", "bytes 5-9/10"), ("content-length", "5")]);
        assert_eq!(skipped(&part, 5, 10).ok(), Some(0));
        assert!(skipped(&part, 4, 10).is_err() && skipped(&part, 5, 11).is_err());
        let whole = headers(&[("content-length", "10")]);
        assert_eq!(skipped(&whole, 5, 10).ok(), Some(5));
        assert!(skipped(&whole, 5, 11).is_err());
        assert!(skipped(&headers(&[("content-range", "bytes */10")]), 5, 10).is_err());
    }

    #[test]
    fn an_address_with_a_password_is_neither_asked_nor_shown() {
        let error = checked("https://ada:hush@a.example/b?token=hush").expect_err("a user");
        assert!(!error.to_string().contains("hush"), "{error}");
        assert!(checked("https://a.example/bundle.tar").is_ok());
        assert!(checked("not an address").is_err());
    }
}
