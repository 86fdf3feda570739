//! `peer/rotate-key`: replaces the key with which a peer is connected.

use std::sync::Arc;

use alknet_call::{CallBody, CallError, Ctx, ErrorCode, HandlerKind, OperationSpec, Registration};
use alknet_core::{
    IdentityKind, IdentityProvider, IdentityStore, IdentityStoreError, KeySuccession, PeerId,
    PeerKey, RotationError,
};
use alknet_escrow::ShareRegistry;
use alknet_tls::is_signed;
use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::facts::NodeDescription;
use super::identity_services::{self, IdentityServices};

/// Length of a proof: 64 bytes in base64url without padding.
const PROOF_CHARS: usize = 86;

/// Either no member, or all four.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PeerRotateInput {
    new_key: Option<PeerKey>,
    time: Option<u64>,
    proof: Option<String>,
    old_proof: Option<String>,
}

/// `peer/rotate-key`
pub(crate) fn operation(
    identity_services: IdentityServices,
    description: Arc<NodeDescription>,
    shares: Arc<ShareRegistry>,
) -> Registration {
    let key = json!({ "type": "string", "pattern": "^ed25519:[0-9a-f]{64}$" });
    let spec = OperationSpec::mutation(
        "peer/rotate-key",
        "Replaces the key you are connected with; without input it says what both keys have to sign.",
    )
    .with_input(json!({
        "type": ["object", "null"],
        "additionalProperties": false,
        "properties": {
            "new_key": key,
            "time": { "type": "integer", "minimum": 0,
                      "description": "Seconds since 1970, within ten minutes of the node's" },
            "proof": { "type": "string", "minLength": PROOF_CHARS, "maxLength": PROOF_CHARS,
                       "description": "The new key's Ed25519 signature, base64url" },
            "old_proof": { "type": "string", "minLength": PROOF_CHARS, "maxLength": PROOF_CHARS,
                           "description": "The old key's Ed25519 signature, base64url" },
        },
        "dependentRequired": { "new_key": ["time", "proof", "old_proof"], "time": ["new_key"],
                               "proof": ["new_key"], "old_proof": ["new_key"] },
    }))
    .with_output(json!({
        "type": "object",
        "required": ["peer_id", "hub", "old_key"],
        "properties": {
            "peer_id": { "type": "string" }, "hub": { "type": "string" },
            "old_key": { "type": "string" },
            "time": { "type": ["integer", "null"], "description": "The node's time" },
            "new_key": { "type": "string" },
            "old_key_ends": { "type": ["string", "null"], "format": "date-time",
                "description": "Null where the configuration lists the keys" },
        }
    }))
    .with_identity();
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let (identity_services, description) =
            (identity_services.clone(), Arc::clone(&description));
        let shares = Arc::clone(&shares);
        async move {
            let hub: PeerKey = description
                .identity()
                .parse()
                .map_err(|_| CallError::internal("the node has no key"))?;
            let caller = RotatingPeer::from_context(&ctx, &identity_services)?;
            let input = match input.try_value()? {
                Value::Null => PeerRotateInput::default(),
                _ => input.parse()?,
            };
            if input.new_key.is_some() && shares.keeps(&caller.key) {
                // Its machine asks with the old key, which ends: a copy of the disk could lock the machine out.
                return Err(CallError::new(
                    ErrorCode::Conflict,
                    "this node keeps a share for this key, which no other key gets: an administrator removes the \
                     share first",
                ));
            }
            rotate(&identity_services, &hub, caller, input).await
        }
    });
    Registration::new(spec, handler)
}

/// The connected peer, and the key of its connection.
struct RotatingPeer {
    peer: PeerId,
    key: PeerKey,
}

impl RotatingPeer {
    /// The peer whose key this connection was made with. A token does not count here, neither the
    /// peer's own nor another: with a stolen one, an attacker could replace the peer's key for
    /// good.
    fn from_context(ctx: &Ctx, identity_services: &IdentityServices) -> Result<Self, CallError> {
        let who = ctx.identity().ok_or_else(identity_services::no_identity)?;
        // In a call within a request, the connection is that of the peer that sent the request.
        if ctx.internal() || ctx.is_forwarded() {
            return Err(CallError::new(
                ErrorCode::Forbidden,
                "a key is replaced for its holder, who asks for it directly, and not for an operation \
                 or a node in between",
            ));
        }
        let by_key = ctx.conn().key.filter(|_| who.kind == IdentityKind::Peer);
        let held = by_key.filter(|key| {
            // A token beside the key may belong to another identity than the key.
            let holder = identity_services.identities.by_key(key);
            holder.is_some_and(|holder| holder.id == who.id)
        });
        let key = held.ok_or_else(|| {
            CallError::new(
                ErrorCode::Forbidden,
                "a key is replaced over a connection made with it: connect with your key, and send \
                 no auth_token",
            )
        })?;
        Ok(Self {
            peer: who.id.clone(),
            key,
        })
    }
}

async fn rotate(
    identity_services: &IdentityServices,
    hub: &PeerKey,
    caller: RotatingPeer,
    input: PeerRotateInput,
) -> Result<Value, CallError> {
    let RotatingPeer { peer, key: old } = caller;
    let now_s = identity_services.identities.now_s();
    let proofs = input.proof.zip(input.old_proof);
    let (Some(new), Some(time_s), Some((proof, old_proof))) = (input.new_key, input.time, proofs)
    else {
        return Ok(json!({ "peer_id": peer, "hub": hub, "old_key": old, "time": now_s }));
    };
    let statement = KeySuccession {
        hub,
        peer: &peer,
        old: &old,
        new: &new,
        time_s,
    };
    check(&statement, [&proof, &old_proof], now_s)?;
    let rotated = identity_services
        .identities
        .rotate(peer.clone(), old, new)
        .await;
    let ends = rotated.map_err(|error| refused(identity_services, error, &new))?;
    tracing::info!(
        peer = %peer,
        old = old.short(),
        new = new.short(),
        ends_s = ends,
        "peer.rotate-key"
    );
    Ok(json!({
        "peer_id": peer,
        "hub": hub,
        "old_key": old,
        "new_key": new,
        "old_key_ends": ends.and_then(identity_services::moment),
    }))
}

