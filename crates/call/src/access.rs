//! The rules that decide who may call an operation.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use alknet_core::{Identity, PeerId, ScopeSet};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::compose::CompositionAuthority;
use crate::limits::{SCOPE_BYTES_MAX, SCOPES_MAX};

/// The rule of one operation. An empty rule admits every caller, also unknown peers.
///
/// Two kinds of things can be checked: an [`Identity`], which a caller proved, for calls from outside, and a
/// [`CompositionAuthority`], which a registration granted, for calls between operations. The claim of a forwarder
/// about its originator is neither, and no function turns it into either:
///
/// ```
/// # use alknet_call::*;
/// # fn check(rule: AccessControl, ctx: Ctx) -> AccessDecision {
/// rule.check(ctx.identity().map(AsRef::as_ref), None, None)
/// # }
/// ```
///
/// ```compile_fail
/// # use alknet_call::*;
/// # fn check(rule: AccessControl, ctx: Ctx) -> AccessDecision {
/// rule.check(ctx.forwarded_for(), None, None)
/// # }
/// ```
///
/// ```compile_fail
/// # use alknet_call::*;
/// # fn check(rule: AccessControl, ctx: Ctx) -> AccessDecision {
/// rule.check_authority(ctx.forwarded_for(), None)
/// # }
/// ```
///
/// ```compile_fail
/// # use alknet_call::*;
/// # fn scopes(claim: &ForwardedFor) -> alknet_core::ScopeSet {
/// claim.scopes.iter().collect()
/// # }
/// ```
///
/// ```compile_fail
/// # use alknet_call::*;
/// # fn identity(claim: ForwardedFor) -> alknet_core::Identity {
/// claim.into()
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AccessControl {
    /// All of these scopes; at most [`SCOPES_MAX`].
    #[serde(deserialize_with = "scopes")]
    pub required_scopes: Vec<String>,
    /// One of these scopes; as many at most.
    #[serde(
        deserialize_with = "some_scopes",
        skip_serializing_if = "Option::is_none"
    )]
    pub required_scopes_any: Option<Vec<String>>,
    /// The kind of resource the operation acts on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_type: Option<String>,
    /// What it does to the resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_action: Option<String>,
    /// The caller has to be identified, whatever scopes it holds: for operations that change what is
    /// the caller's own.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub identified: bool,
}

/// A list of scopes. The reader stops at the limit: a list of a peer may have a million.
struct Scopes(Vec<String>);

impl<'de> Deserialize<'de> for Scopes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ReadScopes).map(Self)
    }
}

struct ReadScopes;

impl<'de> Visitor<'de> for ReadScopes {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {SCOPES_MAX} scopes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut scopes = Vec::new();
        while let Some(scope) = list.next_element()? {
            // Stopping here keeps the memory bounded before any rule is checked.
            if scopes.len() == SCOPES_MAX {
                return Err(serde::de::Error::custom(too_many()));
            }
            scopes.push(scope);
        }
        Ok(scopes)
    }
}

fn scopes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Scopes::deserialize(deserializer).map(|scopes| scopes.0)
}

fn some_scopes<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<String>>, D::Error> {
    let scopes = Option::<Scopes>::deserialize(deserializer)?;
    Ok(scopes.map(|scopes| scopes.0))
}

fn too_many() -> String {
    format!("a list of a rule has at most {SCOPES_MAX} scopes")
}

/// The owners of resources.
pub trait OwnershipProvider: Send + Sync + 'static {
    /// Whether `peer` may do `action` to the resource `id`.
    fn owns(&self, peer: &PeerId, resource_type: &str, id: &str, action: &str) -> bool;

    /// Whether `peer` may do `action` to any resource of the type.
    fn owns_any(&self, peer: &PeerId, resource_type: &str, action: &str) -> bool;
}

impl fmt::Debug for dyn OwnershipProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnershipProvider")
    }
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessDecision {
    /// The call is allowed.
    Allowed,
    /// The identity lacks a right.
    Forbidden,
    /// The caller is unknown, and the rule requires an identity.
    Unauthenticated,
}

