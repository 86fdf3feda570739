//! Handles one request of the protocol.

use std::fmt;
use std::sync::Arc;

use alknet_gateway::{ApiError, Gateway, HttpCaller};
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, CompleteRequestMethod,
    CompleteRequestParams, CompleteResult, Implementation, ListPromptsRequestMethod,
    ListPromptsResult, ListResourceTemplatesRequestMethod, ListResourceTemplatesResult,
    ListResourcesRequestMethod, ListResourcesResult, ListToolsResult, PaginatedRequestParams,
    ProtocolVersion, ServerCapabilities, ServerConfig,
};
use rmcp::service::RequestContext;
use rmcp::{ErrorData, RoleServer, ServerHandler};

use crate::server::arguments::ToolArguments;
use crate::server::pinned::{self, PinnedTools};
use crate::server::{content, schemas, tools};

/// Handles requests; clones share all state.
#[derive(Clone)]
pub(super) struct McpToolHandler {
    gateway: Arc<Gateway>,
    pinned: Arc<PinnedTools>,
}

impl McpToolHandler {
    pub(super) fn new(gateway: Arc<Gateway>, pinned: Arc<PinnedTools>) -> Self {
        Self { gateway, pinned }
    }

    async fn run(
        &self,
        caller: &HttpCaller,
        (request, arguments): (CallToolRequestParams, ToolArguments),
        version: &ProtocolVersion,
    ) -> Result<CallToolResult, ErrorData> {
        let gateway = &*self.gateway;
        let name = &*request.name;
        let outcome = match name {
            schemas::SEARCH => tools::search(gateway, caller, &arguments, version),
            schemas::SCHEMA => tools::schema(gateway, caller, &arguments, version),
            schemas::CALL => tools::call(gateway, caller, &arguments, version).await,
            schemas::BATCH => tools::batch(gateway, caller, &arguments, version).await,
            _ => return self.pinned(caller, name, &arguments, version).await,
        };
        // The output of `call` depends on the operation, so the tool declares no schema for it.
        let promised = name != schemas::CALL;
        Ok(outcome.unwrap_or_else(|error| refusal(&error, caller, promised)))
    }

    /// Calls an operation that is a tool of its own. An operation that the caller may not see does not exist for it
    /// as a tool.
    async fn pinned(
        &self,
        caller: &HttpCaller,
        name: &str,
        arguments: &ToolArguments,
        version: &ProtocolVersion,
    ) -> Result<CallToolResult, ErrorData> {
        let operation = self.pinned.operation(name);
        let found = operation.and_then(|operation| self.gateway.find(caller, operation).ok());
        // An operation may have become a subscription since it was pinned.
        let found = found.filter(|found| pinned::tool(name, found.spec()).is_some());
        let Some(found) = found else {
            // The client chose the name, so only a part of it is repeated.
            let shown: String = name.chars().take(128).collect();
            return Err(ErrorData::invalid_params(
                format!("Unknown tool: {shown}"),
                None,
            ));
        };
        let spec = found.spec();
        let promised = pinned::promised(spec).is_some();
        let work = async {
            let call = pinned::call(spec, arguments);
            let lease = self.gateway.lease(caller);
            // The memory for the answer is reserved before the call, so that an operation does not change something
            // whose result the node must then refuse.
            let reserve = lease.reserve()?;
            let output = self.gateway.invoke(caller, call).await?;
            // The lease counts the result, which now takes the place of the output.
            drop(reserve);
            match content::is_declared(spec) {
                true => content::blocks(&output, lease, version),
                false => content::result(&output, lease, promised, version),
            }
        };
        let outcome = work.await;
        Ok(outcome.unwrap_or_else(|error| refusal(&error, caller, promised)))
    }
}

fn refusal(error: &ApiError, caller: &HttpCaller, promised: bool) -> CallToolResult {
    content::refusal(error, &caller.request_id, promised)
}

/// The caller, as identified by the server that carries this one.
fn caller(context: &RequestContext<RoleServer>) -> Result<HttpCaller, ErrorData> {
    let parts = context.extensions.get::<http::request::Parts>();
    let caller = parts.and_then(|parts| parts.extensions.get::<HttpCaller>());
    caller.cloned().ok_or_else(|| {
        tracing::error!("a request of a model came without its caller");
        ErrorData::internal_error("the node failed", None)
    })
}

/// The arguments that were taken out of the message.
fn arguments(context: &RequestContext<RoleServer>) -> Option<ToolArguments> {
    let parts = context.extensions.get::<http::request::Parts>()?;
    parts.extensions.get::<ToolArguments>().cloned()
}

fn version(context: &RequestContext<RoleServer>) -> ProtocolVersion {
    context
        .protocol_version()
        // The node assumes this version for a client that names none, as the protocol's chapter on transports
        // requires.
        .unwrap_or(ProtocolVersion::V_2025_03_26)
}

impl ServerHandler for McpToolHandler {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder().enable_tools().build();
        let name = Implementation::new("alknet", env!("CARGO_PKG_VERSION"));
        ServerConfig::new(capabilities)
            .with_server_info(name)
            .with_instructions(schemas::INSTRUCTIONS)
    }

    async fn list_tools(
        &self,
        _page: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let caller = caller(&context)?;
        let mut tools = schemas::FIXED.to_vec();
        // The list has only the operations that the caller may see.
        tools.extend(self.pinned.iter().filter_map(|(tool, operation)| {
            let found = self.gateway.find(&caller, operation).ok()?;
            pinned::tool(tool, found.spec())
        }));
        Ok(ListToolsResult::with_all_items(tools))
    }

    // The node has none of the following: an empty list would tell clients that it could have them.
    async fn complete(
        &self,
        _request: CompleteRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        Err(ErrorData::method_not_found::<CompleteRequestMethod>())
    }

    async fn list_prompts(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        Err(ErrorData::method_not_found::<ListPromptsRequestMethod>())
    }

    async fn list_resources(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        Err(ErrorData::method_not_found::<ListResourcesRequestMethod>())
    }

    async fn list_resource_templates(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Err(ErrorData::method_not_found::<
            ListResourceTemplatesRequestMethod,
        >())
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let caller = caller(&context)?;
        let version = version(&context);
        let arguments = arguments(&context);
        let mut request = request;
        let arguments =
            arguments.unwrap_or_else(|| ToolArguments::from_object(request.arguments.take()));
        // The node does not work for a client that disconnected: dropping the future aborts the call.
        tokio::select! {
            result = self.run(&caller, (request, arguments), &version) => result.map(Into::into),
            () = context.ct.cancelled() => {
                Err(ErrorData::internal_error("the client went away", None))
            }
        }
    }
}

impl fmt::Debug for McpToolHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("McpToolHandler").finish_non_exhaustive()
    }
}
