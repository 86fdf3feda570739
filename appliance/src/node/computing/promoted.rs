//! Promoted operations and their tests, in the sessions of this node.

use std::collections::BTreeMap;
use std::sync::Arc;

use alknet_call::BoxStream;
use alknet_core::{BoxFuture, Identity, IdentityKind};
use alknet_promotion::{InPlace, Invocation, Invoker, Ran, Run, TestRunner};
use alknet_runtime::{Code, Failure, ModuleSet, Work};
use alknet_sessions::{Grants, Session, SessionSpec, Sessions};
use futures_util::{TryStreamExt, stream};
use serde_json::Value;

use super::services::Services;

/// The sessions of this node, as promotion uses them.
pub(super) struct Promoted {
    pub(super) sessions: Arc<Sessions>,
    pub(super) services: Arc<Services>,
}

impl TestRunner for Promoted {
    fn run(&self, run: Run) -> BoxFuture<'static, Ran> {
        let sessions = Arc::clone(&self.sessions);
        Box::pin(async move {
            let asked = run.spec();
            let mut spec = SessionSpec::new(None, ModuleSet::clone(&asked.modules));
            spec.limits.runtime = asked.limits;
            spec.clock = asked.clock;
            spec.seed = asked.seed;
            spec.frozen = asked.frozen;
            let replayed = sessions.replay(spec, run.steps, run.calls).await;
            Ran {
                result: replayed.result,
                ticks: replayed.ticks,
            }
        })
    }
}

impl Invoker for Promoted {
    fn invoke(&self, mut call: Invocation) -> BoxFuture<'static, Result<Value, Failure>> {
        let sessions = Arc::clone(&self.sessions);
        let services = Arc::clone(&self.services);
        Box::pin(async move {
            if let Some(value) = services.call(&mut call).await? {
                return Ok(value);
            }
            let env = call.ctx.env();
            let (session, last) = begin(&sessions, &mut call).await?;
            Ok(session.run(&env, last).await?.value)
        })
    }

    fn subscribe(&self, mut call: Invocation) -> BoxStream<Result<Value, Failure>> {
        let sessions = Arc::clone(&self.sessions);
        let began = async move {
            let (session, last) = begin(&sessions, &mut call).await?;
            let following = session.follow(&call.ctx.env(), last)?;
            // The session lives as long as somebody holds it.
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

    fn in_place(&self, services: BTreeMap<String, InPlace>) {
        self.services.in_place(services);
    }
}

/// A session of the operation's own, which has done all but the last step. Takes the input out of the call: a second
/// one of it would not be counted.
async fn begin(
    sessions: &Arc<Sessions>,
    call: &mut Invocation,
) -> Result<(Session, Work), Failure> {
    let env = call.ctx.env();
    let session = sessions.open(&env, spec(call)).await?;
    let mut steps = call.code.steps(std::mem::take(&mut call.input));
    let last = steps
        .pop()
        .ok_or_else(|| Failure::new(Code::Encode, "the operation has no step to do"))?;
    for step in steps {
        session.run(&env, step).await?;
    }
    Ok((session, last))
}

/// What a session for the call is made of. Its values take of what who calls may have.
pub(super) fn spec(call: &Invocation) -> SessionSpec {
    let mut spec = SessionSpec::new(owner(call), ModuleSet::clone(&call.code.modules));
    spec.lent = true;
    spec.payer = call.ctx.identity().cloned();
    spec.frozen = call.code.frozen;
    spec.grants = Grants::to(&call.code.spec.uses);
    spec.capabilities = call.ctx.capabilities().clone();
    spec
}

/// Whose workers the session may be in, and what it may: its author's, and what the operation may.
/// Whoever calls it lends it nothing.
fn owner(call: &Invocation) -> Option<Arc<Identity>> {
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
