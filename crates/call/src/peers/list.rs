//! `services/list-peers`: the attached peers, and what the caller may have called there.

use alknet_core::PeerId;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::body::{CallBody, CallOutput};
use crate::context::Ctx;
use crate::error::CallError;
use crate::handler::HandlerKind;
use crate::peers::table::AttachedPeer;
use crate::registry::Registration;
use crate::services::{self, OperationSummary};
use crate::spec::OperationSpec;

/// The scope of callers that may see the peers.
const LIST_SCOPE: &str = "peer:list";

#[derive(Default, Deserialize)]
#[serde(default)]
struct PeerListInput {
    peer: Option<String>,
}

#[derive(Serialize)]
struct PeerListing<'a> {
    peer: &'a PeerId,
    online: bool,
    operations: Vec<OperationSummary>,
}

/// The operation.
pub(crate) fn listing() -> Registration {
    let spec = OperationSpec::query(
        "services/list-peers",
        "Lists the attached peers and what the caller may call there.",
    )
    .with_scope(LIST_SCOPE)
    .with_input(json!({
        "type": ["object", "null"],
        "properties": { "peer": { "type": ["string", "null"] } },
    }));
    let handler = HandlerKind::once(|input, ctx| std::future::ready(run(&input, &ctx)));
    Registration::new(spec, handler).schema_is_type()
}

fn run(input: &CallBody, ctx: &Ctx) -> Result<CallOutput, CallError> {
    let input: PeerListInput = services::members(input)?.unwrap_or_default();
    let peers = ctx.dispatcher().peers.all();
    let wanted = |peer: &&AttachedPeer| {
        input
            .peer
            .as_deref()
            .is_none_or(|id| id == peer.id.as_str())
    };
    let listed: Vec<_> = peers
        .iter()
        .map(AsRef::as_ref)
        .filter(wanted)
        .map(|peer| listed(peer, ctx))
        .collect();
    CallOutput::json(&json!({ "peers": listed }))
}

/// The list leaves out operations that the caller may not call there.
fn listed<'a>(peer: &'a AttachedPeer, ctx: &Ctx) -> PeerListing<'a> {
    let may = |spec: &&OperationSpec| ctx.is_shown(&spec.access_control);
    let sorted = peer.operations.sorted();
    PeerListing {
        peer: &peer.id,
        online: peer.is_ready(),
        operations: sorted
            .iter()
            .map(|operation| &operation.spec)
            .filter(may)
            .map(services::summary)
            .collect(),
    }
}
