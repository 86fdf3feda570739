//! Describes to a reviewer what a promotion would allow an operation to do.

use alknet_call::{OperationSpec, OperationType, Registry, Visibility};
use alknet_core::{Identity, ScopeSet};
use serde::{Deserialize, Serialize};

use crate::bundle::PromotionBundle;
use crate::store::AuthoritySnapshot;

/// What one of a bundle's `uses` means on this node at present.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleGrant {
    /// The name from the bundle: an operation, or all of a namespace as `fs/*`.
    pub operation: String,
    /// The operations of this node that the name covers, at most [`NAMED_MAX`].
    pub names: Vec<String>,
    /// The scopes that those operations need.
    pub scopes: Vec<String>,
    /// Lists of scopes; those operations need one scope of each list.
    #[serde(default)]
    pub scopes_any: Vec<Vec<String>>,
    /// The scopes of `scopes` that the author does not hold: the node will refuse such calls.
    pub missing: Vec<String>,
    /// The lists of `scopes_any` of which the author holds no scope: the node will refuse such calls.
    #[serde(default)]
    pub missing_any: Vec<Vec<String>>,
    /// All of that as one sentence.
    pub text: String,
}

/// The most operations that the list of one name has.
const NAMED_MAX: usize = 32;

/// The most scopes of one list in a sentence, because each operation of an imported server has a scope of its own.
/// The lists themselves have all scopes.
const SCOPES_SHOWN_MAX: usize = 8;

/// The grants of the bundle, one for each of its `uses`.
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
    let needs = ScopeNeeds::from_specs(&meant);
    let missing = needs.missing(held);
    let text = sentence(operation, author, &meant, &needs, &missing);
    BundleGrant {
        operation: operation.to_owned(),
        names: meant
            .iter()
            .take(NAMED_MAX)
            .map(|spec| spec.name.clone())
            .collect(),
        scopes: needs.scopes,
        scopes_any: needs.scopes_any,
        missing: missing.scopes,
        missing_any: missing.scopes_any,
        text,
    }
}

/// The scopes that an author needs for calls of some operations. Each list is sorted and has each entry once.
#[derive(Debug, Default)]
struct ScopeNeeds {
    scopes: Vec<String>,
    scopes_any: Vec<Vec<String>>,
    resource_types: Vec<String>,
}

impl ScopeNeeds {
    fn from_specs(meant: &[&&OperationSpec]) -> Self {
        let mut needs = Self::default();
        for rule in meant.iter().map(|spec| &spec.access_control) {
            needs.scopes.extend(rule.required_scopes.iter().cloned());
            if let Some(any) = &rule.required_scopes_any {
                let mut any = any.clone();
                // Lists of the same scopes become equal, so `dedup` below removes the repetition.
                any.sort();
                any.dedup();
                needs.scopes_any.push(any);
            }
            needs.resource_types.extend(rule.resource_type.clone());
        }
        needs.scopes.sort();
        needs.scopes.dedup();
        needs.scopes_any.sort();
        needs.scopes_any.dedup();
        needs.resource_types.sort();
        needs.resource_types.dedup();
        needs
    }

    /// The scopes among them that the author does not hold.
    fn missing(&self, held: &ScopeSet) -> Self {
        let lacks = |scope: &&String| !held.allows(scope);
        let lacks_all = |any: &&Vec<String>| any.iter().all(|scope| !held.allows(scope));
        Self {
            scopes: self.scopes.iter().filter(lacks).cloned().collect(),
            scopes_any: self.scopes_any.iter().filter(lacks_all).cloned().collect(),
            // Only scopes can be missing here.
            resource_types: Vec::new(),
        }
    }

    /// The scopes in words, each part with its prefix. `list` writes the scopes of a part.
    fn parts(&self, all: &str, one: &str, list: fn(&[String]) -> String) -> Vec<String> {
        let scopes = (!self.scopes.is_empty()).then(|| format!("{all}{}", list(&self.scopes)));
        let any = self.scopes_any.iter();
        let any = any.map(|any| format!("{one}{}", list(any)));
        scopes.into_iter().chain(any).collect()
    }
}

/// All scopes.
fn whole(scopes: &[String]) -> String {
    scopes.join(", ")
}

