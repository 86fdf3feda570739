//! Tools of other servers as operations of this node.

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
    /// First part of the operations' names.
    pub namespace: String,
    /// Where the server is, `https://tools.example/mcp`.
    pub url: String,
    /// What the configuration calls the credential for it. Each operation has to be granted it.
    pub credential: Option<String>,
    /// Only operations whose names, without the namespace, begin with one of these; empty for all.
    pub only: Vec<String>,
}

/// Reads the tools of one server, and calls them. Its operations share its connection, which lasts as
/// long as any of them.
pub struct FromMcp {
    remote: Arc<McpRemote>,
    /// For the list of tools, which no operation asks for; the operations get it too.
    capability: Option<Capability>,
    left_out: Mutex<Vec<String>>,
    listed: Mutex<Option<Instant>>,
}

impl FromMcp {
    /// Of the server of `import`, by `client`, which decides what may be reached. `capability` is the
    /// credential that `import` names, and what the server says counts against `memory`.
    ///
    /// # Errors
    /// The server's URL is not valid.
    pub fn new(
        client: HttpClient,
        import: McpImport,
        capability: Option<Capability>,
        memory: &ImportMemory,
    ) -> Result<Self, AdapterError> {
        let uri: Result<Uri, _> = import.url.parse();
        let fits = uri.is_ok_and(|uri| uri.scheme().is_some() && uri.authority().is_some());
        if !fits {
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

    /// Waits until the tools may be others than they were at the last import: the server said so, or ten
    /// minutes passed. It does not return more often than every five seconds.
    pub async fn changed(&self) {
        let last = *lock(&self.listed);
        let last = last.unwrap_or_else(Instant::now);
        tokio::select! {
            () = self.remote.tools_changed() => sleep_until(last + REFRESH_MIN).await,
            () = sleep_until(last + REFRESH) => {}
        }
    }

    /// Tools that were left out of the last import, each with the reason.
    #[must_use]
    pub fn left_out(&self) -> Vec<String> {
        lock(&self.left_out).clone()
    }

    async fn read(&self) -> Result<Vec<Registration>, AdapterError> {
        *lock(&self.listed) = Some(Instant::now());
        self.remote.authorise(self.capability.as_ref());
        // Counted until its schemas are taken over, which are no longer than they were.
        let counted = self.remote.counted();
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

/// What is behind is whole at every moment, so poison means nothing.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
