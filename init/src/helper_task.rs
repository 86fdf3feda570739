//! What PID 1 sends a child of the same binary to do where it may not go itself: PID 1 knows no
//! protocol, and the node is not there yet while its vault is locked.
//!
//! The child is started as [`HELPER_VERB`], finds a stream socket at [`HELPER_FD`], reads one line of
//! JSON, an [`HelperTask`], and writes one, an [`HelperOutcome`]. Lines are at most [`LINE_BYTES_MAX`] long. It has
//! [`HELPER_TIME`], and is killed with whatever it started when that is over. What is secret travels in
//! these lines only: never as an argument, nor in the environment.

use std::fmt;
use std::time::Duration;

use alknet_vault::SecretArr;
use data_encoding::HEXLOWER;
use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// The verb that only PID 1 starts such a child with.
pub const HELPER_VERB: &str = "helper";
/// File descriptor of the child's end of the socket pair.
pub const HELPER_FD: i32 = 3;
/// Longest line in either direction.
pub const LINE_BYTES_MAX: usize = 16 << 10;
/// How long a child may take: every address of the other node is tried, each for 10 s.
pub const HELPER_TIME: Duration = Duration::from_secs(60);
/// Longest text of a refusal that is shown.
const TEXT_CHARS_MAX: usize = 300;

/// What to do.
#[derive(Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case", deny_unknown_fields)]
pub enum HelperTask {
    /// Leave a share with another node, as a peer of it, if need be a new one.
    Deposit {
        /// A join string of the node.
        code: Option<String>,
        /// The node, `ed25519:<64 hex>@HOST:PORT`, in the place of a join string.
        node: Option<String>,
        /// What to be called there.
        name: Option<String>,
        /// Seed of the Ed25519 key to be known by there.
        client: HexSecret,
        /// The share.
        share: HexSecret,
        /// The id of the vault.
        vault: String,
        /// From where it may be asked for.
        from: Vec<String>,
        /// Each release waits for an approval.
        approve: bool,
    },
    /// Ask for it again.
    Release {
        /// The node's key, `ed25519:<64 hex>`.
        peer: String,
        /// Where it is.
        addresses: Vec<String>,
        /// The share's name there.
        id: String,
        /// Seed of the key by which it is asked for.
        client: HexSecret,
    },
}

/// The kind only: join strings and keys are secrets.
impl fmt::Debug for HelperTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deposit { .. } => "Deposit(..)",
            Self::Release { .. } => "Release(..)",
        })
    }
}

/// What came of it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case", deny_unknown_fields)]
pub enum HelperOutcome {
    /// The share is there.
    Deposited {
        /// The node's key.
        peer: String,
        /// Where it is, without the key.
        addresses: Vec<String>,
        /// What the share is called there.
        id: String,
    },
    /// The other node gave nothing.
    Refused {
        /// What it means for the next attempt.
        refusal: HelperRefusal,
        /// For people. The other node wrote it, so a reader has to treat it as untrusted text.
        text: String,
    },
    /// The share.
    Released {
        /// The share itself.
        share: HexSecret,
    },
}

/// Sorts of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HelperRefusal {
    /// The node refuses, until its administrator changes something there.
    Denied,
    /// The node has to let this key in first, and does not by what it was shown.
    Enrolment,
    /// An administrator of the node has to approve it.
    Pending,
    /// The node is not there, or not now.
    Unreachable,
}

impl HelperRefusal {
    /// How long to leave the node alone, in milliseconds. A node shuts out a client that shows it wrong tokens ten
    /// times in a minute.
    #[must_use]
    pub const fn pause_ms(self) -> u64 {
        match self {
            Self::Denied => 15_000,
            Self::Enrolment => 60_000,
            Self::Pending => 5_000,
            Self::Unreachable => 3_000,
        }
    }
}

impl HelperOutcome {
    /// A refusal.
    pub fn refused(refusal: HelperRefusal, text: impl fmt::Display) -> Self {
        Self::Refused {
            refusal,
            text: text.to_string(),
        }
    }

    /// The same with a text that can be shown on any console: one line of printable characters.
    #[must_use]
    pub fn presentable(self) -> Self {
        match self {
            Self::Refused { refusal, text } => {
                // An escape sequence of the other node would reach the console.
                let plain = |c: char| if c.is_control() { ' ' } else { c };
                let text = text.chars().map(plain).take(TEXT_CHARS_MAX).collect();
                Self::Refused { refusal, text }
            }
            other => other,
        }
    }
}

/// 32 bytes that are never shown, and wiped when they are let go. 64 hex digits in a line.
#[derive(PartialEq, Eq)]
pub struct HexSecret(SecretArr<32>);

impl HexSecret {
    /// A copy; the caller wipes the original.
    #[must_use]
    pub fn copy_of(bytes: &[u8; 32]) -> Self {
        Self(SecretArr::copy_of(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }
}

impl fmt::Debug for HexSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HexSecret(..)")
    }
}

impl Serialize for HexSecret {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&Zeroizing::new(HEXLOWER.encode(self.0.expose())))
    }
}

impl<'de> Deserialize<'de> for HexSecret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct HexDigits;

        impl Visitor<'_> for HexDigits {
            type Value = HexSecret;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("64 lower-case hex digits")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<HexSecret, E> {
                let bytes = HEXLOWER.decode(text.as_bytes()).map(Zeroizing::new);
                let bytes = bytes.ok().and_then(|bytes| SecretArr::from_slice(&bytes));
                // Not quoted: it may be one digit short of a secret.
                bytes
                    .map(HexSecret)
                    .ok_or_else(|| E::custom("these are no 64 lower-case hex digits"))
            }
        }
        from.deserialize_str(HexDigits).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_what_they_mean_and_hide_what_they_must() {
        let task = HelperTask::Release {
            peer: "ed25519:ab".to_owned(),
            addresses: vec!["192.0.2.1:443".to_owned()],
            id: "abc".to_owned(),
            client: HexSecret::copy_of(&[0xab; 32]),
        };
        let line = serde_json::to_string(&task).expect("it is JSON");
        assert!(line.starts_with("{\"t\":\"release\"") && line.contains(&"ab".repeat(32)));
        assert!(!format!("{task:?}").contains("abab"));
        let read: HelperTask = serde_json::from_str(&line).expect("its own line");
        match read {
            HelperTask::Release { client, .. } => assert_eq!(client.expose(), &[0xab; 32]),
            other => panic!("{other:?}"),
        }
        let released = "{\"t\":\"released\",\"share\":\"0a\"}";
        let error = serde_json::from_str::<HelperOutcome>(released).expect_err("too short");
        assert!(!error.to_string().contains("0a"), "{error}");
    }

    #[test]
    fn a_strangers_text_moves_no_cursor() {
        let long = format!("\u{1b}[2J\n{}", "x".repeat(1000));
        match HelperOutcome::refused(HelperRefusal::Denied, long).presentable() {
            HelperOutcome::Refused { text, .. } => {
                assert!(text.starts_with(" [2J x") && text.chars().count() == TEXT_CHARS_MAX);
            }
            other => panic!("{other:?}"),
        }
    }
}
