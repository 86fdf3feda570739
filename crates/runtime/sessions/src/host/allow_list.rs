//! The grants of a session, which are checked for each of its calls.

use std::sync::Arc;

use alknet_call::{CallError, Env, ErrorCode, SchemaCheckError, SchemaError, ValueSchema};
use alknet_core::Identity;
use alknet_runtime::{RuntimeCode, ScriptFailure};
use serde_json::{Value, json};

use super::failure::overloaded;
use super::spec::{PeerSelector, SessionGrants};

/// The grants of a session, prepared for the checks.
pub(super) struct CallAllowList {
    grants: SessionGrants,
    /// For each grant: its constraint, and how many more calls it allows.
    rules: Vec<(Option<ValueSchema>, Option<u32>)>,
}

impl CallAllowList {
    /// Compiles the constraints. Compiling them and checking inputs counts in the share of `identity`, which owns the
    /// session.
    ///
    /// # Errors
    /// [`RuntimeCode::Limit`] for a constraint that is no schema, [`RuntimeCode::Quota`] if that share is used up.
    pub(super) fn new(
        grants: &SessionGrants,
        identity: Option<&Arc<Identity>>,
    ) -> Result<Self, ScriptFailure> {
        let owner = identity.map(|identity| &identity.id);
        let rules = grants.allow.iter().map(|grant| {
            let constraint = grant.constraint.as_ref();
            let compiled = constraint.map(|schema| ValueSchema::of_peer(schema, owner));
            let compiled = compiled.transpose().map_err(|error| {
                let text = format!("the constraint of {}: {error}", grant.pattern);
                match error {
                    SchemaError::Busy => ScriptFailure::no_capacity(text),
                    _ => ScriptFailure::new(RuntimeCode::Limit, text),
                }
            })?;
            Ok((compiled, grant.budget))
        });
        Ok(Self {
            rules: rules.collect::<Result<_, ScriptFailure>>()?,
            grants: grants.clone(),
        })
    }

    /// Checks whether a call is granted, and takes one call of the grant's budget.
    ///
    /// # Errors
    /// `NOT_FOUND` for a call that is not granted, as if the operation did not exist. `FORBIDDEN` for an input that
    /// the grant does not allow. `OVERLOADED` if too many inputs are being checked. `QUOTA_EXCEEDED` if the grant is
    /// used up.
    pub(super) fn check(
        &mut self,
        env: &Env,
        name: &str,
        peer: Option<&str>,
        input: &Value,
    ) -> Result<(), CallError> {
        let Some((at, grant)) = self.grants.find(name, peer) else {
            return Err(CallError::not_found(name));
        };
        // A call that names no peer goes to wherever the operation is.
        let here = || {
            env.reachable()
                .iter()
                .any(|found| found.operation() == name)
        };
        if grant.peer == PeerSelector::Local && !here() {
            return Err(CallError::not_found(name));
        }
        let Some((constraint, budget)) = self.rules.get_mut(at) else {
            return Err(CallError::not_found(name));
        };
        if let Some(Err(error)) = constraint.as_ref().map(|rule| rule.validate(input)) {
            return Err(refused(name, &error));
        }
        // The budget is last, so that a refused input uses up nothing.
        if let Some(left) = budget {
            let Some(less) = left.checked_sub(1) else {
                let text = format!("the session may not call '{name}' any more");
                let details = json!({ "code": RuntimeCode::Quota.name() });
                return Err(CallError::operation("QUOTA_EXCEEDED", text).with_details(details));
            };
            *left = less;
        }
        Ok(())
    }
}

/// The error for an input that does not match, or that was not checked.
fn refused(name: &str, error: &SchemaCheckError) -> CallError {
    let why = match error {
        SchemaCheckError::Busy => return overloaded(&error.to_string()),
        SchemaCheckError::Violation { path, reason } => format!("at '{path}': {reason}"),
        other => other.to_string(),
    };
    let text = format!("the session may call '{name}' only with other input; {why}");
    let details = json!({ "code": RuntimeCode::Denied.name() });
    CallError::new(ErrorCode::Forbidden, text).with_details(details)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use alknet_core::{IdentityKind, PeerId};

    use super::super::failure::of_open;
    use super::super::spec::SessionGrant;
    use super::*;

    /// One identity has as many schemas compiled as may run and wait, and opens a session meanwhile: that the
    /// constraint of its grant finds no turn is not a mistake in the constraint.
    #[test]
    fn a_constraint_that_finds_no_turn_is_to_be_tried_again() {
        let id: PeerId = "greedy".parse().expect("a peer id");
        let identity = Arc::new(Identity {
            id: id.clone(),
            kind: IdentityKind::Peer,
            scopes: ["x"].into_iter().collect(),
            resources: BTreeMap::new(),
            generation: 0,
        });
        let mut grant = SessionGrant::to("a/b");
        grant.constraint = Some(json!({ "type": "object" }));
        let grants = SessionGrants {
            allow: vec![grant.clone()],
            ..SessionGrants::default()
        };
        let large = json!({ "enum": (0..9_000).collect::<Vec<_>>() });
        let done = AtomicBool::new(false);
        let refused = thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let _ = ValueSchema::of_peer(&large, Some(&id));
                    }
                });
            }
            let refused = alknet_test_support::eventually(
                "no turn is left",
                std::time::Duration::from_secs(60),
                || CallAllowList::new(&grants, Some(&identity)).err(),
            );
            done.store(true, Ordering::Relaxed);
            refused
        });
        assert!(refused.is_no_capacity(), "{refused}");
        let told = of_open(&refused);
        assert_eq!(told.code, ErrorCode::Overloaded);
        assert!(told.retryable && told.retry_after_ms.is_some());
        assert!(
            CallAllowList::new(&grants, Some(&identity)).is_ok(),
            "later it is"
        );
        // A constraint that is not a valid schema is refused at any time.
        grant.constraint = Some(json!({ "type": "nonsense" }));
        let wrong = SessionGrants {
            allow: vec![grant],
            ..SessionGrants::default()
        };
        let wrong = CallAllowList::new(&wrong, Some(&identity))
            .err()
            .expect("no schema");
        assert_eq!(wrong.code, RuntimeCode::Limit);
        assert!(!wrong.is_no_capacity());
    }

    #[test]
    fn an_input_that_finds_no_turn_is_to_be_tried_again() {
        let told = refused("a/b", &SchemaCheckError::Busy);
        assert_eq!(told.code, ErrorCode::Overloaded);
        assert!(told.retryable && told.retry_after_ms.is_some());
        let violation = SchemaCheckError::Violation {
            path: "/n".to_owned(),
            reason: "no".to_owned(),
        };
        for never in [violation, SchemaCheckError::TooMuch] {
            let told = refused("a/b", &never);
            assert_eq!((told.code, told.retryable), (ErrorCode::Forbidden, false));
        }
    }
}