impl AccessControl {
    /// Describes what exceeds the bounds of a rule, if anything does.
    pub(crate) fn excess(&self) -> Option<String> {
        let any = self.required_scopes_any.as_deref().unwrap_or_default();
        if self.required_scopes.len().max(any.len()) > SCOPES_MAX {
            return Some(too_many());
        }
        let resource = self.resource_type.iter().chain(&self.resource_action);
        let mut texts = self.required_scopes.iter().chain(any).chain(resource);
        // A peer sends these texts, and the node keeps them.
        let is_long = texts.any(|text| text.len() > SCOPE_BYTES_MAX);
        is_long.then(|| {
            format!("scopes, resource type and action have at most {SCOPE_BYTES_MAX} bytes each")
        })
    }

    /// Bytes of memory that a copy takes, approximately.
    pub(crate) fn kept_bytes(&self) -> usize {
        let any = self.required_scopes_any.iter().flatten();
        let scopes = self.required_scopes.iter().chain(any);
        let texts = scopes
            .chain(&self.resource_type)
            .chain(&self.resource_action);
        size_of::<Self>()
            + texts
                .map(|text| size_of::<String>() + text.len())
                .sum::<usize>()
    }

    /// Whether every caller may call, also an unknown peer.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.required_scopes.is_empty()
            && self.required_scopes_any.is_none()
            && self.resource_type.is_none()
            && !self.identified
    }

    /// Whether `identity` may call, for the resource `resource_id` if the input names one.
    #[must_use]
    pub fn check(
        &self,
        identity: Option<&Identity>,
        resource_id: Option<&str>,
        ownership: Option<&dyn OwnershipProvider>,
    ) -> AccessDecision {
        if self.is_open() {
            return AccessDecision::Allowed;
        }
        match identity {
            None => AccessDecision::Unauthenticated,
            Some(identity) => {
                self.verdict(&AccessSubject::identity(identity, ownership), resource_id)
            }
        }
    }

    /// Whether an operation with `authority` may call, for the resource `resource_id` if the input names one. An
    /// operation without authority may call only operations that are open to every caller.
    #[must_use]
    pub fn check_authority(
        &self,
        authority: Option<&CompositionAuthority>,
        resource_id: Option<&str>,
    ) -> AccessDecision {
        match authority {
            _ if self.is_open() => AccessDecision::Allowed,
            // The caller here is an operation, which cannot prove an identity.
            None => AccessDecision::Forbidden,
            Some(authority) => self.verdict(&AccessSubject::authority(authority), resource_id),
        }
    }

    /// The part of the check that needs no input: it decides whether an operation is listed.
    #[must_use]
    pub fn check_scopes(&self, identity: Option<&Identity>) -> AccessDecision {
        match identity {
            _ if self.is_open() => AccessDecision::Allowed,
            None => AccessDecision::Unauthenticated,
            Some(identity) if self.scopes_allow(&identity.scopes) => AccessDecision::Allowed,
            Some(_) => AccessDecision::Forbidden,
        }
    }

    fn verdict(&self, holder: &AccessSubject<'_>, resource_id: Option<&str>) -> AccessDecision {
        if self.scopes_allow(holder.scopes) && self.resource_allows(holder, resource_id) {
            AccessDecision::Allowed
        } else {
            AccessDecision::Forbidden
        }
    }

    pub(crate) fn scopes_allow(&self, scopes: &ScopeSet) -> bool {
        let has = |scope: &String| scopes.allows(scope);
        self.required_scopes.iter().all(has)
            && self
                .required_scopes_any
                .as_ref()
                .is_none_or(|any| any.iter().any(has))
    }

    fn resource_allows(&self, holder: &AccessSubject<'_>, resource_id: Option<&str>) -> bool {
        let Some(kind) = self.resource_type.as_deref() else {
            return true;
        };
        let action = self.resource_action.as_deref().unwrap_or_default();
        match (holder.owner, resource_id) {
            (Some((peer, owners)), Some(id)) => owners.owns(peer, kind, id, action),
            // Without an id the operation concerns the type as a whole.
            (Some((peer, owners)), None) => owners.owns_any(peer, kind, action),
            (None, id) => holder.resources.get(kind).is_some_and(|held| {
                held.iter().any(|h| match id {
                    Some(id) => h.as_ref() == id || h.as_ref() == "*",
                    None => h.as_ref() == action,
                })
            }),
        }
    }
}

