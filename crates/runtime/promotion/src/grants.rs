//! What a promotion would let an operation do, in words that a reviewer reads.

use alknet_call::{OperationSpec, OperationType, Registry, Visibility};
use alknet_core::{Identity, ScopeSet};
use serde::{Deserialize, Serialize};

use crate::bundle::PromotionBundle;
use crate::store::AuthoritySnapshot;

/// What one of a bundle's `uses` means on this node, now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleGrant {
    /// As the bundle has it: an operation, or all of a namespace as `fs/*`.
    pub operation: String,
    /// The operations of this node that it names, at most [`NAMED_MAX`].
    pub names: Vec<String>,
    /// Scopes that those need.
    pub scopes: Vec<String>,
    /// Scopes among them that the author does not hold: such calls will be refused.
    pub missing: Vec<String>,
    /// All of that as one sentence.
    pub text: String,
}

/// Operations that are named of one reach.
const NAMED_MAX: usize = 32;

/// One for each of the bundle's `uses`.
pub(crate) fn resolve(
    bundle: &PromotionBundle,
    authority: &AuthoritySnapshot,
    registry: &Registry,
) -> Vec<BundleGrant> {
    let held: ScopeSet = authority.scopes.iter().collect();
    let promoted = registry.generation();
    let imported = registry.imported_specs();
    let all = registry.specs().chain(promoted.specs()).chain(&imported);
    let all: Vec<_> = all.collect();
    let author = bundle.content().author.as_str();
    let uses = bundle.content().spec.uses.iter();
    uses.map(|operation| grant(operation, author, &held, &all))
        .collect()
}

fn grant(operation: &str, author: &str, held: &ScopeSet, all: &[&OperationSpec]) -> BundleGrant {
    let reach = alknet_call::NameSet::from_iter([operation]);
    let meant: Vec<_> = all
        .iter()
        .filter(|spec| reach.contains(&spec.name))
        .collect();
    let mut scopes: Vec<_> = meant
        .iter()
        .flat_map(|spec| spec.access_control.required_scopes.iter().cloned())
        .collect();
    scopes.sort();
    scopes.dedup();
    let missing = scopes.iter().filter(|scope| !held.allows(scope));
    let missing: Vec<_> = missing.cloned().collect();
    let text = sentence(operation, author, &meant, &scopes, &missing);
    BundleGrant {
        operation: operation.to_owned(),
        names: meant
            .iter()
            .take(NAMED_MAX)
            .map(|spec| spec.name.clone())
            .collect(),
        scopes,
        missing,
        text,
    }
}

fn sentence(
    operation: &str,
    author: &str,
    meant: &[&&OperationSpec],
    scopes: &[String],
    missing: &[String],
) -> String {
    let what = match meant {
        [] => return format!("calls '{operation}', which this node does not have; a peer may"),
        [one] => {
            let changes = match one.op_type {
                OperationType::Mutation => "changes something",
                OperationType::Query => "changes nothing",
                OperationType::Subscription => "answers with events",
            };
            let inner = match one.visibility {
                Visibility::Internal => ", internal",
                Visibility::External => "",
            };
            format!("calls '{}' ({changes}{inner})", one.name)
        }
        many => {
            let mutations = many
                .iter()
                .filter(|it| it.op_type == OperationType::Mutation);
            let count = mutations.count();
            format!(
                "calls any of the {} operations of '{operation}', of which {count} change something",
                many.len()
            )
        }
    };
    let by = match scopes {
        [] => ", which everybody may".to_owned(),
        scopes => format!(" by the scopes {} of '{author}'", scopes.join(", ")),
    };
    let not = match missing {
        [] => String::new(),
        missing => format!("; '{author}' does not hold {}", missing.join(", ")),
    };
    format!("{what}{by}{not}")
}

impl AuthoritySnapshot {
    /// What an identity may do.
    pub(crate) fn from_identity(identity: &Identity) -> Self {
        let text = |all: &[std::sync::Arc<str>]| all.iter().map(ToString::to_string).collect();
        let resources = identity.resources.iter();
        Self {
            scopes: identity.scopes.clone().into(),
            resources: resources
                .map(|(kind, ids)| (kind.to_string(), text(ids)))
                .collect(),
        }
    }

    /// What both may do.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let within = |these: &[String], those: &ScopeSet| -> Vec<String> {
            let kept = these.iter().filter(|scope| those.allows(scope));
            kept.cloned().collect()
        };
        let (mine, theirs): (ScopeSet, ScopeSet) =
            (self.scopes.iter().collect(), other.scopes.iter().collect());
        // A scope, or all scopes below one, is in both where the other side covers it.
        let mut scopes = within(&self.scopes, &theirs);
        scopes.extend(within(&other.scopes, &mine));
        scopes.sort();
        scopes.dedup();
        let resources = self.resources.iter().filter_map(|(kind, ids)| {
            let theirs = other.resources.get(kind)?;
            let all = |ids: &[String]| ids.iter().any(|id| id == "*");
            let both = match (all(ids), all(theirs)) {
                (true, _) => theirs.clone(),
                (_, true) => ids.clone(),
                _ => ids
                    .iter()
                    .filter(|id| theirs.contains(id))
                    .cloned()
                    .collect(),
            };
            (!both.is_empty()).then(|| (kind.clone(), both))
        });
        Self {
            resources: resources.collect(),
            scopes,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn authority(scopes: &[String]) -> AuthoritySnapshot {
        AuthoritySnapshot {
            scopes: scopes.to_vec(),
            ..AuthoritySnapshot::default()
        }
    }

    fn set(authority: &AuthoritySnapshot) -> ScopeSet {
        authority.scopes.iter().collect()
    }

    proptest! {
        #[test]
        fn both_may_do_what_each_may(
            mine in proptest::collection::vec("[ab](:[ab*]){0,2}|\\*", 0..4),
            theirs in proptest::collection::vec("[ab](:[ab*]){0,2}|\\*", 0..4),
            scope in "[ab](:[ab]){0,2}",
        ) {
            let (mine, theirs) = (authority(&mine), authority(&theirs));
            let both = set(&mine.and(&theirs));
            let each = set(&mine).allows(&scope) && set(&theirs).allows(&scope);
            prop_assert_eq!(both.allows(&scope), each, "{:?}", both);
        }
    }

    #[test]
    fn resources_are_those_of_both() {
        let held = |ids: &[&str]| AuthoritySnapshot {
            resources: [(
                "disk".to_owned(),
                ids.iter().map(|id| (*id).to_owned()).collect(),
            )]
            .into(),
            ..AuthoritySnapshot::default()
        };
        assert_eq!(held(&["a", "b"]).and(&held(&["b", "c"])), held(&["b"]));
        assert_eq!(held(&["*"]).and(&held(&["b"])), held(&["b"]));
        assert_eq!(
            held(&["a"]).and(&held(&["b"])),
            AuthoritySnapshot::default()
        );
        assert_eq!(
            held(&["a"]).and(&AuthoritySnapshot::default()),
            AuthoritySnapshot::default()
        );
    }
}
