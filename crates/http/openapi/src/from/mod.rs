//! Makes operations from the documents of other servers.

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
/// The data are no OpenAPI document of a version that an import reads, or one of its paths is invalid.
pub fn count_operations(document: &[u8]) -> Result<usize, DocumentError> {
    Ok(found(&OpenApiSourceDocument::parse(document)?)?.len())
}

/// What a node imports, under which names, and how it reaches the server. None of these settings come from the
/// document.
#[derive(Clone, Debug)]
pub struct OpenApiOptions {
    /// The first segment of every name.
    pub namespace: String,
    /// The address of the server, such as `https://forge.example/api/v1`. Servers that a document names are ignored.
    pub base_url: String,
    /// The credential of the node's requests. With [`tokens`](Self::tokens), it is of the kind `basic`.
    pub credential: Option<Capability>,
    /// The source of access tokens, if the credential is one for requesting them.
    pub tokens: Option<TokenSource>,
    /// Further hosts to which redirects may lead.
    pub hosts: Vec<HostRule>,
    /// Addresses that the server may have besides those of the public Internet.
    pub private: Vec<AddressRange>,
    /// Keys that identify the server instead of a public certificate.
    pub pins: Vec<alknet_core::PeerKey>,
    /// Whether the node uses HTTP without TLS; the server's address must agree.
    pub plain: bool,
    /// The prefixes of the operations to import, without the namespace; an empty list imports all of them.
    pub only: Vec<String>,
    /// The account of the node's imports, against which requests and responses count.
    pub memory: ImportMemory,
}

impl OpenApiOptions {
    /// Options that import all operations of a public server.
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

/// An address that no server can have.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "'{0}' is no address of a server; write https://host/path without a query, or say that it is plain"
)]
pub struct BaseUrlError(String);

/// An adapter for a document and the server that it describes.
#[derive(Clone, Debug)]
pub struct FromOpenApi {
    document: Bytes,
    options: OpenApiOptions,
    server: Arc<ImportServer>,
}

impl FromOpenApi {
    /// Makes an adapter for `document`, which is JSON or YAML. It reaches the server of `options` through `dialer`.
    ///
    /// # Errors
    /// The address of a server is invalid.
    pub fn new(
        document: Bytes,
        options: OpenApiOptions,
        dialer: Arc<dyn Dialer>,
    ) -> Result<Self, BaseUrlError> {
        let (client, _) = client(&options, dialer, None)?;
        let server = ImportServer {
            import: options.namespace.clone(),
            client,
            base: options.base_url.trim_end_matches('/').to_owned(),
            credential: options.credential.as_ref().map(|one| one.name().to_owned()),
            tokens: options.tokens.clone().map(OAuthTokens::new),
            memory: options.memory.share(),
            permits: ImportCallPermits::new(CALLS_MAX),
        };
        Ok(Self {
            document,
            options,
            server: Arc::new(server),
        })
    }

