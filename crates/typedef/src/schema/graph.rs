//! Which schemas use which, for two questions: whether one contains itself, and how many there are after following
//! every reference.

use std::collections::HashMap;

use super::Result;
use crate::error::TypedefError;
use crate::limits::SchemaLimits;

/// One schema.
#[derive(Clone, Debug)]
struct SchemaNode {
    ptr: String,
    /// Schemas in it that apply when it does.
    below: Vec<usize>,
    /// The target of its `$ref`.
    reference: Option<String>,
}

/// Every schema of a document.
#[derive(Clone, Debug, Default)]
pub(crate) struct SchemaGraph {
    nodes: Vec<SchemaNode>,
    by_ptr: HashMap<String, usize>,
}

/// The state of a schema in the search.
#[derive(Clone, Copy, Debug)]
enum VisitState {
    /// The search is inside it: a reference that leads to it now lies within it.
    Open,
    /// How many schemas it expands to, and how many lie within each other.
    Closed { count: u64, height: u64 },
}

impl SchemaGraph {
    /// Adds a schema and returns its number.
    pub(super) fn add(&mut self, ptr: &str) -> usize {
        let number = self.nodes.len();
        self.by_ptr.insert(ptr.to_owned(), number);
        self.nodes.push(SchemaNode {
            ptr: ptr.to_owned(),
            below: Vec::new(),
            reference: None,
        });
        number
    }

    pub(super) fn link(&mut self, from: usize, to: usize) {
        self.nodes[from].below.push(to);
    }

    pub(super) fn refer(&mut self, from: usize, ptr: String) {
        self.nodes[from].reference = Some(ptr);
    }

    /// Whether a schema lies at `ptr`.
    pub(crate) fn contains(&self, ptr: &str) -> bool {
        self.by_ptr.contains_key(ptr)
    }

    /// Refuses a reference to a path without a schema.
    pub(super) fn check_references(&self) -> Result<()> {
        for node in &self.nodes {
            if let Some(target) = &node.reference
                && !self.contains(target)
            {
                let why = format!("$ref names #{target}, where no schema is");
                return Err(TypedefError::schema(&node.ptr, why));
            }
        }
        Ok(())
    }

    /// Refuses a schema that contains itself below `ptr`, and one that expands to too much.
    pub(crate) fn check_expanded(&self, ptr: &str, limits: &SchemaLimits) -> Result<()> {
        let Some(start) = self.by_ptr.get(ptr) else {
            return Err(TypedefError::schema(ptr, "no schema is here"));
        };
        let mut seen = vec![None; self.nodes.len()];
        self.expand(*start, 1, limits, &mut seen).map(|_| ())
    }

    fn expand(
        &self,
        number: usize,
        depth: u64,
        limits: &SchemaLimits,
        seen: &mut [Option<VisitState>],
    ) -> Result<(u64, u64)> {
        let node = &self.nodes[number];
        let (count, height) = match seen[number] {
            Some(VisitState::Open) => {
                let why = "it contains itself; what has a layout has an end";
                return Err(TypedefError::schema(&node.ptr, why));
            }
            Some(VisitState::Closed { count, height }) => (count, height),
            None => (1, 1),
        };
        // Before going deeper: this check bounds the function's own stack.
        if depth + height - 1 > limits.depth {
            let what = "schemas within each other, after references";
            return Err(TypedefError::limit(what, limits.depth));
        }
        // A schema that several references name is expanded once.
        if seen[number].is_some() {
            return Ok((count, height));
        }
        seen[number] = Some(VisitState::Open);
        let target = node.reference.as_ref().and_then(|ptr| self.by_ptr.get(ptr));
        let (mut count, mut height) = (1_u64, 1);
        for next in node.below.iter().chain(target) {
            let (more, higher) = self.expand(*next, depth + 1, limits, seen)?;
            count = count.saturating_add(more);
            height = height.max(higher + 1);
        }
        if count > limits.expanded {
            let what = "schemas within a schema, after references";
            return Err(TypedefError::limit(what, limits.expanded));
        }
        seen[number] = Some(VisitState::Closed { count, height });
        Ok((count, height))
    }
}
