//! Why a peer that a requester named does not answer.

use alknet_core::PeerId;
use serde_json::json;

use crate::dispatcher::Dispatcher;
use crate::error::{CallError, ErrorCode};
use crate::limits::OPERATION_BYTES_MAX;

/// The error for a request that names `peer`, whose id is `id`, and an operation that the peer does not provide: no
/// such peer, one that is not attached, or one that serves no such operation.
///
/// Only for requesters that may go to the peer: the error reveals which peers exist. Each of the three is
/// `NOT_FOUND`; `details.reason` tells them apart.
pub(crate) fn absent(
    dispatcher: &Dispatcher,
    peer: &str,
    id: Option<&PeerId>,
    operation: &str,
) -> CallError {
    let is_attached = id.is_some_and(|id| dispatcher.peers.is_attached(id));
    let is_known = id.is_some_and(|id| dispatcher.by_id(id).is_some());
    // The error does not repeat names that are too long for a peer or an operation.
    let is_short = peer.len() <= PeerId::MAX_BYTES && !peer.contains(char::is_control);
    let peer = if is_short { peer } else { "…" };
    let operation = match operation.len() {
        ..=OPERATION_BYTES_MAX => operation,
        _ => "…",
    };
    let (reason, message) = match (is_attached, is_known) {
        (true, _) => (
            "unknown_operation",
            format!("the peer '{peer}' serves no operation '{operation}' to this node"),
        ),
        (false, true) => (
            "peer_not_attached",
            format!(
                "the peer '{peer}' is not attached to this node: it is not connected, or has announced no operation"
            ),
        ),
        (false, false) => (
            "unknown_peer",
            format!(
                "this node knows no peer '{peer}'; services/list-peers names those that are attached"
            ),
        ),
    };
    CallError::new(ErrorCode::NotFound, message).with_details(json!({ "reason": reason }))
}