    /// Reads the document and makes an operation of everything that it describes. The time grows with the length of
    /// the document.
    ///
    /// # Errors
    /// The first fault of the document.
    pub fn registrations(&self) -> Result<Vec<Registration>, AdapterError> {
        let document = OpenApiSourceDocument::parse(&self.document)?;
        let found = found(&document)?;
        // Each operation has a schema of its input and one of its output.
        let schema_bytes_max = SCHEMAS_BYTES_MAX / (2 * found.len().max(1));
        let schema_bytes_max = schema_bytes_max.clamp(SCHEMA_BYTES_MIN, SCHEMA_BYTES_MAX);
        let keys = keys(&document)?;
        let mut names = UniqueNames::new(&self.options.namespace);
        let mut registrations = Vec::new();
        for one in &found {
            let (plan, spec) = plan::read(&document, one, &keys, &mut names, schema_bytes_max)?;
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
            // Servers respond with statuses that their documents do not describe.
            .passing_errors_on()
    }
}

impl OperationAdapter for FromOpenApi {
    fn import(&self) -> BoxFuture<'_, Result<Vec<Registration>, AdapterError>> {
        Box::pin(async move {
            // Reading takes so long that it would block a thread of the runtime.
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

/// A client for the server of `options`, and the address of that server. The client may reach only that server, the
/// source of its access tokens, the server of its document, and the further hosts of `options`.
fn client(
    options: &OpenApiOptions,
    dialer: Arc<dyn Dialer>,
    document: Option<&PeerAddr>,
) -> Result<(HttpClient, PeerAddr), BaseUrlError> {
    let server = address(&options.base_url, options.plain)?;
    let mut addresses = vec![server.clone()];
    if let Some(tokens) = &options.tokens {
        addresses.push(address(&tokens.url, options.plain)?);
    }
    addresses.extend(document.cloned());
    let exactly = |at: &PeerAddr| HostRule::exactly(at.host.clone(), at.port);
    let hosts = addresses.iter().map(exactly);
    let hosts = hosts.chain(options.hosts.iter().cloned()).collect();
    // Unless the options name further hosts, no redirect leads from one of these servers to another.
    let redirects = match options.hosts.is_empty() {
        true => Redirects::SameOrigin,
        false => Redirects::Any,
    };
    // The pins are the server's own, not those of its token source or of further hosts.
    let pinned = server.clone().with_pins(options.pins.iter().copied());
    let client = HttpClient::new(
        dialer,
        ClientOptions {
            hosts: Some(hosts),
            reach: DialAllowList::Public {
                also: options.private.clone(),
            },
            plain: if options.plain { addresses } else { Vec::new() },
            pinned: vec![pinned],
            redirects,
            ..ClientOptions::default()
        },
    );
    Ok((client, server))
}

/// The host and the port of an address.
fn address(url: &str, plain: bool) -> Result<PeerAddr, BaseUrlError> {
    let invalid = || BaseUrlError(url.chars().take(200).collect());
    let uri: Uri = url.parse().map_err(|_| invalid())?;
    let (scheme, usual) = match plain {
        true => ("http", ":80"),
        false => ("https", ":443"),
    };
    let authority = uri.authority().ok_or_else(invalid)?;
    // The client appends paths to the address, and a credential does not belong into it.
    let odd = authority.as_str().contains('@') || uri.query().is_some() || url.contains('#');
    if uri.scheme_str() != Some(scheme) || odd {
        return Err(invalid());
    }
    let host = authority.host();
    let port = authority.as_str().strip_prefix(host).ok_or_else(invalid)?;
    let port = if port.is_empty() { usual } else { port };
    // Neither certificates nor TLS use the final dot of a full name (RFC 6066 section 3).
    let host = host.trim_end_matches('.');
    format!("{host}{port}").parse().map_err(|_| invalid())
}

/// All operations of the document, in its order.
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
            // The limit is checked while the list grows, so a long document does not fill the memory first.
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

/// The parameters that are keys: they come from the credential, and no caller may set them.
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
        let location = text("in").and_then(ParameterLocation::parse);
        if let (Some("apiKey"), Some(location), Some(name)) = (text("type"), location, text("name"))
        {
            keys.insert((location, name.to_ascii_lowercase()));
        }
    }
    Ok(keys)
}

/// The progress of a subscription.
enum SubscriptionPhase {
    Asking(Arc<ImportServer>, Arc<RequestPlan>, CallBody, Ctx),
    Events(Box<Following>),
    Done,
}

/// A stream of events.
struct Following {
    call: OpenApiCall,
    body: ResponseBody,
    /// Bytes that arrived and are no event yet.
    rest: Bytes,
    events: Events,
    /// Counts those bytes and the incomplete event.
    claim: ImportClaim,
}

/// The events of a stream. A response of another media type is one event.
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
                return answer::hold_output(event, claim).map(Some);
            }
            let Some(frame) = self.body.frame().await else {
                return Ok(None);
            };
            // Trailers are ignored.
            if let Ok(bytes) = frame.map_err(of_http)?.into_data() {
                self.claim.becomes(self.events.bytes() + bytes.len())?;
                self.rest = bytes;
            }
        }
    }
}

/// One event that holds a response which is no stream.
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
    answer::hold_output(CallOutput::json(&Only { event, data })?, claim)
}

#[cfg(test)]
mod tests;
