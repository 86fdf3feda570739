//! Telling a node of a new key, over a connection made with the old one.

use alknet_core::{PeerId, PeerKey, Succession};
use alknet_endpoint::Target;
use alknet_tls::NodeKey;
use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::super::call::{Reach, of_call};
use super::super::{Exit, Failure};

const OPERATION: &str = "peer/rotate-key";

/// What the new key has to sign.
#[derive(Deserialize)]
struct Wanted {
    peer_id: PeerId,
    hub: PeerKey,
    old_key: PeerKey,
    time: Option<u64>,
}

/// What the node does from now on.
#[derive(Debug, Deserialize)]
pub(super) struct Told {
    pub(super) peer_id: String,
    /// When it refuses the old key; nothing where its configuration says so.
    pub(super) old_key_ends: Option<String>,
}

/// Tells `target` that `new` succeeds `old`. Asking twice is harmless.
pub(super) async fn tell(
    reach: &Reach,
    target: &Target,
    old: &NodeKey,
    new: &NodeKey,
) -> Result<Told, Failure> {
    reach
        .connected(target, async |client| {
            let asked = client.call(OPERATION, &Value::Null).await;
            let wanted: Wanted = read(asked.map_err(of_call)?.value())?;
            let statement = statement(&wanted, target, old, new)?;
            let input = json!({
                "new_key": new.public(),
                "time": wanted.time,
                "proof": BASE64URL_NOPAD.encode(&new.sign(&statement)),
            });
            let told = client.call(OPERATION, &input).await;
            read(told.map_err(of_call)?.value())
        })
        .await
}

/// What is signed, unless the node asks for something that is not about it and this key.
fn statement(
    wanted: &Wanted,
    target: &Target,
    old: &NodeKey,
    new: &NodeKey,
) -> Result<Vec<u8>, Failure> {
    let refuse = |what: &str| Err(Failure::new(Exit::Failed, "PROTOCOL", what));
    if !target.pins.contains(&wanted.hub) {
        return refuse("the node wants a statement for another node's key than the pinned one");
    }
    if wanted.old_key != old.public() {
        return refuse("the node wants a statement about another key than ours");
    }
    let Some(time_s) = wanted.time else {
        return Err(Failure::new(
            Exit::Unreachable,
            "UNAVAILABLE",
            "the clock of the node is not set yet: try again once it is",
        ));
    };
    let statement = Succession {
        hub: &wanted.hub,
        peer: &wanted.peer_id,
        old: &wanted.old_key,
        new: &new.public(),
        time_s,
    };
    Ok(statement.transcript())
}

fn read<T: DeserializeOwned>(answer: &Value) -> Result<T, Failure> {
    T::deserialize(answer).map_err(|error| {
        Failure::new(
            Exit::Failed,
            "PROTOCOL",
            format!("the node's answer cannot be understood: {error}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_signed_for_another_node_or_another_key() {
        let (old, new) = (NodeKey::from_seed(&[1; 32]), NodeKey::from_seed(&[2; 32]));
        let hub = PeerKey::Ed25519([3; 32]);
        let target: Target = format!("{hub}@192.0.2.7").parse().expect("a target");
        let wanted = |hub, old_key, time| Wanted {
            peer_id: "edge".parse().expect("a peer id"),
            hub,
            old_key,
            time,
        };
        let exit = |wanted| {
            let signed = statement(&wanted, &target, &old, &new);
            signed.map(drop).map_err(|failure| failure.exit)
        };
        let mine = old.public();
        assert_eq!(exit(wanted(hub, mine, Some(1))), Ok(()));
        assert_eq!(exit(wanted(mine, mine, Some(1))), Err(Exit::Failed));
        assert_eq!(exit(wanted(hub, hub, Some(1))), Err(Exit::Failed));
        assert_eq!(exit(wanted(hub, mine, None)), Err(Exit::Unreachable));
    }
}
