//! What a session may call, checked for each of its calls.

use alknet_call::{CallError, Env, ErrorCode, Misfit, Schema};
use alknet_runtime::{Code, Failure};
use serde_json::{Value, json};

use super::spec::{Grants, Peer};

/// The grants of a session, with what they need to be checked.
pub(super) struct Reach {
    grants: Grants,
    /// By grant: its constraint, and how often it may still be used.
    rules: Vec<(Option<Schema>, Option<u32>)>,
}

impl Reach {
    /// # Errors
    /// [`Code::Limit`] for a constraint that is no schema.
    pub(super) fn new(grants: &Grants) -> Result<Self, Failure> {
        let rules = grants.allow.iter().map(|grant| {
            let constraint = grant.constraint.as_ref().map(Schema::new).transpose();
            let constraint = constraint.map_err(|error| {
                let text = format!("the constraint of {}: {error}", grant.pattern);
                Failure::new(Code::Limit, text)
            })?;
            Ok((constraint, grant.budget))
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
    /// the grant does not allow; `QUOTA_EXCEEDED` where it is used up.
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