/// The subject of a check.
struct AccessSubject<'a> {
    scopes: &'a ScopeSet,
    resources: &'a BTreeMap<Arc<str>, Vec<Arc<str>>>,
    /// The peer that may own resources, and the provider that knows which.
    owner: Option<(&'a PeerId, &'a dyn OwnershipProvider)>,
}

impl<'a> AccessSubject<'a> {
    fn identity(identity: &'a Identity, owners: Option<&'a dyn OwnershipProvider>) -> Self {
        Self {
            scopes: &identity.scopes,
            resources: &identity.resources,
            owner: owners.map(|owners| (&identity.id, owners)),
        }
    }

    /// An authority owns nothing by its label: the label could be any peer's id.
    fn authority(authority: &'a CompositionAuthority) -> Self {
        Self {
            scopes: &authority.scopes,
            resources: &authority.resources,
            owner: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use alknet_core::IdentityKind;

    use super::*;

    fn identity(scopes: &[&str], held: &[&str]) -> Identity {
        Identity {
            id: "someone".parse().expect("a peer id"),
            kind: IdentityKind::Peer,
            scopes: scopes.iter().collect(),
            resources: [("disk".into(), held.iter().map(|&h| h.into()).collect())].into(),
            generation: 0,
        }
    }

    fn rule(all: &[&str], any: Option<&[&str]>) -> AccessControl {
        let own = |list: &[&str]| list.iter().map(|&s| s.to_owned()).collect();
        AccessControl {
            required_scopes: own(all),
            required_scopes_any: any.map(own),
            ..AccessControl::default()
        }
    }

    #[test]
    fn rules_have_bounds() {
        for (many, bytes, fits) in [
            (SCOPES_MAX, SCOPE_BYTES_MAX, true),
            (SCOPES_MAX + 1, 1, false),
            (1, SCOPE_BYTES_MAX + 1, false),
        ] {
            let scopes = vec!["s".repeat(bytes); many];
            let all = AccessControl {
                required_scopes: scopes.clone(),
                ..AccessControl::default()
            };
            let any = AccessControl {
                required_scopes_any: Some(scopes),
                ..AccessControl::default()
            };
            for rule in [all, any] {
                assert_eq!(rule.excess().is_none(), fits, "{many} {bytes}");
                // What is too long is read first: its text is bounded where it comes from.
                let text = serde_json::to_string(&rule).expect("JSON");
                let read = serde_json::from_str::<AccessControl>(&text);
                assert_eq!(read.ok(), (many <= SCOPES_MAX).then_some(rule));
            }
        }
        for resource in [true, false] {
            let long = Some("r".repeat(SCOPE_BYTES_MAX + 1));
            let rule = AccessControl {
                resource_type: long.clone().filter(|_| resource),
                resource_action: long.filter(|_| !resource),
                ..AccessControl::default()
            };
            assert!(rule.excess().is_some());
        }
    }

    #[test]
    fn scopes_are_all_and_any() {
        let peer = identity(&["a", "b"], &[]);
        let check = |rule: AccessControl| rule.check(Some(&peer), None, None);
        assert_eq!(check(rule(&[], None)), AccessDecision::Allowed);
        assert_eq!(check(rule(&["a", "b"], None)), AccessDecision::Allowed);
        assert_eq!(check(rule(&["a", "c"], None)), AccessDecision::Forbidden);
        assert_eq!(
            check(rule(&["a"], Some(&["c", "b"]))),
            AccessDecision::Allowed
        );
        assert_eq!(check(rule(&["a"], Some(&["c"]))), AccessDecision::Forbidden);
        assert_eq!(check(rule(&[], Some(&[]))), AccessDecision::Forbidden);
        assert_eq!(
            rule(&["a"], None).check(None, None, None),
            AccessDecision::Unauthenticated
        );
        assert_eq!(
            rule(&[], None).check(None, None, None),
            AccessDecision::Allowed
        );
    }

    #[test]
    fn an_identified_caller_may_call_its_own_operations() {
        let rule = AccessControl {
            identified: true,
            ..AccessControl::default()
        };
        let peer = identity(&[], &[]);
        assert!(!rule.is_open());
        for (caller, verdict) in [
            (Some(&peer), AccessDecision::Allowed),
            (None, AccessDecision::Unauthenticated),
        ] {
            assert_eq!(rule.check(caller, None, None), verdict);
            assert_eq!(rule.check_scopes(caller), verdict);
        }
        assert_eq!(rule.check_authority(None, None), AccessDecision::Forbidden);
        let open = serde_json::to_value(AccessControl::default()).expect("JSON");
        assert!(open.get("identified").is_none());
    }

    #[test]
    fn resources_without_a_provider_come_from_the_identity() {
        let rule = AccessControl {
            resource_type: Some("disk".to_owned()),
            resource_action: Some("read".to_owned()),
            ..AccessControl::default()
        };
        let check = |held: &[&str], id| rule.check(Some(&identity(&[], held)), id, None);
        assert_eq!(check(&["sda"], Some("sda")), AccessDecision::Allowed);
        assert_eq!(check(&["*"], Some("sda")), AccessDecision::Allowed);
        assert_eq!(check(&["sdb"], Some("sda")), AccessDecision::Forbidden);
        assert_eq!(check(&["read"], None), AccessDecision::Allowed);
        assert_eq!(check(&["sda"], None), AccessDecision::Forbidden);
        assert_eq!(
            rule.check(None, Some("sda"), None),
            AccessDecision::Unauthenticated
        );
    }

    #[test]
    fn a_provider_decides_about_resources() {
        struct DiskOwnership;
        impl OwnershipProvider for DiskOwnership {
            fn owns(&self, _: &PeerId, kind: &str, id: &str, action: &str) -> bool {
                (kind, id, action) == ("disk", "sda", "")
            }
            fn owns_any(&self, _: &PeerId, _: &str, _: &str) -> bool {
                false
            }
        }
        let rule = AccessControl {
            resource_type: Some("disk".to_owned()),
            ..AccessControl::default()
        };
        let peer = identity(&[], &["*"]);
        let check = |id| rule.check(Some(&peer), id, Some(&DiskOwnership));
        assert_eq!(check(Some("sda")), AccessDecision::Allowed);
        assert_eq!(check(Some("sdb")), AccessDecision::Forbidden);
        assert_eq!(check(None), AccessDecision::Forbidden);
    }

    #[test]
    fn an_authority_is_checked_like_an_identity_that_owns_nothing() {
        let rule = AccessControl {
            required_scopes: vec!["fs:read".to_owned()],
            resource_type: Some("disk".to_owned()),
            ..AccessControl::default()
        };
        let check =
            |authority: Option<&CompositionAuthority>| rule.check_authority(authority, Some("sda"));
        let bare = CompositionAuthority::new("backup", ["fs:read"]);
        let full = bare.clone().with_resources("disk", ["sda"]);
        assert_eq!(check(None), AccessDecision::Forbidden);
        assert_eq!(check(Some(&bare)), AccessDecision::Forbidden);
        assert_eq!(check(Some(&full)), AccessDecision::Allowed);
        let open = AccessControl::default();
        assert_eq!(open.check_authority(None, None), AccessDecision::Allowed);
    }
}