/// The first scopes.
fn few(scopes: &[String]) -> String {
    let shown = &scopes[..scopes.len().min(SCOPES_SHOWN_MAX)];
    match scopes.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn sentence(
    operation: &str,
    author: &str,
    meant: &[&&OperationSpec],
    needs: &ScopeNeeds,
    missing: &ScopeNeeds,
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
    let by = needs.parts("the scopes ", "one of the scopes ", few);
    let by = match by.as_slice() {
        [] if meant.iter().all(|spec| spec.access_control.is_open()) => {
            ", which every caller may call".to_owned()
        }
        [] => ", which needs no scope".to_owned(),
        by => format!(" by {} of '{author}'", by.join(" and ")),
    };
    let on = match needs.resource_types.as_slice() {
        [] => String::new(),
        kinds => format!(", on resources of '{author}' of type {}", kinds.join(", ")),
    };
    // All missing scopes are listed: an author could otherwise hide behind "and N more" the one that a reviewer would
    // refuse.
    let not = missing.parts("", "any of ", whole);
    let not = match not.as_slice() {
        [] => String::new(),
        not => format!("; '{author}' does not hold {}", not.join(", nor ")),
    };
    format!("{what}{by}{on}{not}")
}

impl AuthoritySnapshot {
    /// The authority of an identity.
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

    /// The authority that both have.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let within = |these: &[String], those: &ScopeSet| -> Vec<String> {
            let covered = these.iter().filter(|scope| those.allows(scope));
            covered.cloned().collect()
        };
        let (mine, theirs): (ScopeSet, ScopeSet) =
            (self.scopes.iter().collect(), other.scopes.iter().collect());
        // A scope, or a wildcard for the scopes below one, is in the result if the other side covers it.
        let mut scopes = within(&self.scopes, &theirs);
        scopes.extend(within(&other.scopes, &mine));
        scopes.sort();
        scopes.dedup();
        let resources = self.resources.iter().filter_map(|(kind, ids)| {
            let theirs = other.resources.get(kind)?;
            let all = |ids: &[String]| ids.iter().any(|id| id == "*");
            let both = match (all(ids), all(theirs)) {
                // `*` stands for all resources of a kind, so the other side decides.
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

    /// What a reviewer reads of calls of an operation by an author with these scopes.
    fn read(rule: alknet_call::AccessControl, held: &[&str]) -> BundleGrant {
        let mut spec = OperationSpec::query("node/info", "");
        spec.access_control = rule;
        let held: ScopeSet = held.iter().collect();
        grant("node/info", "ada", &held, &[&spec])
    }

    fn rule(all: &[&str], any: Option<&[&str]>) -> alknet_call::AccessControl {
        let own = |list: &[&str]| list.iter().map(|&it| it.to_owned()).collect();
        alknet_call::AccessControl {
            required_scopes: own(all),
            required_scopes_any: any.map(own),
            ..Default::default()
        }
    }

    /// A reviewer read that every caller may call it.
    #[test]
    fn an_operation_that_needs_one_of_several_scopes_is_not_shown_as_open() {
        let either: &[&str] = &["node:admin", "node:read"];
        let held = read(rule(&[], Some(either)), &["node:read"]);
        assert_eq!(
            held.text,
            "calls 'node/info' (changes nothing) by one of the scopes node:admin, node:read of 'ada'"
        );
        assert_eq!(held.scopes_any, [either]);
        assert!(held.missing.is_empty() && held.missing_any.is_empty());
    }

    #[test]
    fn scopes_of_which_the_author_holds_none_are_named() {
        let either: &[&str] = &["node:admin", "node:read"];
        let lacks = read(rule(&["a", "b"], Some(either)), &["a"]);
        assert_eq!(
            lacks.text,
            "calls 'node/info' (changes nothing) by the scopes a, b and one of the scopes node:admin, \
             node:read of 'ada'; 'ada' does not hold b, nor any of node:admin, node:read"
        );
        assert_eq!(lacks.missing, ["b"]);
        assert_eq!(lacks.missing_any, [either]);
    }

    /// An author asks for all of a server, which has some hundred operations.
    #[test]
    fn a_sentence_names_a_few_of_many_scopes() {
        let scopes: Vec<_> = (0..12).map(|n| format!("import:api:n{n:02}")).collect();
        let scopes: Vec<_> = scopes.iter().map(String::as_str).collect();
        let told = read(rule(&scopes, None), &["import:api:n00"]);
        assert_eq!((told.scopes.len(), told.missing.len()), (12, 11));
        let words = "import:api:n07 and 4 more of 'ada'; 'ada' does not hold import:api:n01, ";
        assert!(told.text.contains(words), "{}", told.text);
        // Of those that the author lacks none is left out.
        let lacks = scopes[1..].join(", ");
        let words = format!("'ada' does not hold {lacks}");
        assert!(told.text.ends_with(&words), "{}", told.text);
    }

    #[test]
    fn only_what_is_open_is_what_every_caller_may_call() {
        let open = read(rule(&[], None), &[]);
        assert!(
            open.text.ends_with(", which every caller may call"),
            "{}",
            open.text
        );
        let identified = alknet_call::AccessControl {
            identified: true,
            resource_type: Some("disk".to_owned()),
            ..rule(&[], None)
        };
        let known = read(identified, &[]);
        let words = ", which needs no scope, on resources of 'ada' of type disk";
        assert!(known.text.ends_with(words), "{}", known.text);
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