/// Checks that both keys signed the change for this node, recently. The connection is no proof for
/// the old key: a node that passes requests on makes its own connections.
fn check(
    statement: &KeySuccession<'_>,
    [by_new, by_old]: [&str; 2],
    now_s: Option<u64>,
) -> Result<(), CallError> {
    let now_s =
        now_s.ok_or_else(|| CallError::unavailable(IdentityStoreError::ClockUnset.to_string()))?;
    // Another machine that saw an old statement could send it again.
    if !statement.is_timely(now_s) {
        let what = "the time is more than ten minutes from the node's: sign with the node's time";
        return Err(CallError::invalid_input(what).with_details(json!({ "time": now_s })));
    }
    for (which, key, proof) in [
        ("new", statement.new, by_new),
        ("old", statement.old, by_old),
    ] {
        // A signature that cannot be decoded is refused like a wrong one.
        let signature = BASE64URL_NOPAD.decode(proof.as_bytes()).unwrap_or_default();
        if !is_signed(key, &statement.transcript(), &signature) {
            let what = format!(
                "there is no signature by the {which} key of what this node asks for: call without \
                 input to see what that is"
            );
            return Err(CallError::new(ErrorCode::Forbidden, what));
        }
    }
    Ok(())
}

/// The error for a refused key. It does not say which other peer has the key.
fn refused(
    identity_services: &IdentityServices,
    error: IdentityStoreError,
    new: &PeerKey,
) -> CallError {
    let conflict = |what: String| CallError::new(ErrorCode::Conflict, what);
    match error {
        IdentityStoreError::ReadOnly(id) => {
            let admins = identity_services.identities.entries().admins;
            let list = if admins.iter().any(|(admin, _)| *admin == id) {
                "node.admin_keys".to_owned()
            } else {
                format!("the keys of '{id}'")
            };
            conflict(format!(
                "this key is in the node's configuration: add \"{new}\" to {list} there and apply \
                 it, then ask again; take the old key out once the new one is in use"
            ))
            .with_details(json!({ "configured": true, "add_key": new }))
        }
        IdentityStoreError::KeyTaken(..) => {
            conflict("this node knows the new key already: make another".to_owned())
        }
        IdentityStoreError::Rotation(RotationError::Same) => {
            CallError::invalid_input(error.to_string())
        }
        IdentityStoreError::Rotation(RotationError::TooMany) => {
            CallError::new(ErrorCode::Overloaded, error.to_string())
        }
        IdentityStoreError::ClockUnset | IdentityStoreError::Unavailable(_) => {
            CallError::unavailable(error.to_string())
        }
        other => conflict(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use alknet_tls::NodeKey;

    use super::*;

    #[test]
    fn proofs_are_by_both_keys_about_this_and_now() {
        let (hub, key) = (PeerKey::Ed25519([1; 32]), NodeKey::from_seed(&[3; 32]));
        let held = NodeKey::from_seed(&[2; 32]);
        let old = held.public();
        let (new, peer) = (key.public(), "edge".parse().expect("a peer id"));
        let statement = KeySuccession {
            hub: &hub,
            peer: &peer,
            old: &old,
            new: &new,
            time_s: 1_800_000_000,
        };
        let by = |key: &NodeKey| BASE64URL_NOPAD.encode(&key.sign(&statement.transcript()));
        let (proof, by_old) = (by(&key), by(&held));
        assert_eq!(proof.len(), PROOF_CHARS);
        let code = |statement: &KeySuccession<'_>, proof: &str, now| {
            check(statement, [proof, &by_old], now).map_err(|error| error.code)
        };
        let now = Some(1_800_000_000);
        assert_eq!(code(&statement, &proof, now), Ok(()));
        assert_eq!(code(&statement, &proof, None), Err(ErrorCode::Unavailable));
        let late = Some(1_800_000_601);
        assert_eq!(code(&statement, &proof, late), Err(ErrorCode::InvalidInput));
        let other = "other".parse().expect("a peer id");
        for wrong in [
            KeySuccession {
                hub: &old,
                ..statement
            },
            KeySuccession {
                peer: &other,
                ..statement
            },
            KeySuccession {
                old: &hub,
                ..statement
            },
            KeySuccession {
                new: &hub,
                ..statement
            },
            KeySuccession {
                time_s: 1_800_000_001,
                ..statement
            },
        ] {
            assert_eq!(
                code(&wrong, &proof, now),
                Err(ErrorCode::Forbidden),
                "{wrong:?}"
            );
        }
        let about_nothing = BASE64URL_NOPAD.encode(&held.sign(b""));
        for wrong in ["", "!", &proof[1..], &by_old, &about_nothing] {
            assert_eq!(code(&statement, wrong, now), Err(ErrorCode::Forbidden));
        }
        for wrong in ["", "!", &by_old[1..], &proof, &about_nothing] {
            let refused = check(&statement, [&proof, wrong], now);
            let refused = refused.expect_err("the old key did not say so");
            assert_eq!(refused.code, ErrorCode::Forbidden);
            assert!(refused.message.contains("the old key"), "{refused}");
        }
    }
}
