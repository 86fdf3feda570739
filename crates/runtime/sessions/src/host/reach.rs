//! What a session may call, checked for each of its calls.

use std::sync::Arc;

use alknet_call::{CallError, Env, ErrorCode, Misfit, Schema, SchemaError};
use alknet_core::Identity;
use alknet_runtime::{Code, Failure};
use serde_json::{Value, json};

use super::failure::overloaded;
use super::spec::{Grants, Peer};

/// The grants of a session, with what they need to be checked.
pub(super) struct Reach {
    grants: Grants,
    /// By grant: its constraint, and how often it may still be used.
    rules: Vec<(Option<Schema>, Option<u32>)>,
}

impl Reach {
    /// Constraints are compiled, and inputs checked against them, within the share of `identity`, whose session it is.
    ///
    /// # Errors
    /// [`Code::Limit`] for a constraint that is no schema, [`Code::Quota`] where that share is used up.
    pub(super) fn new(grants: &Grants, identity: Option<&Arc<Identity>>) -> Result<Self, Failure> {
        let owner = identity.map(|identity| &identity.id);
        let rules = grants.allow.iter().map(|grant| {
            let constraint = grant.constraint.as_ref();
            let compiled = constraint.map(|schema| Schema::of_peer(schema, owner));
            let compiled = compiled.transpose().map_err(|error| {
                let text = format!("the constraint of {}: {error}", grant.pattern);
                match error {
                    SchemaError::Busy => Failure::no_room(text),
                    _ => Failure::new(Code::Limit, text),
                }
            })?;
            Ok((compiled, grant.budget))
        });
        Ok(Self {
            rules: rules.collect::<Result<_, Failure>>()?,
            grants: grants.clone(),
        })
    }

    /// Whether this call is granted; takes one of the grant's budget.
    ///
    /// # Errors
    /// `NOT_FOUND` for what is not granted, as if it did not exist; `FORBIDDEN` for an input that
    /// the grant does not allow; `OVERLOADED` where too many inputs are being checked; `QUOTA_EXCEEDED`
    /// where the grant is used up.
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
        // Without a peer's name a call goes wherever the operation is.
        let here = || {
            env.reachable()
                .iter()
                .any(|found| found.operation() == name)
        };
        if grant.peer == Peer::Local && !here() {
            return Err(CallError::not_found(name));
        }
        let Some((constraint, budget)) = self.rules.get_mut(at) else {
            return Err(CallError::not_found(name));
        };
        if let Some(Err(error)) = constraint.as_ref().map(|rule| rule.validate(input)) {
            return Err(refused(name, &error));
        }
        if let Some(left) = budget {
            let Some(less) = left.checked_sub(1) else {
                let text = format!("the session may not call '{name}' any more");
                let details = json!({ "code": Code::Quota.name() });
                return Err(CallError::operation("QUOTA_EXCEEDED", text).with_details(details));
            };
            *left = less;
        }
        Ok(())
    }
}

/// What a caller sees of an input that does not fit, or was not looked at.
fn refused(name: &str, error: &Misfit) -> CallError {
    let why = match error {
        Misfit::Busy => return overloaded(&error.to_string()),
        Misfit::Violation { path, reason } => format!("at '{path}': {reason}"),
        other => other.to_string(),
    };
    let text = format!("the session may call '{name}' only with other input; {why}");
    let details = json!({ "code": Code::Denied.name() });
    CallError::new(ErrorCode::Forbidden, text).with_details(details)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use alknet_core::{IdentityKind, PeerId};

    use super::super::failure::of_open;
    use super::super::spec::Grant;
    use super::*;

    /// One identity has as many schemas compiled as may run and wait, and opens a session meanwhile: the constraint of
    /// its grant is none of its mistakes.
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
        let mut grant = Grant::to("a/b");
        grant.constraint = Some(json!({ "type": "object" }));
        let grants = Grants {
            allow: vec![grant.clone()],
            ..Grants::default()
        };
        let large = json!({ "enum": (0..9_000).collect::<Vec<_>>() });
        let done = AtomicBool::new(false);
        let refused = thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let _ = Schema::of_peer(&large, Some(&id));
                    }
                });
            }
            let refused = alknet_test_support::eventually(
                "no turn is left",
                std::time::Duration::from_secs(60),
                || Reach::new(&grants, Some(&identity)).err(),
            );
            done.store(true, Ordering::Relaxed);
            refused
        });
        assert!(refused.is_no_room(), "{refused}");
        let told = of_open(&refused);
        assert_eq!(told.code, ErrorCode::Overloaded);
        assert!(told.retryable && told.retry_after_ms.is_some());
        assert!(Reach::new(&grants, Some(&identity)).is_ok(), "later it is");
        // What is no schema is none at any time.
        grant.constraint = Some(json!({ "type": "nonsense" }));
        let wrong = Grants {
            allow: vec![grant],
            ..Grants::default()
        };
        let wrong = Reach::new(&wrong, Some(&identity))
            .err()
            .expect("no schema");
        assert_eq!(wrong.code, Code::Limit);
        assert!(!wrong.is_no_room());
    }

    #[test]
    fn an_input_that_finds_no_turn_is_to_be_tried_again() {
        let told = refused("a/b", &Misfit::Busy);
        assert_eq!(told.code, ErrorCode::Overloaded);
        assert!(told.retryable && told.retry_after_ms.is_some());
        let violation = Misfit::Violation {
            path: "/n".to_owned(),
            reason: "no".to_owned(),
        };
        for never in [violation, Misfit::TooMuch] {
            let told = refused("a/b", &never);
            assert_eq!((told.code, told.retryable), (ErrorCode::Forbidden, false));
        }
    }
}
