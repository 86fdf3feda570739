//! The tools of other servers as operations of this node.

mod answer;
mod answer_meter;
mod arguments;
mod connection;
mod names;
mod param_headers;
mod permits;
mod remote;
mod server_requests;
mod tool_list;
mod tools;
mod transport;

#[cfg(test)]
mod remote_tests;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use alknet_call::{
    AdapterError, HandlerKind, ImportMemory, OperationAdapter, Provenance, Registration,
};
use alknet_core::{BoxFuture, Capabilities, Capability};
use alknet_http_client::HttpClient;
use http::Uri;
use tokio::time::{Instant, sleep_until, timeout};

use crate::limits::{LISTING_TIMEOUT, REFRESH, REFRESH_MIN};
use remote::{McpRemote, McpToolTarget};

/// A server whose tools become operations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct McpImport {
    /// The first part of the operations' names.
    pub namespace: String,
    /// The URL of the server, such as `https://tools.example/mcp`.
    pub url: String,
    /// The name of the server's credential in the configuration. Each operation must have a grant for it.
    pub credential: Option<String>,
    /// The prefixes of the operations to import, without the namespace; an empty list imports all of them.
    pub only: Vec<String>,
}

/// Reads the tools of one server and calls them. Its operations share one connection, which stays until the last of
/// them is dropped.
pub struct FromMcp {
    remote: Arc<McpRemote>,
    /// The credential for the list of tools, which is read without an operation; the operations use it too.
    capability: Option<Capability>,
    left_out: Mutex<Vec<String>>,
    listed: Mutex<Option<Instant>>,
}

impl FromMcp {
    /// Imports the tools of the server that `import` names, through `client`, which decides what the node may reach.
    /// `capability` is the credential that `import` names. What the server sends counts against `memory`.
    ///
    /// # Errors
    /// The URL of the server is invalid.
    pub fn new(
        client: HttpClient,
        import: McpImport,
        capability: Option<Capability>,
        memory: &ImportMemory,
    ) -> Result<Self, AdapterError> {
        let uri: Result<Uri, _> = import.url.parse();
        let is_absolute = uri.is_ok_and(|uri| uri.scheme().is_some() && uri.authority().is_some());
        if !is_absolute {
            return Err(AdapterError::Schema {
                path: "url".to_owned(),
                reason: "this is no address; write https://host/path".to_owned(),
            });
        }
        Ok(Self {
            remote: Arc::new(McpRemote::new(client, import, memory.share())),
            capability,
            left_out: Mutex::default(),
            listed: Mutex::default(),
        })
    }

    /// Waits until the tools may have changed since the last import: the server announced a change, or ten minutes
    /// passed. This returns at most once every five seconds.
    pub async fn changed(&self) {
        let last = *lock(&self.listed);
        // Before the first import, the intervals begin now.
        let last = last.unwrap_or_else(Instant::now);
        tokio::select! {
            // A server could otherwise make the node list its tools without pause.
            () = self.remote.tools_changed() => sleep_until(last + REFRESH_MIN).await,
            () = sleep_until(last + REFRESH) => {}
        }
    }

    /// The tools that the last import left out, each with the reason.
    #[must_use]
    pub fn left_out(&self) -> Vec<String> {
        lock(&self.left_out).clone()
    }

    async fn read(&self) -> Result<Vec<Registration>, AdapterError> {
        // The time is that of the attempt, so a failed import is repeated no more often than a successful one.
        *lock(&self.listed) = Some(Instant::now());
        self.remote.authorise(self.capability.as_ref());
        // The memory counts until the import has taken over the schemas, which do not grow by that.
        let counted = self.remote.answer_meter();
        let tools = timeout(LISTING_TIMEOUT, self.remote.list(&counted)).await;
        let tools = tools.unwrap_or_else(|_| Err(remote::McpCallError::late(LISTING_TIMEOUT)))?;
        let McpImport {
            namespace, only, ..
        } = &self.remote.import;
        let (tools, left_out) = tools::taken(namespace, only, tools);
        *lock(&self.left_out) = left_out;
        Ok(tools
            .into_iter()
            .map(|tool| self.registration(tool))
            .collect())
    }

    fn registration(&self, tool: tools::ImportedTool) -> Registration {
        let remote = Arc::clone(&self.remote);
        let tools::ImportedTool {
            name,
            spec,
            typed,
            headers,
        } = tool;
        let target = Arc::new(McpToolTarget {
            name,
            typed,
            headers,
        });
        let handler = HandlerKind::once(move |input, ctx| {
            let (remote, target) = (Arc::clone(&remote), Arc::clone(&target));
            async move { remote.call(&target, input, &ctx).await }
        });
        let registration = Registration::imported(spec, handler, Provenance::FromMcp);
        let registration = match &self.capability {
            None => registration,
            Some(one) => registration.with_capabilities(Capabilities::new([one.clone()])),
        };
        match typed {
            // A server is not trusted to keep to the schema that it declared.
            true => registration.checking_output(),
            false => registration,
        }
    }
}

impl OperationAdapter for FromMcp {
    fn import(&self) -> BoxFuture<'_, Result<Vec<Registration>, AdapterError>> {
        Box::pin(self.read())
    }
}

impl fmt::Debug for FromMcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FromMcp")
            .field("import", &self.remote.import)
            .finish_non_exhaustive()
    }
}

/// The locked value is consistent after each statement, so a poisoned lock is usable.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
