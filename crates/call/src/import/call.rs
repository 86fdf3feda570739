//! Operations of a peer.

use std::collections::{HashMap, HashSet, VecDeque};

use alknet_core::BoxFuture;
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use crate::body::CallBody;
use crate::client::Caller;
use crate::compose::Provenance;
use crate::error::{CallError, ErrorCode};
use crate::import::{AdapterError, ImportOptions, OperationAdapter};
use crate::limits::{
    IMPORT_BATCH, IMPORT_BYTES_MAX, IMPORT_OPERATIONS_MAX, IMPORT_TIMEOUT, REGISTRY_BYTES_MAX,
};
use crate::peers::forwarding;
use crate::registry::Registration;
use crate::rules;
use crate::services::OperationListing;
use crate::spec::{OperationSpec, Visibility};

/// Operations on one page.
const PAGE: usize = 250;
/// A node's operations about itself and about this connection, which it does not pass on.
const OWN: [&str; 2] = ["services/", "session/"];

/// [`from_call`](crate::from_call) as an adapter.
#[derive(Clone, Debug)]
pub struct FromCall {
    caller: Caller,
    options: ImportOptions,
}

impl FromCall {
    /// Reads the operations of the other side of a connection.
    #[must_use]
    pub fn new(caller: Caller, options: ImportOptions) -> Self {
        Self { caller, options }
    }
}

impl OperationAdapter for FromCall {
    fn import(&self) -> BoxFuture<'_, Result<Vec<Registration>, AdapterError>> {
        Box::pin(super::from_call(&self.caller, &self.options))
    }
}

/// What this node read from a peer.
pub(crate) struct ImportedOperations {
    pub(crate) registrations: Vec<Registration>,
    /// The peer's name for the set.
    pub(crate) registry: String,
}

/// Reads everything that a peer announces, within an import's budget and time.
pub(crate) async fn read_peer(
    caller: &Caller,
    options: &ImportOptions,
) -> Result<ImportedOperations, AdapterError> {
    let mut reading = ImportReader {
        caller,
        options,
        bytes: 0,
    };
    timeout(IMPORT_TIMEOUT, reading.read())
        .await
        .unwrap_or_else(|_| Err(AdapterError::Transport(CallError::timeout())))
}

struct ImportReader<'a> {
    caller: &'a Caller,
    options: &'a ImportOptions,
    /// Bytes read so far.
    bytes: usize,
}

#[derive(Deserialize)]
struct SpecListing {
    specs: Vec<OperationSpec>,
}

