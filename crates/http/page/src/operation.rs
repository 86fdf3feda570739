//! `node/page-ticket`: the way in for whoever has a connection already.

use std::sync::Arc;
use std::time::Instant;

use alknet_call::{Body, CallError, Ctx, ErrorCode, HandlerKind, OperationSpec, Registration};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::limits::TICKET_TIME;
use crate::page::{ACT, ENTER, Inner};
use crate::session::{Proof, SCOPE};
use crate::ticket::{Action, NoTicket, Purpose};

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Input {
    action: Option<String>,
}

pub(crate) fn registration(page: &Arc<Inner>) -> Registration {
    let actions = Action::ALL.map(Action::name);
    let spec = OperationSpec::mutation(
        "node/page-ticket",
        "Makes a link to the status page that works once.",
    )
    .with_input(json!({
        "type": ["object", "null"],
        "additionalProperties": false,
        "properties": {
            "action": { "enum": actions,
                        "description": "Ask whether to do this, instead of showing the page" },
        }
    }))
    .with_output(json!({
        "type": "object",
        "required": ["path", "ticket", "expires_in", "names"],
        "properties": {
            "path": { "type": "string", "x-secret": true },
            "ticket": { "type": "string", "x-secret": true },
            "expires_in": { "type": "integer", "description": "Seconds" },
            "names": { "type": "array", "items": { "type": "string" },
                       "description": "Names that the node answers to, beside its addresses" },
        }
    }))
    .with_scope(SCOPE);
    let page = Arc::downgrade(page);
    let handler = HandlerKind::once(move |input: Body, ctx: Ctx| {
        let page = page.upgrade();
        let made = page.map_or_else(|| Err(unavailable()), |page| make(&page, &input, &ctx));
        std::future::ready(made)
    });
    Registration::new(spec, handler)
}

fn make(page: &Inner, input: &Body, ctx: &Ctx) -> Result<Value, CallError> {
    if ctx.internal() {
        // On whose behalf an operation calls was not checked, and a link is for them alone.
        let message = "a link is for whoever asks, and not for an operation";
        return Err(CallError::new(ErrorCode::Forbidden, message));
    }
    let input = match input.try_value()? {
        Value::Null => Input::default(),
        _ => input.parse()?,
    };
    let purpose =
        match input.action.as_deref() {
            None => Purpose::Enter,
            Some(name) => Purpose::Act(Action::of(name).ok_or_else(|| {
                CallError::invalid_input("the page knows no such action".to_owned())
            })?),
        };
    let proof = proof(page, ctx)?;
    let made = page.tickets.make(purpose, proof, Instant::now());
    let ticket = made.map_err(|why| match why {
        NoTicket::Full => {
            let message = "too many links wait to be used: try again in a minute";
            CallError::new(ErrorCode::Overloaded, message)
        }
        NoTicket::Randomness => {
            CallError::new(ErrorCode::Unavailable, "the system has no randomness yet")
        }
    })?;
    let before = match purpose {
        Purpose::Enter => ENTER,
        Purpose::Act(_) => ACT,
    };
    Ok(json!({
        "path": format!("{before}{ticket}"),
        "ticket": ticket,
        "expires_in": TICKET_TIME.as_secs(),
        "names": (page.names)(),
    }))
}

/// What the caller is known by, which has to hold as long as what comes of the link lasts.
fn proof(page: &Inner, ctx: &Ctx) -> Result<Proof, CallError> {
    let who = ctx.identity().ok_or_else(|| {
        CallError::new(
            ErrorCode::Unauthenticated,
            "the operation needs an identity",
        )
    })?;
    let id = who.id.clone();
    // A token before the key: what comes of it ends with it, whatever else the peer has.
    let proof = match (ctx.token(), ctx.conn().key) {
        (Some(token), _) => Proof::token(id, Arc::clone(token)),
        (None, Some(key)) => Proof::key(id, key),
        (None, None) => Proof::name(id),
    };
    match proof.resolve(&*page.identities) {
        Some(_) => Ok(proof),
        None => Err(CallError::new(
            ErrorCode::Forbidden,
            "only administrators may look at the page",
        )),
    }
}

fn unavailable() -> CallError {
    CallError::new(ErrorCode::Unavailable, "the node is about to stop")
}
