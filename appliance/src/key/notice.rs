//! Sends a node the notice of a new key, over a connection made with the old one.

use std::fmt;

use alknet_call::{CallError, Caller};
use alknet_core::{KeySuccession, PeerId, PeerKey};
use alknet_tls::NodeKey;
use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const OPERATION: &str = "peer/rotate-key";

/// The fields that both keys have to sign.
#[derive(Deserialize)]
struct RotationChallenge {
    peer_id: PeerId,
    hub: PeerKey,
    old_key: PeerKey,
    time: Option<u64>,
}

/// What the node does with the two keys after the notice.
#[derive(Debug, Deserialize)]
pub(crate) struct RotationResponse {
    pub(crate) peer_id: String,
    /// When the node refuses the old key. `None` if its configuration decides that.
    pub(crate) old_key_ends: Option<String>,
}

/// Why the notice failed.
#[derive(Debug)]
pub(crate) enum RotationNoticeError {
    /// The node refuses the key, or the connection failed.
    Call(CallError),
    /// The clock of the node is not set. Without it, the node cannot end a key.
    Clock,
    /// The node asks for a signature that this side must not give, or sends an answer that cannot
    /// be read.
    Protocol(String),
}

impl fmt::Display for RotationNoticeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(error) => error.fmt(f),
            Self::Clock => {
                f.write_str("the clock of the node is not set yet: try again once it is")
            }
            Self::Protocol(what) => f.write_str(what),
        }
    }
}

/// Notifies the other side of a connection that `new` succeeds `old`, with which the connection was
/// made. The other side has one of the keys `pins`. Repeating the notice is harmless.
pub(crate) async fn tell(
    node: &Caller,
    pins: &[PeerKey],
    old: &NodeKey,
    new: &NodeKey,
) -> Result<RotationResponse, RotationNoticeError> {
    let response = node.call(OPERATION, &Value::Null).await;
    let challenge: RotationChallenge = read(response.map_err(RotationNoticeError::Call)?.value())?;
    let statement = statement(&challenge, pins, old, new)?;
    let input = json!({
        "new_key": new.public(),
        "time": challenge.time,
        "proof": BASE64URL_NOPAD.encode(&new.sign(&statement)),
        "old_proof": BASE64URL_NOPAD.encode(&old.sign(&statement)),
    });
    let accepted = node.call(OPERATION, &input).await;
    read(accepted.map_err(RotationNoticeError::Call)?.value())
}

/// The transcript to sign. Fails if the node's challenge is for another node or another key.
fn statement(
    challenge: &RotationChallenge,
    pins: &[PeerKey],
    old: &NodeKey,
    new: &NodeKey,
) -> Result<Vec<u8>, RotationNoticeError> {
    let refuse = |what: &str| Err(RotationNoticeError::Protocol(what.to_owned()));
    // The statement is signed for one node: another node could pass it on and take the peer's place
    // there.
    if !pins.contains(&challenge.hub) {
        return refuse("the node wants a statement for another node's key than the pinned one");
    }
    if challenge.old_key != old.public() {
        return refuse("the node wants a statement about another key than ours");
    }
    let time_s = challenge.time.ok_or(RotationNoticeError::Clock)?;
    let statement = KeySuccession {
        hub: &challenge.hub,
        peer: &challenge.peer_id,
        old: &challenge.old_key,
        new: &new.public(),
        time_s,
    };
    Ok(statement.transcript())
}

fn read<T: DeserializeOwned>(answer: &Value) -> Result<T, RotationNoticeError> {
    T::deserialize(answer).map_err(|error| {
        RotationNoticeError::Protocol(format!("the node's answer cannot be understood: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_signed_for_another_node_or_another_key() {
        let (old, new) = (NodeKey::from_seed(&[1; 32]), NodeKey::from_seed(&[2; 32]));
        let hub = PeerKey::Ed25519([3; 32]);
        let wanted = |hub, old_key, time| RotationChallenge {
            peer_id: "edge".parse().expect("a peer id"),
            hub,
            old_key,
            time,
        };
        let signed = |wanted| statement(&wanted, &[hub], &old, &new);
        let mine = old.public();
        assert!(signed(wanted(hub, mine, Some(1))).is_ok());
        for other in [wanted(mine, mine, Some(1)), wanted(hub, hub, Some(1))] {
            assert!(matches!(
                signed(other),
                Err(RotationNoticeError::Protocol(_))
            ));
        }
        let unset = signed(wanted(hub, mine, None));
        assert!(matches!(unset, Err(RotationNoticeError::Clock)));
    }
}
