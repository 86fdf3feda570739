//! Sets of operations beside the curated ones: imports, and the registrations of a session. Requests from outside
//! reach none of them but imports from servers that have a rule.

use std::fmt;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use hashbrown::HashMap;

use crate::compiled::CompiledOperation;
use crate::compose::ResolvedOperation;
use crate::limits::SCHEMAS_STEPS_MAX;
use crate::registry::Registration;
use crate::rules::RegistryError;
use crate::spec::OperationSpec;
use crate::sync::lock;

/// Operations by name, immutable.
#[derive(Clone, Default)]
pub(crate) struct OperationOverlay(HashMap<Box<str>, Arc<CompiledOperation>>);

impl OperationOverlay {
    /// Compiles every operation but its schemas, which it compiles when a call first has a value to check. It refuses
    /// those whose check would take too much now.
    pub(crate) fn new(registrations: Vec<Registration>) -> Result<Self, RegistryError> {
        let mut overlay = Self::default();
        let mut left = SCHEMAS_STEPS_MAX;
        for registration in registrations {
            overlay.insert(registration, &mut left)?;
        }
        Ok(overlay)
    }

    pub(crate) fn specs(&self) -> impl Iterator<Item = &OperationSpec> {
        self.0.values().map(|operation| &operation.spec)
    }

    fn insert(&mut self, registration: Registration, left: &mut u64) -> Result<(), RegistryError> {
        let compiled = CompiledOperation::new(registration)?;
        // One budget for the whole import: many schemas below the limit of each could still block a processor.
        compiled.admit(left)?;
        let name = compiled.spec.name.as_str().into();
        match self.0.insert(name, Arc::new(compiled)) {
            None => Ok(()),
            Some(earlier) => Err(RegistryError::Duplicate(earlier.spec.name.clone())),
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Arc<CompiledOperation>> {
        self.0.get(name)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(AsRef::as_ref)
    }

    /// Every operation, in no order.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<CompiledOperation>> {
        self.0.values()
    }

    /// Every operation, in order of name.
    pub(crate) fn sorted(&self) -> Vec<&Arc<CompiledOperation>> {
        let mut all: Vec<_> = self.0.values().collect();
        all.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        all
    }
}

impl fmt::Debug for OperationOverlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The registrations of one session, growing while it lives.
#[derive(Debug, Default)]
pub(crate) struct SessionLayer {
    operations: ArcSwap<OperationOverlay>,
    registering: Mutex<()>,
}

impl SessionLayer {
    pub(crate) fn get(&self, name: &str) -> Option<Arc<CompiledOperation>> {
        self.operations.load().get(name).cloned()
    }

    pub(crate) fn every(&self) -> Vec<ResolvedOperation> {
        let operations = self.operations.load();
        operations
            .sorted()
            .into_iter()
            .map(ResolvedOperation::here)
            .collect()
    }

    /// Adds an operation unless there are `most` already; with `replaces`, replaces the one of the same name.
    pub(crate) fn insert(
        &self,
        registration: Registration,
        most: usize,
        replaces: bool,
    ) -> Result<bool, RegistryError> {
        // Two registrations at once would copy the same set, and one of them would be lost.
        let _one_at_a_time = lock(&self.registering);
        let mut left = SCHEMAS_STEPS_MAX;
        let mut operations = OperationOverlay::clone(&self.operations.load());
        // Before the count: an operation that replaces another needs no further room.
        if replaces {
            operations.0.remove(registration.spec.name.as_str());
        }
        if operations.len() >= most {
            return Ok(false);
        }
        operations.insert(registration, &mut left)?;
        // Readers keep the old set: a lookup never waits for a registration.
        self.operations.store(Arc::new(operations));
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::handler::HandlerKind;

    /// Operations that have `each` patterns, all different.
    fn with_patterns(operations: usize, each: usize, pattern: &str) -> Vec<Registration> {
        let operation = |n: usize| {
            let patterns = (0..each).map(|m| json!({ "pattern": format!("{pattern}{n}-{m}") }));
            let mut schema = json!({ "anyOf": patterns.collect::<Vec<_>>() });
            // The first call reports this, and it does not count against the compiled patterns.
            schema["not"] = json!({ "$ref": "#/$defs/none" });
            let spec = OperationSpec::query(&format!("a/b{n}"), "").with_input(schema);
            let once = HandlerKind::once(|_, _| async { Ok(Value::Null) });
            Registration::new(spec, once)
        };
        (0..operations).map(operation).collect()
    }

    /// Each schema is within its own limits: an earlier version compiled 64,000 patterns for one import, up to the
    /// limit of each.
    #[test]
    fn patterns_of_an_import_count_together() {
        for (each, pattern) in [(64, "a{20000}"), (8, "^[ab]{2000}c")] {
            let refused = OperationOverlay::new(with_patterns(1000, each, pattern));
            let Err(RegistryError::Schema { reason, .. }) = refused else {
                panic!("{pattern}: {refused:?}");
            };
            assert!(reason.contains("compiling its patterns"), "{reason}");
        }
        let usual = OperationOverlay::new(with_patterns(200, 2, "^[a-z]{1,9}"));
        assert_eq!(usual.expect("few").len(), 200);
    }
}
