//! Operations made of documents of others.

mod answer;
mod body;
mod byte_budget;
mod config;
mod error;
mod events;
mod fetch;
pub mod limits;
mod names;
mod parameter;
mod plan;
mod read;
mod refs;
mod schema;
mod server;

use std::collections::BTreeSet;
use std::sync::Arc;

use alknet_call::{
    AdapterError, CallBody, CallError, CallOutput, Ctx, HandlerKind, ImportCallPermits,
    ImportClaim, ImportMemory, OperationAdapter, OperationType, Provenance, Registration,
};
use alknet_core::{
    AddressRange, BoxFuture, Capabilities, Capability, DialAllowList, Dialer, PeerAddr,
};
use alknet_http_client::{ClientOptions, HostRule, HttpClient, Redirects, ResponseBody};
use bytes::Bytes;
use futures_util::Stream;
use http::Uri;
use http::header::CONTENT_TYPE;
use http_body_util::BodyExt;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use thiserror::Error;

use answer::of_http;
use body::kind;
use events::Events;
use limits::{CALLS_MAX, OPERATIONS_MAX, SCHEMA_BYTES_MAX, SCHEMA_BYTES_MIN, SCHEMAS_BYTES_MAX};
use names::UniqueNames;
use parameter::ParameterLocation;
use plan::{DocumentOperation, METHODS, RequestPlan};
use refs::{OpenApiSourceDocument, escaped};
use server::{ImportServer, OAuthTokens, OpenApiCall};

pub use config::{ImportError, read_document};
pub use error::DocumentError;
pub use fetch::{FetchError, fetch_document};
pub use read::read;
pub use server::TokenSource;

/// Reads a document as an import does, and counts the operations that it describes.
///
/// # Errors
/// It is no OpenAPI document of a version that an import reads, or a path of it is damaged.
pub fn count_operations(document: &[u8]) -> Result<usize, DocumentError> {
    Ok(found(&OpenApiSourceDocument::parse(document)?)?.len())
}

/// What is imported, under which names, and how its server is reached. Nothing of this comes from the
/// document.
#[derive(Clone, Debug)]
pub struct OpenApiOptions {
    /// First segment of every name.
    pub namespace: String,
    /// Where the server is: `https://forge.example/api/v1`. Servers that a document names mean nothing.
    pub base_url: String,
    /// What makes requests the node's. For [`tokens`](Self::tokens) it is of the kind `basic`.
    pub credential: Option<Capability>,
    /// Where access tokens come from, if the credential is one for asking for them.
    pub tokens: Option<TokenSource>,
    /// Other hosts that redirects may lead to.
    pub hosts: Vec<HostRule>,
    /// Addresses besides those of the public Internet that the server may have.
    pub private: Vec<AddressRange>,
    /// Keys by which the server is known, instead of a public certificate.
    pub pins: Vec<alknet_core::PeerKey>,
    /// Whether the server is spoken to without TLS, which its address has to say too.
    pub plain: bool,
    /// Only operations whose names, without the namespace, begin with one of these; empty for all.
    pub only: Vec<String>,
    /// What requests and answers count against: the account of the node's imports.
    pub memory: ImportMemory,
}

impl OpenApiOptions {
    /// Everything, from a public server.
    #[must_use]
    pub fn new(namespace: &str, base_url: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            base_url: base_url.to_owned(),
            credential: None,
            tokens: None,
            hosts: Vec::new(),
            private: Vec::new(),
            pins: Vec::new(),
            plain: false,
            only: Vec::new(),
            memory: ImportMemory::default(),
        }
    }
}

/// The address of a server that cannot be one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "'{0}' is no address of a server; write https://host/path without a query, or say that it is plain"
)]
pub struct BaseUrlError(String);

/// A document and the server that it describes, as an adapter.
#[derive(Clone, Debug)]
pub struct FromOpenApi {
    document: Bytes,
    options: OpenApiOptions,
    server: Arc<ImportServer>,
}

