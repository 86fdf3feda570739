//! Runs promoted operations and their tests in the sessions of this node.

use std::collections::BTreeMap;
use std::sync::Arc;

use alknet_call::BoxStream;
use alknet_core::{BoxFuture, Identity, IdentityKind};
use alknet_promotion::{
    InstalledService, Invoker, PromotedInvocation, TestRunner, TrialResult, TrialRun,
};
use alknet_runtime::{IsolateWork, ModuleSet, RuntimeCode, ScriptFailure};
use alknet_sessions::{ScriptSession, ScriptSessions, SessionGrants, SessionSpec};
use futures_util::{TryStreamExt, stream};
use serde_json::Value;

use super::services::PromotedServices;

/// The sessions of this node, for promotion.
pub(super) struct PromotionSessions {
    pub(super) sessions: Arc<ScriptSessions>,
    pub(super) services: Arc<PromotedServices>,
}

impl TestRunner for PromotionSessions {
    fn run(&self, run: TrialRun) -> BoxFuture<'static, TrialResult> {
        let sessions = Arc::clone(&self.sessions);
        Box::pin(async move {
            let tested = run.spec();
            let mut spec = SessionSpec::new(None, ModuleSet::clone(&tested.modules));
            spec.limits.runtime = tested.limits;
            spec.clock = tested.clock;
            spec.seed = tested.seed;
            spec.frozen = tested.frozen;
            let replayed = sessions.replay(spec, run.steps, run.calls).await;
            TrialResult {
                result: replayed.result,
                ticks: replayed.ticks,
            }
        })
    }
}

impl Invoker for PromotionSessions {
    fn invoke(
        &self,
        mut call: PromotedInvocation,
    ) -> BoxFuture<'static, Result<Value, ScriptFailure>> {
        let sessions = Arc::clone(&self.sessions);
        let services = Arc::clone(&self.services);
        Box::pin(async move {
            // A service answers the calls of its operation. Every other operation begins a session
            // for each call.
            if let Some(value) = services.call(&mut call).await? {
                return Ok(value);
            }
            let env = call.ctx.env();
            let (session, last) = begin(&sessions, &mut call).await?;
            Ok(session.run(&env, last).await?.value)
        })
    }

    fn subscribe(&self, mut call: PromotedInvocation) -> BoxStream<Result<Value, ScriptFailure>> {
        let sessions = Arc::clone(&self.sessions);
        let began = async move {
            let (session, last) = begin(&sessions, &mut call).await?;
            let following = session.follow(&call.ctx.env(), last)?;
            // The stream owns the session, so that the session lives until the stream ends.
            Ok((session, following))
        };
        let items = stream::once(began).map_ok(|(session, following)| {
            stream::unfold((session, following), |(session, mut following)| async {
                let item = following.next().await?;
                Some((item, (session, following)))
            })
        });
        Box::pin(items.try_flatten())
    }

    fn in_place(&self, services: BTreeMap<String, InstalledService>) {
        self.services.in_place(services);
    }
}

/// Opens a session for the operation, and runs all steps but the last. It takes the input out of
/// the call: a copy of the input would not be counted against a limit.
async fn begin(
    sessions: &Arc<ScriptSessions>,
    call: &mut PromotedInvocation,
) -> Result<(ScriptSession, IsolateWork), ScriptFailure> {
    let env = call.ctx.env();
    let session = sessions.open(&env, spec(call)).await?;
    let mut steps = call.code.steps(std::mem::take(&mut call.input));
    let last = steps.pop().ok_or_else(|| {
        ScriptFailure::new(RuntimeCode::Encode, "the operation has no step to do")
    })?;
    for step in steps {
        session.run(&env, step).await?;
    }
    Ok((session, last))
}

/// The specification of a session for the call. The caller's quota pays for the session's values.
pub(super) fn spec(call: &PromotedInvocation) -> SessionSpec {
    let mut spec = SessionSpec::new(owner(call), ModuleSet::clone(&call.code.modules));
    spec.lent = true;
    spec.payer = call.ctx.identity().cloned();
    spec.frozen = call.code.frozen;
    spec.grants = SessionGrants::to(&call.code.spec.uses);
    spec.capabilities = call.ctx.capabilities().clone();
    spec
}

/// The identity of the session, which decides which workers it may share and what it may do: its
/// author's name, with the scopes and resources of the operation. The caller's scopes and resources
/// do not count.
fn owner(call: &PromotedInvocation) -> Option<Arc<Identity>> {
    let env = call.ctx.env();
    let authority = env.authority()?;
    Some(Arc::new(Identity {
        id: authority.label.parse().ok()?,
        kind: IdentityKind::Peer,
        scopes: authority.scopes.clone(),
        resources: authority.resources.clone(),
        generation: 0,
    }))
}
