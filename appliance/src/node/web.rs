//! HTTP on the one port: assembles the parts that answer browsers and programs.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use alknet_call::Dispatcher;
use alknet_core::config::{Decoy, NodeConfig, Port80 as Asked};
use alknet_core::{BoxFuture, HttpMount, MountBody};
use alknet_endpoint::plain_listeners;
use alknet_gateway::{Gateway, HttpCaller};
use alknet_http::port80::Port80Server;
use alknet_http::{
    AcmeChallenges, DescriptionSource, HttpHandler, HttpHandlerParts, HttpSettings, MountResponder,
};
use alknet_init::control::MachineDiagnostic;
use alknet_mcp::{McpOptions, McpServer};
use alknet_openapi::OpenApiContract;
use alknet_page::AdminPage;
use alknet_tls::NodeKey;
use alknet_tls::acme::{HttpChallengeResponder, HttpChallenges};
use bytes::Bytes;
use http::request;
use tokio::net::TcpStream;

use super::facts;
use super::health::NodeHealth;
use super::identity_services::IdentityServices;
use super::open_files::FileLimits;

/// The HTTP parts of a running node. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct NodeWeb {
    http: Option<Arc<HttpHandler>>,
    tools: Option<Arc<McpServer>>,
    challenges: Arc<HttpChallenges>,
    problems: Arc<Mutex<Vec<MachineDiagnostic>>>,
    /// The name in the node's own certificate.
    key_name: Arc<str>,
}

struct AcmeChallengeSource(Arc<HttpChallenges>);

impl AcmeChallenges for AcmeChallengeSource {
    fn answer(&self, token: &str) -> Option<String> {
        self.0.answer(token)
    }
}

/// The gateway's OpenAPI document. It is made again when the operations change.
struct OpenApiCache {
    is_public: bool,
    made: RwLock<Option<(String, Bytes)>>,
}

impl DescriptionSource for OpenApiCache {
    fn text(&self, digest: &str) -> Bytes {
        let made = self.made.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, text)) = made.as_ref().filter(|(of, _)| of == digest) {
            // Any caller can request the document, so it is made once for each set of operations.
            return text.clone();
        }
        drop(made);
        let contract = OpenApiContract {
            operations_digest: digest,
            is_public: self.is_public,
        };
        let text = Bytes::from(alknet_openapi::document(&contract).to_string());
        let mut made = self.made.write().unwrap_or_else(PoisonError::into_inner);
        *made = Some((digest.to_owned(), text.clone()));
        text
    }
}

/// The gateway from HTTP to the operations, and the page that uses it, if the configuration wants
/// one. They exist before the operations, because one operation makes links to the page.
pub(crate) struct WebGateway {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) page: Option<AdminPage>,
    /// The name in the node's own certificate.
    key_name: Arc<str>,
}

impl WebGateway {
    /// For a node with this key. `identity_services` also says which configuration is in force.
    pub(crate) fn new(
        config: &NodeConfig,
        key: &NodeKey,
        identity_services: &IdentityServices,
    ) -> Self {
        let gateway = Arc::new(Gateway::default());
        let http = &config.http;
        // A page would reveal what the node is, if the node hides or serves a site of its own.
        let alone = !http.stealth && http.site.is_none() && http.decoy == Decoy::NotFound;
        let wanted = http.enabled && http.page.unwrap_or(alone);
        let page = wanted.then(|| {
            let reloader = Arc::clone(&identity_services.reloader);
            let identities = Arc::clone(&identity_services.identities);
            let has_site = http.site.is_some();
            let names = move || {
                // Under the names the site answers: links lead to an address.
                if has_site {
                    return Vec::new();
                }
                let now = HttpSettings::new(&reloader.current().config);
                now.names().to_vec()
            };
            AdminPage::new(Arc::clone(&gateway), identities, names)
        });
        Self {
            gateway,
            page,
            key_name: key.host_name().into(),
        }
    }
}

struct McpResponder(Arc<McpServer>);

impl MountResponder for McpResponder {
    fn respond(
        &self,
        request: http::Request<MountBody>,
        _: HttpCaller,
    ) -> BoxFuture<'_, http::Response<MountBody>> {
        Box::pin(self.0.respond(request))
    }
}

/// What the configuration, the machine's memory and the process's files allow, on a node whose key makes this name.
fn fitting(config: &NodeConfig, key_name: &str) -> HttpSettings {
    let settings = HttpSettings::new(config).with_key_name(key_name);
    settings
        .for_memory(facts::memory_total_bytes())
        .with_site_open_files(FileLimits::now().site)
}

/// Options of the MCP server. The router has checked host names before a request arrives there.
fn tools(config: &NodeConfig) -> McpOptions {
    let port = config.listen.port;
    let settings = HttpSettings::new(config);
    let own = settings.names().iter().flat_map(|name| {
        // A browser omits the default port from an origin (RFC 6454, 6.2).
        let usual = (port == 443).then(|| format!("https://{name}"));
        usual.into_iter().chain([format!("https://{name}:{port}")])
    });
    McpOptions {
        tools: config.http.mcp.tools.clone(),
        hosts: None,
        origins: own
            .chain(config.http.cors.origins.iter().cloned())
            .collect(),
    }
}

