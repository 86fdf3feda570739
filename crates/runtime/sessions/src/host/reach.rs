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
                let code = match error {
                    SchemaError::Busy => Code::Quota,
                    _ => Code::Limit,
                };
                let text = format!("the constraint of {}: {error}", grant.pattern);
                Failure::new(code, text)
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
            let why = match error {
                Misfit::Busy => return Err(overloaded(&error.to_string())),
                Misfit::Violation { path, reason } => format!("at '{path}': {reason}"),
                other => other.to_string(),
            };
            let text = format!("the session may call '{name}' only with other input; {why}");
            let details = json!({ "code": Code::Denied.name() });
            return Err(CallError::new(ErrorCode::Forbidden, text).with_details(details));
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