impl FromOpenApi {
    /// Of `document`, JSON or YAML, for the server that `options` name, which is reached through
    /// `dialer`.
    ///
    /// # Errors
    /// The address of a server is not valid.
    pub fn new(
        document: Bytes,
        options: OpenApiOptions,
        dialer: Arc<dyn Dialer>,
    ) -> Result<Self, BaseUrlError> {
        let (client, _) = client(&options, dialer, None)?;
        let server = ImportServer {
            client,
            base: options.base_url.trim_end_matches('/').to_owned(),
            credential: options.credential.as_ref().map(|one| one.name().to_owned()),
            tokens: options.tokens.clone().map(OAuthTokens::new),
            memory: options.memory.share(),
            places: ImportCallPermits::new(CALLS_MAX),
        };
        Ok(Self {
            document,
            options,
            server: Arc::new(server),
        })
    }

    /// Reads the document and makes an operation of everything that it describes. Takes as long as the
    /// document is long.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn registrations(&self) -> Result<Vec<Registration>, AdapterError> {
        let document = OpenApiSourceDocument::parse(&self.document)?;
        let found = found(&document)?;
        // Each has a schema of its input and one of its output.
        let room = SCHEMAS_BYTES_MAX / (2 * found.len().max(1));
        let room = room.clamp(SCHEMA_BYTES_MIN, SCHEMA_BYTES_MAX);
        let keys = keys(&document)?;
        let mut names = UniqueNames::new(&self.options.namespace);
        let mut registrations = Vec::new();
        for one in &found {
            let (plan, spec) = plan::read(&document, one, &keys, &mut names, room)?;
            if self.takes(&spec.name) {
                registrations.push(self.registration(plan, spec));
            }
        }
        Ok(registrations)
    }

    fn takes(&self, name: &str) -> bool {
        let own = name.split_once('/').map_or(name, |(_, own)| own);
        let only = &self.options.only;
        only.is_empty() || only.iter().any(|prefix| own.starts_with(prefix.as_str()))
    }

    fn registration(&self, plan: RequestPlan, spec: alknet_call::OperationSpec) -> Registration {
        let (server, plan) = (Arc::clone(&self.server), Arc::new(plan));
        let handler = match spec.op_type {
            OperationType::Subscription => HandlerKind::stream(move |input: CallBody, ctx: Ctx| {
                stream(Arc::clone(&server), Arc::clone(&plan), input, ctx)
            }),
            _ => HandlerKind::once(move |input: CallBody, ctx: Ctx| {
                let (server, plan) = (Arc::clone(&server), Arc::clone(&plan));
                async move {
                    let call = server.begin(&plan, false, &ctx)?;
                    let input = input.try_value()?;
                    let answer = server.ask(&plan, input, false, (&ctx, &call)).await?;
                    answer::output(answer, call.memory()).await
                }
            }),
        };
        let credential = self.options.credential.iter().cloned();
        Registration::imported(spec, handler, Provenance::FromOpenApi)
            .with_capabilities(Capabilities::new(credential))
            // Servers answer with statuses that no document of theirs tells.
            .passing_errors_on()
    }
}

impl OperationAdapter for FromOpenApi {
    fn import(&self) -> BoxFuture<'_, Result<Vec<Registration>, AdapterError>> {
        Box::pin(async move {
            // Reading takes long enough to hold up a thread of the runtime.
            let this = self.clone();
            let read = tokio::task::spawn_blocking(move || this.registrations()).await;
            read.unwrap_or_else(|error| {
                Err(AdapterError::Transport(CallError::internal(
                    error.to_string(),
                )))
            })
        })
    }
}

