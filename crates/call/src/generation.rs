//! Layer 0b: operations that sessions wrote, and that an administrator reviewed and promoted.
//!
//! The operations of the program itself never change while it runs. Promoted ones stand beside them as a generation,
//! which never changes either: a new generation replaces the old one at once and as a whole. A holder of the old one
//! keeps it: a running request finishes with the code and finds the operations that it began with.

use std::fmt;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use hashbrown::HashMap;
use sha2::{Digest, Sha256};

use crate::compiled::CompiledOperation;
use crate::registry::Registration;
use crate::rules::{self, RegistryError};
use crate::spec::OperationSpec;

/// Operations by name.
pub(crate) type ByName = HashMap<Box<str>, Arc<CompiledOperation>>;

/// The promoted operations of a node at one time.
pub struct Generation {
    number: u64,
    by_name: ByName,
    /// The operations of the program and the promoted ones, in order of name: what a listing shows.
    sorted: Vec<Arc<CompiledOperation>>,
    digest: String,
    rejected: Vec<RegistryError>,
}

impl Generation {
    /// Builds a generation beside these operations of the program, as the successor of `before`, if there was one. It
    /// leaves out operations that break a rule, have a taken name or lie in a reserved namespace.
    pub(crate) fn new(
        number: u64,
        curated: &ByName,
        registrations: Vec<Registration>,
        before: Option<&Self>,
    ) -> Result<Self, RegistryError> {
        let mut by_name = ByName::new();
        let mut rejected = Vec::new();
        for registration in registrations {
            // One bad operation must not keep the others from being promoted.
            if let Err(error) = insert(&mut by_name, curated, registration) {
                tracing::warn!(%error, "a promoted operation is left out");
                rejected.push(error);
            }
        }
        let all = curated.values().chain(by_name.values());
        let mut sorted: Vec<_> = all.map(Arc::clone).collect();
        sorted.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        // Most nodes promote nothing, and writing out and hashing every spec is a good part of a start.
        let same = before.filter(|before| before.by_name.is_empty() && by_name.is_empty());
        Ok(Self {
            number,
            digest: match same {
                Some(before) => before.digest.clone(),
                None => digest(&sorted)?,
            },
            by_name,
            sorted,
            rejected,
        })
    }

    /// A generation without promoted operations, beside no program.
    pub(crate) fn empty() -> Self {
        Self {
            number: 0,
            by_name: ByName::new(),
            sorted: Vec::new(),
            digest: String::new(),
            rejected: Vec::new(),
        }
    }

    /// Its number, as the caller of [`Dispatcher::promote`](crate::Dispatcher::promote) counts.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The spec of a promoted operation. Access is not checked.
    #[must_use]
    pub fn spec(&self, name: &str) -> Option<&OperationSpec> {
        self.by_name.get(name).map(|operation| &operation.spec)
    }

    /// The specs of the promoted operations, in order of name.
    pub fn specs(&self) -> impl Iterator<Item = &OperationSpec> {
        let promoted =
            |it: &&Arc<CompiledOperation>| self.by_name.contains_key(it.spec.name.as_str());
        self.sorted.iter().filter(promoted).map(|it| &it.spec)
    }

    /// SHA-256 over every spec of the node, those of the program included, in hex.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Why this generation leaves out promoted operations.
    #[must_use]
    pub fn rejected(&self) -> &[RegistryError] {
        &self.rejected
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Arc<CompiledOperation>> {
        self.by_name.get(name)
    }

    /// Every operation of the node, those of the program included, in order of name.
    pub(crate) fn sorted(&self) -> &[Arc<CompiledOperation>] {
        &self.sorted
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation")
            .field("number", &self.number)
            .field("operations", &self.by_name.keys())
            .finish_non_exhaustive()
    }
}

fn insert(
    by_name: &mut ByName,
    curated: &ByName,
    registration: Registration,
) -> Result<(), RegistryError> {
    // A reviewed script is still not an operation of the node itself.
    rules::check_namespace(&registration.spec)?;
    let name = registration.spec.name.clone();
    if curated.contains_key(name.as_str()) || by_name.contains_key(name.as_str()) {
        return Err(RegistryError::Duplicate(name));
    }
    let compiled = CompiledOperation::new(registration)?;
    // A schema that does not compile would fail every call later.
    compiled.compile()?;
    by_name.insert(name.into(), Arc::new(compiled));
    Ok(())
}

fn digest(sorted: &[Arc<CompiledOperation>]) -> Result<String, RegistryError> {
    let mut hash = Sha256::new();
    for operation in sorted {
        let text = serde_json::to_vec(&operation.spec).map_err(|error| RegistryError::Schema {
            name: operation.spec.name.clone(),
            reason: error.to_string(),
        })?;
        hash.update(text);
    }
    Ok(HEXLOWER.encode(&hash.finalize()))
}
