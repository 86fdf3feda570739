//! Whether a peer that serves operations still answers.
//!
//! The carriages notice a dead connection. This module notices a live connection whose peer does not answer: its
//! process hangs, or its machine is too busy. Any answer is a sign of life, a refusal too.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::client::{CallOptions, Caller};
use crate::connection::CallConnectionState;
use crate::error::ErrorCode;
use crate::peers::attach::peer_of;
use crate::peers::state::PeerEvent;

/// An operation that every node answers, and cheaply.
const QUESTION: &str = "services/list";

/// Calls a peer now and then, while it serves operations here. Never resolves for a peer that may serve some.
pub(crate) async fn watch_over(state: &Arc<CallConnectionState>) {
    // No call is routed to a client that is not a peer.
    if peer_of(state).is_none() {
        return;
    }
    let patience = state.dispatcher.patience;
    let caller = Caller::new(Arc::clone(state));
    loop {
        sleep(patience.sign_of_life_every).await;
        // This node routes no call to a peer that serves nothing.
        if !state.life.state().is_serving() {
            continue;
        }
        let event = if answers(&caller, patience.sign_of_life).await {
            PeerEvent::SignOfLife
        } else {
            PeerEvent::Missed
        };
        state.life.apply(event);
    }
}

async fn answers(caller: &Caller, within: Duration) -> bool {
    let options = CallOptions {
        timeout: Some(within),
        ..CallOptions::default()
    };
    let input = json!({ "limit": 1 });
    let answer = caller.call_with(QUESTION, &input, &options);
    // The call by itself would wait `RESPONDER_GRACE` longer.
    match timeout(within, answer).await {
        Ok(Ok(_)) => true,
        // This side makes both errors itself for a peer that sent nothing.
        Ok(Err(error)) => !matches!(error.code, ErrorCode::Timeout | ErrorCode::Unavailable),
        Err(_) => false,
    }
}