/// A client for the server of `options`, and where that server is. The client also asks the server that gives it
/// access tokens, the one that has its document and the further hosts of `options`, and no others.
fn client(
    options: &OpenApiOptions,
    dialer: Arc<dyn Dialer>,
    document: Option<&PeerAddr>,
) -> Result<(HttpClient, PeerAddr), BaseUrlError> {
    let server = place(&options.base_url, options.plain)?;
    let mut places = vec![server.clone()];
    if let Some(tokens) = &options.tokens {
        places.push(place(&tokens.url, options.plain)?);
    }
    places.extend(document.cloned());
    let exactly = |at: &PeerAddr| HostRule::exactly(at.host.clone(), at.port);
    let hosts = places.iter().map(exactly);
    let hosts = hosts.chain(options.hosts.iter().cloned()).collect();
    // Where none is named for it, no redirect leads from one of these servers to another.
    let redirects = match options.hosts.is_empty() {
        true => Redirects::SameOrigin,
        false => Redirects::Any,
    };
    let pinned = server.clone().with_pins(options.pins.iter().copied());
    let client = HttpClient::new(
        dialer,
        ClientOptions {
            hosts: Some(hosts),
            reach: DialAllowList::Public {
                also: options.private.clone(),
            },
            plain: if options.plain { places } else { Vec::new() },
            pinned: vec![pinned],
            redirects,
            ..ClientOptions::default()
        },
    );
    Ok((client, server))
}

/// Host and port of an address.
fn place(url: &str, plain: bool) -> Result<PeerAddr, BaseUrlError> {
    let wrong = || BaseUrlError(url.chars().take(200).collect());
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let (scheme, usual) = match plain {
        true => ("http", ":80"),
        false => ("https", ":443"),
    };
    let authority = uri.authority().ok_or_else(wrong)?;
    // Paths are appended to it, and the credential is not a part of it.
    let odd = authority.as_str().contains('@') || uri.query().is_some() || url.contains('#');
    if uri.scheme_str() != Some(scheme) || odd {
        return Err(wrong());
    }
    let host = authority.host();
    let port = authority.as_str().strip_prefix(host).ok_or_else(wrong)?;
    let port = if port.is_empty() { usual } else { port };
    // Neither certificates nor TLS have the dot of a full name (RFC 6066 section 3).
    let host = host.trim_end_matches('.');
    format!("{host}{port}").parse().map_err(|_| wrong())
}

/// Every operation of the document, in its order.
fn found(document: &OpenApiSourceDocument) -> Result<Vec<DocumentOperation<'_>>, DocumentError> {
    let mut found = Vec::new();
    let Some(paths) = document.root().get("paths") else {
        return Ok(found);
    };
    for (path, node) in document.object(paths, "/paths")? {
        if !path.starts_with('/') {
            return Err(DocumentError::shape(
                format!("/paths/{}", escaped(path)),
                "a path that begins with /",
            ));
        }
        let at = format!("/paths/{}", escaped(path));
        let item = document.object(node, &at)?;
        for method in METHODS {
            let Some(node) = item.get(method) else {
                continue;
            };
            let at = format!("{at}/{method}");
            found.push(DocumentOperation {
                path,
                method,
                operation: document.object(node, &at)?,
                shared: item.get("parameters"),
                at,
            });
            if found.len() > OPERATIONS_MAX {
                return Err(DocumentError::TooMuch {
                    what: "operations",
                    most: OPERATIONS_MAX,
                });
            }
        }
    }
    Ok(found)
}

/// Parameters that are keys: they come from the credential, and no caller gives another.
fn keys(
    document: &OpenApiSourceDocument,
) -> Result<BTreeSet<(ParameterLocation, String)>, DocumentError> {
    const AT: &str = "/components/securitySchemes";
    let mut keys = BTreeSet::new();
    let Some(schemes) = document.root().pointer(AT) else {
        return Ok(keys);
    };
    for (name, node) in document.object(schemes, AT)? {
        let scheme = document.object(node, &format!("{AT}/{}", escaped(name)))?;
        let text = |name: &str| scheme.get(name).and_then(Value::as_str);
        let place = text("in").and_then(ParameterLocation::parse);
        if let (Some("apiKey"), Some(place), Some(name)) = (text("type"), place, text("name")) {
            keys.insert((place, name.to_ascii_lowercase()));
        }
    }
    Ok(keys)
}

