//! What a caller learns when a rule refuses it.
//!
//! An unknown caller learns the key that it proved itself, and nothing of the rule. A known caller that names an
//! operation learns which scopes it lacks there: it knows from `FORBIDDEN` that the operation exists, a scope is a
//! name and no secret, and only an administrator grants one.

use std::fmt;

use alknet_core::config::is_scope;
use alknet_core::{Identity, PeerKey, ScopeSet};
use serde_json::{Map, Value, json};

use crate::access::{AccessControl, AccessDecision, OwnershipProvider};
use crate::error::{CallError, ErrorCode};

/// Scopes of each kind that one message names; `details` has all of them.
const SCOPES_NAMED_MAX: usize = 8;

impl AccessControl {
    /// Like [`check`](Self::check), with an error that names what is missing. `key` is the one that the caller's
    /// connection proved.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` for an unknown caller, else `FORBIDDEN`.
    pub(crate) fn admit(
        &self,
        identity: Option<&Identity>,
        resource_id: Option<&str>,
        ownership: Option<&dyn OwnershipProvider>,
        key: Option<PeerKey>,
    ) -> Result<(), CallError> {
        match self.check(identity, resource_id, ownership) {
            AccessDecision::Allowed => Ok(()),
            AccessDecision::Forbidden | AccessDecision::Unauthenticated => {
                Err(self.refusal(identity, key))
            }
        }
    }

    /// Like `admit`, for the part of the rule that needs no input, as [`check_scopes`](Self::check_scopes).
    pub(crate) fn admit_scopes(
        &self,
        identity: Option<&Identity>,
        key: Option<PeerKey>,
    ) -> Result<(), CallError> {
        match self.check_scopes(identity) {
            AccessDecision::Allowed => Ok(()),
            AccessDecision::Forbidden | AccessDecision::Unauthenticated => {
                Err(self.refusal(identity, key))
            }
        }
    }

    /// The error for a caller that the rule refuses.
    pub(crate) fn refusal(&self, identity: Option<&Identity>, key: Option<PeerKey>) -> CallError {
        let Some(identity) = identity else {
            // The rule of an operation is not for callers without an identity.
            return unknown_caller(key);
        };
        let missing = MissingScopes::from_rule(self, &identity.scopes);
        if missing.is_empty() {
            return CallError::new(ErrorCode::Forbidden, self.lacked_resource());
        }
        let message = format!("this identity lacks {missing}; ask an administrator for it");
        CallError::new(ErrorCode::Forbidden, message).with_details(missing.details())
    }

    /// The message about a missing resource, where the scopes suffice.
    fn lacked_resource(&self) -> String {
        let kind = self.resource_type.as_deref().filter(|kind| is_scope(kind));
        let action = self.resource_action.as_deref();
        let action = action.filter(|action| is_scope(action));
        let kind = kind.unwrap_or("?");
        match action {
            Some(action) => format!(
                "this identity does not hold the resource for '{action}': an administrator gives it one of type '{kind}'"
            ),
            None => format!(
                "this identity does not hold the resource: an administrator gives it one of type '{kind}'"
            ),
        }
    }
}

/// The error for a caller without an identity. Its own key is no secret from the caller, and an administrator needs
/// the key.
pub(crate) fn unknown_caller(key: Option<PeerKey>) -> CallError {
    let needs = "the operation needs an identity; connect with a known key or send auth_token";
    let Some(key) = key else {
        return CallError::new(ErrorCode::Unauthenticated, needs);
    };
    let message =
        format!("{needs}. This node does not know your key {key}: an administrator can add it");
    CallError::new(ErrorCode::Unauthenticated, message)
        .with_details(json!({ "key": key.to_string() }))
}

/// What a holder of some scopes lacks to pass a rule.
pub(crate) struct MissingScopes<'a> {
    /// The holder lacks each of these.
    all: Vec<&'a str>,
    /// The holder lacks all of these, and needs one.
    any: Vec<&'a str>,
    /// Whether the holder lacks others, which no identity can have: a peer announced them, and errors do not repeat
    /// them.
    is_odd: bool,
}

impl<'a> MissingScopes<'a> {
    pub(crate) fn from_rule(rule: &'a AccessControl, held: &ScopeSet) -> Self {
        let lacks = |scope: &&String| !held.allows(scope);
        let all: Vec<&String> = rule.required_scopes.iter().filter(lacks).collect();
        let any = rule.required_scopes_any.as_deref();
        let any = any.filter(|any| any.iter().all(|scope| !held.allows(scope)));
        let can_hold = |scope: &&String| is_scope(scope);
        let is_odd = !all.iter().all(can_hold)
            || any.is_some_and(|any| any.iter().filter(can_hold).count() == 0);
        let mut missing = Self {
            all: valid_scopes(all),
            any: valid_scopes(any.unwrap_or_default()),
            is_odd,
        };
        // One of a single scope means all.
        if missing.any.len() == 1 {
            missing.all.append(&mut missing.any);
        }
        missing
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty() && self.any.is_empty() && !self.is_odd
    }