impl ImportReader<'_> {
    async fn read(&mut self) -> Result<ImportedOperations, AdapterError> {
        let (names, registry) = self.names().await?;
        let specs = self.specs(names).await?;
        let registrations = specs
            .into_iter()
            .map(|spec| self.registration(spec))
            .collect::<Result<_, _>>()?;
        Ok(ImportedOperations {
            registrations,
            registry,
        })
    }

    /// Every name on every page, and the peer's name for the set.
    async fn names(&mut self) -> Result<(Vec<String>, String), AdapterError> {
        let mut seen = HashSet::new();
        let mut names = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let input = json!({ "limit": PAGE, "cursor": cursor });
            let page: OperationListing = self.ask("services/list", &input).await?;
            self.apply_protocol(&page);
            // The node stores the name and sends it to every watcher.
            if page.registry.len() > REGISTRY_BYTES_MAX {
                let reason = format!("it has more than {REGISTRY_BYTES_MAX} bytes");
                return Err(AdapterError::schema("/registry", reason));
            }
            let before = seen.len();
            for operation in page.operations {
                // Two entries of one name could differ, and only one of them would be called.
                if !seen.insert(operation.name.clone()) {
                    let name = operation.name;
                    return Err(AdapterError::Collision { name });
                }
                if !is_own(&operation.name) && self.options.takes(&operation) {
                    names.push(operation.name);
                }
            }
            // With each page: a peer could send pages without an end.
            if names.len() > IMPORT_OPERATIONS_MAX {
                return Err(AdapterError::TooLarge("operations"));
            }
            match page.next {
                None => return Ok((names, page.registry)),
                // Pages without operations would keep this node asking for ever.
                Some(_) if seen.len() == before => {
                    return Err(AdapterError::schema("/next", "a page without operations"));
                }
                next => cursor = next,
            }
        }
    }

    /// Records the peer's frame limit and whether it takes mixed frames.
    fn apply_protocol(&self, page: &OperationListing) {
        let protocol = &page.protocol;
        let mixed = protocol.features.iter().any(|feature| feature == "bin1");
        let state = self.caller.connection_state();
        state.set_peer_protocol(protocol.max_frame, mixed);
    }

    /// The spec of every name, in batches that the peer can answer.
    async fn specs(&mut self, names: Vec<String>) -> Result<Vec<OperationSpec>, AdapterError> {
        let mut batches: VecDeque<_> = names.chunks(IMPORT_BATCH).map(<[_]>::to_vec).collect();
        let mut specs = Vec::with_capacity(names.len());
        while let Some(mut batch) = batches.pop_front() {
            match self.batch(&batch).await {
                Ok(found) => specs.extend(in_order(&batch, found)?),
                // The answer is too long for the whole batch, or the peer removed one of its operations meanwhile.
                Err(ImportBatchError::Split(_)) if batch.len() > 1 => {
                    let rest = batch.split_off(batch.len() / 2);
                    batches.push_front(rest);
                    // In front, so that specs stay in the order of the names.
                    batches.push_front(batch);
                }
                // The peer removed the operation after it listed it.
                Err(ImportBatchError::Split(error)) if error.code == ErrorCode::NotFound => {}
                // A single operation cannot be split further.
                Err(ImportBatchError::Split(error)) => return Err(error.into()),
                Err(ImportBatchError::For(error)) => return Err(error),
            }
        }
        Ok(specs)
    }

    async fn batch(&mut self, names: &[String]) -> Result<Vec<OperationSpec>, ImportBatchError> {
        let input = json!({ "names": names });
        let answer = self.caller.call("services/schema", &input).await;
        let answer = answer.map_err(|error| match error.code {
            ErrorCode::NotFound | ErrorCode::PayloadTooLarge => ImportBatchError::Split(error),
            _ => ImportBatchError::For(error.into()),
        })?;
        let specs: SpecListing = self.take(&answer).map_err(ImportBatchError::For)?;
        Ok(specs.specs)
    }

    async fn ask<T: for<'de> Deserialize<'de>>(
        &mut self,
        operation: &str,
        input: &serde_json::Value,
    ) -> Result<T, AdapterError> {
        let answer = self.caller.call(operation, input).await?;
        self.take(&answer)
    }

    fn take<T: for<'de> Deserialize<'de>>(&mut self, answer: &CallBody) -> Result<T, AdapterError> {
        self.bytes += answer.raw().len();
        // The peer chooses the length of its answers: their sum is bounded as well.
        if self.bytes > IMPORT_BYTES_MAX {
            return Err(AdapterError::TooLarge("schemas"));
        }
        answer
            .parse()
            .map_err(|error| AdapterError::schema("/", error.message))
    }

    fn registration(&self, mut spec: OperationSpec) -> Result<Registration, AdapterError> {
        let remote = std::mem::take(&mut spec.name);
        let handler = forwarding(self.caller, &spec, &remote, self.options.disclose);
        spec.name = self.options.local_name(&remote);
        spec.namespace = spec.name.split('/').next().unwrap_or_default().to_owned();
        // Callers outside reach a peer's operations only through operations of this node.
        spec.visibility = Visibility::Internal;
        let registration = Registration::imported(spec, handler, Provenance::FromCall);
        rules::check(&registration)
            .map_err(|error| AdapterError::schema(format!("/{remote}"), error))?;
        Ok(registration)
    }
}

/// Why the peer did not answer a batch.
enum ImportBatchError {
    For(AdapterError),
    /// It may answer the halves.
    Split(CallError),
}

fn is_own(name: &str) -> bool {
    OWN.iter().any(|own| name.starts_with(own))
}

/// The specs of these names, each once, and no other.
fn in_order(
    names: &[String],
    found: Vec<OperationSpec>,
) -> Result<Vec<OperationSpec>, AdapterError> {
    let mut by_name = HashMap::with_capacity(found.len());
    for spec in found {
        // The peer may answer with other specs than the requested ones.
        if let Some(twice) = by_name.insert(spec.name.clone(), spec) {
            return Err(AdapterError::Collision { name: twice.name });
        }
    }
    let mut specs = Vec::with_capacity(names.len());
    for name in names {
        let spec = by_name.remove(name);
        specs.push(spec.ok_or_else(|| AdapterError::schema(format!("/{name}"), "no spec"))?);
    }
    match by_name.into_keys().next() {
        Some(name) => Err(AdapterError::schema(
            format!("/{name}"),
            "it was not asked for",
        )),
        None => Ok(specs),
    }
}