/// What a subscription is doing.
enum SubscriptionPhase {
    Asking(Arc<ImportServer>, Arc<RequestPlan>, CallBody, Ctx),
    Events(Box<Following>),
    Done,
}

/// A stream of events.
struct Following {
    call: OpenApiCall,
    body: ResponseBody,
    /// What came, and is no event yet.
    rest: Bytes,
    events: Events,
    /// Counts it, and the event in the making.
    claim: ImportClaim,
}

/// The events of a stream. An answer of another media type is one event.
fn stream(
    server: Arc<ImportServer>,
    plan: Arc<RequestPlan>,
    input: CallBody,
    ctx: Ctx,
) -> impl Stream<Item = Result<CallOutput, CallError>> + Send {
    let begin = SubscriptionPhase::Asking(server, plan, input, ctx);
    futures_util::stream::unfold(begin, |state| async move {
        match next(state).await {
            Ok(Some((event, state))) => Some((Ok(event), state)),
            Ok(None) => None,
            Err(error) => Some((Err(error), SubscriptionPhase::Done)),
        }
    })
}

async fn next(
    state: SubscriptionPhase,
) -> Result<Option<(CallOutput, SubscriptionPhase)>, CallError> {
    let mut following = match state {
        SubscriptionPhase::Asking(server, plan, input, ctx) => {
            let call = server.begin(&plan, true, &ctx)?;
            let input = input.try_value()?;
            let answer = server.ask(&plan, input, true, (&ctx, &call)).await?;
            let media = answer.headers().get(CONTENT_TYPE);
            let media = media
                .and_then(|media| media.to_str().ok())
                .unwrap_or_default();
            if !answer.status().is_success() || kind(media) != "events" {
                let output = answer::output(answer, call.memory()).await?;
                return Ok(Some((only_event(output, &call)?, SubscriptionPhase::Done)));
            }
            Box::new(Following {
                body: answer.into_body(),
                rest: Bytes::new(),
                events: Events::default(),
                claim: call.memory().claim(),
                call,
            })
        }
        SubscriptionPhase::Events(following) => following,
        SubscriptionPhase::Done => return Ok(None),
    };
    let event = following.next().await?;
    Ok(event.map(|event| (event, SubscriptionPhase::Events(following))))
}

impl Following {
    async fn next(&mut self) -> Result<Option<CallOutput>, CallError> {
        loop {
            if let Some(event) = self.events.take(&mut self.rest)? {
                let mut claim = self.call.memory().claim();
                if let CallOutput::Raw(text) = &event {
                    claim.becomes(text.len())?;
                }
                return answer::counted(event, claim).map(Some);
            }
            let Some(frame) = self.body.frame().await else {
                return Ok(None);
            };
            // Trailers say nothing here.
            if let Ok(bytes) = frame.map_err(of_http)?.into_data() {
                self.claim.becomes(self.events.bytes() + bytes.len())?;
                self.rest = bytes;
            }
        }
    }
}

/// An answer that is no stream as an event of one.
fn only_event(output: CallOutput, call: &OpenApiCall) -> Result<CallOutput, CallError> {
    #[derive(Serialize)]
    struct Only<'a> {
        event: &'a str,
        data: &'a RawValue,
    }
    let body = CallBody::from(output);
    let data = serde_json::from_slice(body.raw());
    let data = data.map_err(|error| CallError::internal(error.to_string()))?;
    let mut claim = call.memory().claim();
    claim.becomes(body.raw().len())?;
    let event = "message";
    answer::counted(CallOutput::json(&Only { event, data })?, claim)
}

#[cfg(test)]
mod tests;