    fn details(&self) -> Value {
        let mut details = Map::new();
        for (name, scopes) in [
            ("missing_scopes", &self.all),
            ("missing_scopes_any", &self.any),
        ] {
            if !scopes.is_empty() {
                details.insert(name.to_owned(), json!(scopes));
            }
        }
        Value::Object(details)
    }
}

/// The scopes that an identity can have. Others may have any characters, since peers announce rules as well.
fn valid_scopes<'a>(scopes: impl IntoIterator<Item = &'a String>) -> Vec<&'a str> {
    let scopes = scopes.into_iter().map(String::as_str);
    scopes.filter(|scope| is_scope(scope)).collect()
}

impl fmt::Display for MissingScopes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        match self.all.as_slice() {
            [] => {}
            [one] => parts.push(format!("the scope '{one}'")),
            more => parts.push(format!("the scopes {}", list(more))),
        }
        if !self.any.is_empty() {
            parts.push(format!("one of the scopes {}", list(&self.any)));
        }
        if self.is_odd {
            parts.push("a scope that no identity can have".to_owned());
        }
        f.write_str(&parts.join(" and "))
    }
}

fn list(scopes: &[&str]) -> String {
    let shown = scopes.iter().take(SCOPES_NAMED_MAX);
    let shown: Vec<_> = shown.map(|scope| format!("'{scope}'")).collect();
    let more = scopes.len().saturating_sub(SCOPES_NAMED_MAX);
    match more {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use alknet_core::IdentityKind;

    use super::*;

    const KEY: PeerKey = PeerKey::Ed25519([7; 32]);

    fn holder(scopes: &[&str]) -> Identity {
        Identity {
            id: "someone".parse().expect("a peer id"),
            kind: IdentityKind::Peer,
            scopes: scopes.iter().collect(),
            resources: Default::default(),
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

    fn refused(rule: &AccessControl, scopes: &[&str]) -> CallError {
        let holder = holder(scopes);
        let refused = rule.admit(Some(&holder), None, None, Some(KEY));
        refused.expect_err("it lacks something")
    }

    #[test]
    fn a_known_caller_learns_the_scopes_that_it_lacks() {
        let error = refused(&rule(&["a", "b", "c"], None), &["b"]);
        assert_eq!(error.code, ErrorCode::Forbidden);
        assert!(error.message.contains("the scopes 'a', 'c'"), "{error}");
        let details = json!({ "missing_scopes": ["a", "c"] });
        assert_eq!(error.details.as_deref(), Some(&details));
    }

    #[test]
    fn a_known_caller_learns_of_which_scopes_it_needs_one() {
        let error = refused(&rule(&["a"], Some(&["b", "c"])), &["a"]);
        assert!(
            error.message.contains("one of the scopes 'b', 'c'"),
            "{error}"
        );
        let details = json!({ "missing_scopes_any": ["b", "c"] });
        assert_eq!(error.details.as_deref(), Some(&details));
        let both = refused(&rule(&["a"], Some(&["b", "c"])), &[]);
        let text = "the scope 'a' and one of the scopes 'b', 'c'";
        assert!(both.message.contains(text), "{both}");
        // A holder of one of them lacks none.
        let error = refused(&rule(&["a"], Some(&["b", "c"])), &["c"]);
        assert!(!error.message.contains("'b'"), "{error}");
    }

    #[test]
    fn an_unknown_caller_learns_its_own_key_and_nothing_of_the_rule() {
        let rule = rule(&["secret:a"], Some(&["secret:b", "secret:c"]));
        for key in [Some(KEY), None] {
            let error = rule.admit(None, None, None, key).expect_err("unknown");
            assert_eq!(error.code, ErrorCode::Unauthenticated);
            let text = serde_json::to_string(&error).expect("JSON");
            assert!(!text.contains("secret"), "{text}");
            assert_eq!(text.contains(&KEY.to_string()), key.is_some(), "{text}");
        }
    }

    #[test]
    fn what_no_identity_can_hold_is_not_repeated() {
        for rule in [
            rule(&["a\u{1b}[2J"], None),
            rule(&[], Some(&["two words"])),
            rule(&[], Some(&[])),
        ] {
            let error = refused(&rule, &[]);
            assert_eq!(error.code, ErrorCode::Forbidden);
            assert!(
                error.message.contains("that no identity can have"),
                "{error}"
            );
            assert!(!error.message.contains("[2J"), "{error}");
        }
    }

    #[test]
    fn a_message_names_a_few_scopes_and_the_details_all() {
        let scopes: Vec<_> = (0..12).map(|n| format!("scope:{n}")).collect();
        let scopes: Vec<_> = scopes.iter().map(String::as_str).collect();
        let error = refused(&rule(&scopes, None), &[]);
        assert!(error.message.contains("and 4 more"), "{error}");
        let details = error.details.expect("the scopes");
        assert_eq!(details["missing_scopes"], json!(scopes));
    }

    #[test]
    fn a_caller_without_the_resource_learns_its_type() {
        let rule = AccessControl {
            resource_type: Some("disk".to_owned()),
            ..rule(&["a"], None)
        };
        let error = refused(&rule, &["a"]);
        assert!(error.message.contains("one of type 'disk'"), "{error}");
        assert!(error.details.is_none(), "{error}");
    }
}
