//! The rights by which an operation calls others.

use std::collections::BTreeMap;
use std::sync::Arc;

use alknet_core::ScopeSet;
use serde::{Deserialize, Serialize};

/// The origin of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Provenance {
    /// Imported from a peer's `services/list`.
    FromCall,
    /// A description without code: for validation and planning.
    FromJsonSchema,
    /// Imported from an MCP server.
    FromMcp,
    /// Imported from an OpenAPI document.
    FromOpenApi,
    /// Written for this node.
    #[default]
    Local,
    /// Registered by a session, for itself.
    Session,
}

impl Provenance {
    /// Whether such an operation may call others. Imports are leaves: the node or server that runs them decides what
    /// they call.
    #[must_use]
    pub fn may_compose(self) -> bool {
        matches!(self, Self::Local | Self::Session)
    }

    /// Whether another machine answers: a server that speaks another protocol, or a peer, behind which servers may
    /// be.
    pub(crate) fn is_remote(self) -> bool {
        matches!(self, Self::FromCall | Self::FromMcp | Self::FromOpenApi)
    }

    /// Whether a server that speaks another protocol than this node answers.
    #[must_use]
    pub fn is_server(self) -> bool {
        matches!(self, Self::FromMcp | Self::FromOpenApi)
    }

    /// Whether such an operation has code behind it at all.
    #[must_use]
    pub fn is_callable(self) -> bool {
        self != Self::FromJsonSchema
    }
}

/// What an operation may do when it calls other operations of this node, for every caller alike.
///
/// Registration grants it, and it never grows: a caller without `fs:read` may call an operation whose authority holds
/// `fs:read`, and learns what that operation lets out. A label is for people; it owns nothing, so the node does not
/// ask an [`OwnershipProvider`](crate::OwnershipProvider) about it, and resources count only as listed here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompositionAuthority {
    /// For logs and errors.
    pub label: Arc<str>,
    /// What it may do.
    pub scopes: ScopeSet,
    /// Resources it may act on, by type: ids, `*`, or actions for operations without an id.
    pub resources: BTreeMap<Arc<str>, Vec<Arc<str>>>,
    /// Whether the code that acts by it came with the request from outside, as a script does, and not from an author who
    /// may be another peer.
    pub is_requesters: bool,
}

impl CompositionAuthority {
    /// An authority with these scopes.
    pub fn new<S: AsRef<str>>(label: &str, scopes: impl IntoIterator<Item = S>) -> Self {
        Self {
            label: label.into(),
            scopes: scopes.into_iter().collect(),
            resources: BTreeMap::new(),
            is_requesters: false,
        }
    }

    /// Adds resources of one type.
    #[must_use]
    pub fn with_resources<S: AsRef<str>>(
        mut self,
        resource_type: &str,
        held: impl IntoIterator<Item = S>,
    ) -> Self {
        let list = self.resources.entry(resource_type.into()).or_default();
        list.extend(held.into_iter().map(|id| Arc::from(id.as_ref())));
        self
    }

    /// Whether this authority allows everything that `other` allows.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let scopes: Vec<String> = other.scopes.clone().into();
        scopes.iter().all(|scope| self.scopes.allows(scope))
            && other.resources.iter().all(|(kind, ids)| {
                let held = self.resources.get(kind).map_or(&[][..], Vec::as_slice);
                ids.iter().all(|id| held.contains(id))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_covers_what_is_no_more_than_itself() {
        let wide = CompositionAuthority::new("wide", ["fs:*", "node:read"])
            .with_resources("disk", ["sda", "sdb"]);
        let covers = |scopes: &[&str]| wide.covers(&CompositionAuthority::new("x", scopes));
        assert!(covers(&[]) && covers(&["fs:read", "node:read"]) && covers(&["fs:write:*"]));
        assert!(!covers(&["node:write"]) && !covers(&["*"]) && !covers(&["node:*"]));
        let disk = |id| CompositionAuthority::new("x", [""; 0]).with_resources("disk", [id]);
        assert!(wide.covers(&disk("sda")) && !wide.covers(&disk("*")) && !wide.covers(&disk("c")));
        let all = CompositionAuthority::new("all", ["*"]);
        assert!(all.covers(&CompositionAuthority::new("x", ["*", "a:*"])));
    }
}
