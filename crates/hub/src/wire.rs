//! `alknet/enroll` on the wire: one request, one reply, each a big-endian 32-bit length and as many
//! bytes of JSON.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io;

use alknet_core::{PeerId, PeerKey};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The protocol's name in TLS.
pub const ALPN: &[u8] = b"alknet/enroll";
/// Longest request and longest reply, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 16 << 10;

/// What a node that wants to join says. A hub overlooks members that it does not know.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JoinRequest {
    /// The enrolment token; without one the key waits for approval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// What it wants to be called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it says about itself.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Version of its program.
    pub version: String,
    /// Its processor.
    pub arch: String,
    /// Its boards.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub boards: Vec<String>,
}

impl fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinRequest")
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("name", &self.name)
            .field("labels", &self.labels)
            .finish_non_exhaustive()
    }
}

/// A hub's answer to an applicant that it takes in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinAcceptance {
    /// The peer it is from now on.
    pub peer_id: PeerId,
    /// What it is called.
    pub name: String,
    /// The hub.
    pub hub: HubInfo,
}

/// A hub about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubInfo {
    /// Its key.
    pub key: PeerKey,
    /// What it is called.
    pub names: Vec<String>,
}

/// A hub's answer to an applicant that it refuses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRefusal {
    /// `ENROLL_INVALID`, `ENROLL_NAME_TAKEN`, `ENROLL_PENDING`, `INVALID_INPUT`, `UNAUTHENTICATED`,
    /// `OVERLOADED`, `INTERNAL`.
    pub code: Cow<'static, str>,
    /// For people.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// How much later at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl fmt::Display for JoinRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

/// Either answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum JoinReply {
    Refused { error: JoinRefusal },
    Taken(JoinAcceptance),
}

/// Reads one message.
pub(crate) async fn read_message(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = from.read_u32().await?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if !(1..=MESSAGE_BYTES_MAX).contains(&length) {
        let what = format!("a message has 1 to {MESSAGE_BYTES_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let mut message = vec![0; length];
    from.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes one message.
pub(crate) async fn write_message(
    to: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    if body.len() > MESSAGE_BYTES_MAX {
        let what = format!("a message has at most {MESSAGE_BYTES_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    to.write_all(&[&length.to_be_bytes()[..], &body].concat())
        .await?;
    to.flush().await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_forms_are_the_documented_ones() {
        let request: JoinRequest = serde_json::from_value(json!({
            "token": "ale_x", "name": "kitchen", "labels": { "pool": "edge" },
            "version": "1", "arch": "x86_64", "later": true,
        }))
        .expect("unknown members are ignored");
        assert_eq!(request.name.as_deref(), Some("kitchen"));
        assert!(!format!("{request:?}").contains("ale_x"));
        let key = PeerKey::Ed25519([1; 32]);
        let taken = JoinReply::Taken(JoinAcceptance {
            peer_id: "p1".parse().expect("a peer id"),
            name: "kitchen".to_owned(),
            hub: HubInfo {
                key,
                names: vec!["hub".to_owned()],
            },
        });
        let text = json!({ "peer_id": "p1", "name": "kitchen",
                           "hub": { "key": key, "names": ["hub"] } });
        assert_eq!(json!(taken), text);
        assert_eq!(
            serde_json::from_value::<JoinReply>(text).expect("a reply"),
            taken
        );
        let refused = json!({ "error": { "code": "ENROLL_INVALID", "message": "no",
                                         "retryable": false } });
        let read: JoinReply = serde_json::from_value(refused.clone()).expect("a reply");
        assert!(matches!(read, JoinReply::Refused { .. }));
        assert_eq!(json!(read), refused);
    }

    #[tokio::test]
    async fn messages_have_bounds() {
        let message =
            |length: u32, bytes: usize| [&length.to_be_bytes()[..], &vec![b' '; bytes]].concat();
        let most = u32::try_from(MESSAGE_BYTES_MAX).expect("a small number");
        let whole = message(most, MESSAGE_BYTES_MAX);
        assert_eq!(
            read_message(&mut &whole[..]).await.expect("whole").len(),
            MESSAGE_BYTES_MAX
        );
        for bad in [
            message(0, 0),
            message(most + 1, MESSAGE_BYTES_MAX + 1),
            message(u32::MAX, 9),
        ] {
            let error = read_message(&mut &bad[..]).await.expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        for end in 0..8 {
            let error = read_message(&mut &message(8, 8)[..end])
                .await
                .expect_err("cut off");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{end}");
        }
        let long = "x".repeat(MESSAGE_BYTES_MAX);
        assert!(write_message(&mut Vec::<u8>::new(), &long).await.is_err());
    }
}