struct PageResponder(AdminPage);

impl MountResponder for PageResponder {
    fn respond(
        &self,
        request: http::Request<MountBody>,
        caller: HttpCaller,
    ) -> BoxFuture<'_, http::Response<MountBody>> {
        Box::pin(self.0.respond(request, caller))
    }

    fn knows(&self, request: &request::Parts) -> bool {
        self.0.knows(&request.uri, &request.headers)
    }
}

impl NodeWeb {
    /// Assembles the parts, if the configuration wants HTTP. `mounts` are paths that other parts
    /// serve.
    pub(crate) fn new(
        config: &NodeConfig,
        inside: WebGateway,
        dispatcher: &Arc<Dispatcher>,
        challenges: Arc<HttpChallenges>,
        condition: NodeHealth,
        mounts: Vec<Arc<dyn HttpMount>>,
    ) -> anyhow::Result<Self> {
        let section = &config.http;
        let key_name = inside.key_name;
        if !section.enabled {
            return Ok(Self {
                http: None,
                tools: None,
                challenges,
                problems: Arc::default(),
                key_name,
            });
        }
        let tools = section.mcp.enabled.then(|| {
            let options = tools(config);
            Arc::new(McpServer::new(Arc::clone(&inside.gateway), options))
        });
        let parts = HttpHandlerParts {
            dispatcher: Arc::clone(dispatcher),
            gateway: inside.gateway,
            settings: fitting(config, &key_name),
            health: Arc::new(condition),
            document: Arc::new(OpenApiCache {
                is_public: section.public_openapi,
                made: RwLock::default(),
            }),
            challenges: Some(Arc::new(AcmeChallengeSource(Arc::clone(&challenges)))),
            mcp: tools
                .as_ref()
                .map(|tools| Arc::new(McpResponder(Arc::clone(tools))) as _),
            page: inside.page.map(|page| Arc::new(PageResponder(page)) as _),
            websocket: section.websocket,
            site: section.site.as_ref().map(PathBuf::from),
            mounts,
            routes: Vec::new(),
        };
        let http = Arc::new(HttpHandler::new(parts, section.h3)?);
        Ok(Self {
            http: Some(http),
            tools,
            challenges,
            problems: Arc::default(),
            key_name,
        })
    }

    /// The protocol handler.
    pub(crate) fn handler(&self) -> Option<Arc<HttpHandler>> {
        self.http.clone()
    }

    fn report(&self, problem: MachineDiagnostic) {
        tracing::warn!("{}", problem.text);
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        problems.push(problem);
    }

    /// The problems of HTTP.
    pub(crate) fn problems(&self) -> Vec<MachineDiagnostic> {
        let problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        let left_out = self.tools.iter().flat_map(|tools| tools.left_out());
        let left_out = left_out.map(|text| MachineDiagnostic {
            code: "mcp-tool-left-out".to_owned(),
            text,
            hint: "correct http.mcp.tools and restart".to_owned(),
        });
        problems.iter().cloned().chain(left_out).collect()
    }

    /// Applies the configuration in force.
    pub(crate) fn tune(&self, config: &NodeConfig) {
        if let Some(http) = &self.http {
            http.set(fitting(config, &self.key_name));
        }
        if let Some(served) = &self.tools {
            // Host names take effect at the next start, so they stay those of the running
            // configuration.
            served.set_options(tools(config));
        }
    }

    /// Serves port 80, if the configuration wants it, for as long as the node runs.
    pub(crate) fn serve_port80(&self, config: &NodeConfig, port: u16) {
        let redirect = match config.http.port80 {
            Asked::Off => return,
            Asked::Acme => None,
            Asked::AcmeRedirect => Some(port),
        };
        let challenges: Arc<dyn AcmeChallenges> =
            Arc::new(AcmeChallengeSource(Arc::clone(&self.challenges)));
        let settings = HttpSettings::new(config).with_key_name(&self.key_name);
        let plain = Port80Server::new(Some(challenges), settings, redirect);
        match plain_listeners(&config.listen.addrs, PORT) {
            Ok(listeners) => {
                for listener in listeners {
                    let plain = Arc::clone(&plain);
                    let taken = move |stream: TcpStream| {
                        let remote = stream.peer_addr().ok();
                        drop(tokio::spawn(Arc::clone(&plain).serve(stream, remote)));
                    };
                    tokio::spawn(listener.each(taken));
                }
            }
            Err(error) => self.report(MachineDiagnostic {
                code: "port80-taken".to_owned(),
                text: format!("TCP port 80 cannot be served: {error}"),
                hint: "free the port, or set http.port80 = \"off\"".to_owned(),
            }),
        }
    }
}

/// The port of plain HTTP.
const PORT: u16 = 80;
