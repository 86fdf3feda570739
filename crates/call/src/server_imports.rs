//! The imports of a node from servers that are no peers, and which of all its operations requests from outside reach.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::compiled::CompiledOperation;
use crate::error::{CallError, ErrorCode};
use crate::generation::Generation;
use crate::layers::OperationOverlay;
use crate::registry::{Registration, Registry};
use crate::rules::RegistryError;
use crate::spec::OperationSpec;

/// The operations of one server.
#[derive(Clone)]
struct ServerImport {
    operations: OperationOverlay,
    /// SHA-256 over every spec.
    digest: [u8; 32],
}

/// All imports of a node at one time, by their source. Immutable.
#[derive(Clone, Default)]
pub(crate) struct ServerImports {
    by_source: BTreeMap<Box<str>, ServerImport>,
    /// The operations that requests from outside reach, in order of name.
    offered: Vec<Arc<CompiledOperation>>,
    /// The hash over the digests of all sources, in hex; empty without an import.
    digest: String,
}

impl ServerImports {
    /// These imports with `next` in place of the earlier operations from `source`.
    fn with(&self, source: &str, next: &ServerImport) -> Self {
        let mut by_source = self.by_source.clone();
        by_source.insert(source.into(), next.clone());
        let all = by_source.values().flat_map(|one| one.operations.all());
        let mut offered: Vec<_> = all.filter(|one| is_offered(one)).map(Arc::clone).collect();
        offered.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        let mut hash = Sha256::new();
        for (name, one) in &by_source {
            // With the name, so that two sources that swap their operations change the digest.
            hash.update(name.as_bytes());
            hash.update(one.digest);
        }
        Self {
            digest: HEXLOWER.encode(&hash.finalize()),
            offered,
            by_source,
        }
    }

    /// An operation of any source.
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<CompiledOperation>> {
        let mut sources = self.by_source.values();
        sources.find_map(|one| one.operations.get(name))
    }

    /// Like `get`, where requests from outside reach the operation.
    pub(crate) fn get_external(&self, name: &str) -> Option<&Arc<CompiledOperation>> {
        self.get(name).filter(|one| is_offered(one))
    }

    /// Every operation, in order of name within each source.
    pub(crate) fn every(&self) -> impl Iterator<Item = &Arc<CompiledOperation>> {
        let sources = self.by_source.values();
        sources.flat_map(|one| one.operations.sorted())
    }

    pub(crate) fn specs(&self) -> impl Iterator<Item = &OperationSpec> {
        let sources = self.by_source.values();
        sources.flat_map(|one| one.operations.specs())
    }

    /// Whether `source` serves an operation of that name; `None` before its first import.
    pub(crate) fn serves(&self, source: &str, name: &str) -> Option<bool> {
        let found = self.by_source.get(source)?;
        Some(found.operations.get(name).is_some())
    }

    /// The number of running calls.
    pub(crate) fn running(&self) -> usize {
        let all = self.by_source.values().flat_map(|one| one.operations.all());
        all.map(|one| one.running()).sum()
    }
}

impl Registry {
    /// The error for an operation of a server whose operations this node has not imported yet. Only for callers that
    /// may know which servers the node uses; `None` for every other name.
    pub(crate) fn unread_import(&self, name: &str) -> Option<CallError> {
        let name = name.trim_start_matches('/');
        let namespace = name.split('/').next().unwrap_or_default();
        let imported = self.imported();
        let is_unread = self.server_namespaces.contains(namespace)
            && imported.serves(namespace, name).is_none();
        is_unread.then(|| {
            let message = format!(
                "there is no operation '{name}' yet: this node has not read the import '{namespace}'; if that \
                 failed, 'alknet status' shows the problem import-failed with the cause"
            );
            let error = CallError::new(ErrorCode::NotFound, message);
            error.with_details(json!({ "reason": "import_not_read" }))
        })
    }
}

impl fmt::Debug for ServerImports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.by_source.keys()).finish()
    }
}

