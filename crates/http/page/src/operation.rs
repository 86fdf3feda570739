//! `node/page-ticket`: how a peer with a connection opens the page.

use std::sync::Arc;
use std::time::Instant;

use alknet_call::{CallBody, CallError, Ctx, ErrorCode, HandlerKind, OperationSpec, Registration};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::limits::TICKET_TIME;
use crate::page::{ACT, AdminPageInner, ENTER};
use crate::session::{SCOPE, ViewerProof};
use crate::ticket::{LinkPurpose, PageAction, PageLinkError};

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PageOpenInput {
    action: Option<String>,
}

pub(crate) fn registration(page: &Arc<AdminPageInner>) -> Registration {
    let actions = PageAction::ALL.map(PageAction::name);
    let spec = OperationSpec::mutation(
        "node/page-ticket",
        "Makes a link to the status page that works once.",
    )
    .with_input(json!({
        "type": ["object", "null"],
        "additionalProperties": false,
        "properties": {
            "action": { "enum": actions,
                        "description": "The action that the page asks to confirm; unless given, the link opens the status page" },
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
    // The page holds the registry through its gateway, so a strong reference here would be a cycle.
    let page = Arc::downgrade(page);
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let page = page.upgrade();
        let made = page.map_or_else(|| Err(unavailable()), |page| make(&page, &input, &ctx));
        std::future::ready(made)
    });
    Registration::new(spec, handler)
}

fn make(page: &AdminPageInner, input: &CallBody, ctx: &Ctx) -> Result<Value, CallError> {
    if ctx.internal() {
        // The checks did not cover the peer on whose behalf an operation calls, and a link is for
        // that peer alone.
        let message = "an operation may not make a link for its caller; call this directly";
        return Err(CallError::new(ErrorCode::Forbidden, message));
    }
    let input = match input.try_value()? {
        Value::Null => PageOpenInput::default(),
        _ => input.parse()?,
    };
    let purpose =
        match input.action.as_deref() {
            None => LinkPurpose::Enter,
            Some(name) => LinkPurpose::Act(PageAction::parse(name).ok_or_else(|| {
                CallError::invalid_input("the page knows no such action".to_owned())
            })?),
        };
    let proof = proof(page, ctx)?;
    let made = page.tickets.make(purpose, proof, Instant::now());
    let ticket = made.map_err(|why| match why {
        PageLinkError::Full => {
            let message = "too many links wait to be used: try again in a minute";
            CallError::new(ErrorCode::Overloaded, message)
        }
        PageLinkError::Randomness => {
            CallError::new(ErrorCode::Unavailable, "the system has no randomness yet")
        }
    })?;
    let before = match purpose {
        LinkPurpose::Enter => ENTER,
        LinkPurpose::Act(_) => ACT,
    };
    Ok(json!({
        "path": format!("{before}{ticket}"),
        "ticket": ticket,
        "expires_in": TICKET_TIME.as_secs(),
        "names": (page.names)(),
    }))
}

/// The proof of the caller's identity, which must stay valid as long as the sessions and actions of
/// the link.
fn proof(page: &AdminPageInner, ctx: &Ctx) -> Result<ViewerProof, CallError> {
    let who = ctx.identity().ok_or_else(|| {
        CallError::new(
            ErrorCode::Unauthenticated,
            "the operation needs an identity",
        )
    })?;
    let id = who.id.clone();
    // A token takes precedence over a key: the session ends with the token, whatever else the peer
    // has.
    let proof = match (ctx.token(), ctx.conn().key) {
        (Some(token), _) => ViewerProof::token(id, Arc::clone(token)),
        (None, Some(key)) => ViewerProof::key(id, key),
        (None, None) => ViewerProof::name(id),
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