/// The operations of a server, before they replace its earlier ones.
pub(crate) struct PendingImport<'a> {
    source: &'a str,
    import: ServerImport,
}

impl<'a> PendingImport<'a> {
    /// Compiles the operations and hashes their specs: both take time.
    pub(crate) fn new(
        source: &'a str,
        registrations: Vec<Registration>,
    ) -> Result<Self, RegistryError> {
        let operations = OperationOverlay::new(registrations)?;
        let mut hash = Sha256::new();
        for operation in operations.sorted() {
            let spec = &operation.spec;
            let text = serde_json::to_vec(spec).map_err(|error| RegistryError::Schema {
                name: spec.name.clone(),
                reason: error.to_string(),
            })?;
            hash.update(text);
        }
        let digest = hash.finalize().into();
        Ok(Self {
            source,
            import: ServerImport { operations, digest },
        })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.import.operations.names()
    }

    /// A name that another source has as well.
    pub(crate) fn collision(&self, before: &ServerImports) -> Option<&str> {
        let others = before.by_source.iter();
        let mut others = others.filter(|(name, _)| name.as_ref() != self.source);
        others.find_map(|(_, other)| {
            self.names()
                .find(|name| other.operations.get(name).is_some())
        })
    }

    /// All imports once this one is installed.
    pub(crate) fn over(&self, before: &ServerImports) -> ServerImports {
        before.with(self.source, &self.import)
    }
}

/// Whether requests from outside reach an imported operation. One without a rule is for this node's own operations
/// alone: it acts with a credential of the node.
fn is_offered(operation: &CompiledOperation) -> bool {
    operation.is_external() && operation.is_callable() && !operation.spec.access_control.is_open()
}

/// All operations that requests from outside can reach, at one time.
pub(crate) struct RegistrySnapshot {
    generation: Arc<Generation>,
    imported: Arc<ServerImports>,
}

impl RegistrySnapshot {
    pub(crate) fn new(generation: Arc<Generation>, imported: Arc<ServerImports>) -> Self {
        Self {
            generation,
            imported,
        }
    }

    /// The operations whose names come after `cursor`, in order of name. Internal operations of the node are among
    /// them.
    pub(crate) fn after(&self, cursor: &str) -> impl Iterator<Item = &Arc<CompiledOperation>> {
        let generation = &self.generation;
        let mut own = rest(generation.sorted(), cursor).iter().peekable();
        let imported = rest(&self.imported.offered, cursor).iter();
        // A promoted operation counts before an imported one of its name.
        let is_first =
            move |one: &&Arc<CompiledOperation>| generation.get(&one.spec.name).is_none();
        let mut imported = imported.filter(is_first).peekable();
        std::iter::from_fn(move || {
            let is_imported = match (own.peek(), imported.peek()) {
                (Some(one), Some(other)) => other.spec.name < one.spec.name,
                (one, _) => one.is_none(),
            };
            match is_imported {
                true => imported.next(),
                false => own.next(),
            }
        })
    }

    /// SHA-256 over every spec, in hex.
    pub(crate) fn digest(&self) -> String {
        let own = self.generation.digest();
        match self.imported.digest.as_str() {
            "" => own.to_owned(),
            imported => {
                let hash = Sha256::new().chain_update(own).chain_update(imported);
                HEXLOWER.encode(&hash.finalize())
            }
        }
    }

    /// The number of running calls of this node's operations, imported ones among them.
    pub(crate) fn running(&self) -> usize {
        let own = self.generation.sorted().iter().map(|one| one.running());
        own.sum::<usize>() + self.imported.running()
    }
}

/// The part of a list in order of name after `cursor`.
fn rest<'a>(sorted: &'a [Arc<CompiledOperation>], cursor: &str) -> &'a [Arc<CompiledOperation>] {
    let first = sorted.partition_point(|one| one.spec.name.as_str() <= cursor);
    &sorted[first..]
}
