//! The task that PID 1 gives to a child of the same binary, because PID 1 itself speaks no
//! protocol, and the node does not run while its vault is locked, or before it has a configuration.
//!
//! PID 1 starts the child as [`HELPER_VERB`]. The child has a stream socket at [`HELPER_FD`], reads
//! one line of JSON, a [`HelperTask`], and writes one, a [`HelperOutcome`]. Lines are at most
//! [`LINE_BYTES_MAX`] long. The child has [`HELPER_TIME`], and is then killed with every process
//! that it started. Secrets are only in these lines, and never in arguments or the environment.

use std::fmt;
use std::time::Duration;

use alknet_vault::SecretArr;
use data_encoding::{BASE64, HEXLOWER};
use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// The verb with which only PID 1 starts such a child.
pub const HELPER_VERB: &str = "helper";
/// File descriptor of the child's end of the socket pair.
pub const HELPER_FD: i32 = 3;
/// Maximum length of a line in either direction, in bytes: the longest document in base64, and the
/// rest of the line.
pub const LINE_BYTES_MAX: usize = 96 << 10;
/// Maximum time for a child: it tries every address of the other node for 10 s each.
pub const HELPER_TIME: Duration = Duration::from_secs(60);
/// How long PID 1 waits for a child that asks a cloud beyond the time that the child has, for the
/// start and the end of a process.
const CHILD_TIME: Duration = Duration::from_secs(2);
/// Maximum length of a refusal's text that is shown, in characters.
const TEXT_CHARS_MAX: usize = 300;

/// The task.
#[derive(Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case", deny_unknown_fields)]
pub enum HelperTask {
    /// Deposit a share with another node. If needed, the child first enrols as a peer.
    Deposit {
        /// A join string of the node.
        code: Option<String>,
        /// The node, `ed25519:<64 hex>@HOST:PORT`, instead of a join string.
        node: Option<String>,
        /// Name of this machine at the other node.
        name: Option<String>,
        /// Seed of the Ed25519 key by which the other node knows this machine.
        client: HexSecret,
        /// The share.
        share: HexSecret,
        /// The id of the vault.
        vault: String,
        /// Addresses from which the share may be requested.
        from: Vec<String>,
        /// Whether each release needs an approval.
        approve: bool,
    },
    /// Ask the metadata service of the cloud for the node's document.
    Metadata {
        /// The service, by its key in `alknet_provisioning`.
        service: String,
        /// The card over which it is asked.
        interface: String,
        /// The time for everything, in milliseconds.
        ms: u64,
    },
    /// Report to Azure that the machine is ready.
    ReportReady {
        /// The card over which the report goes.
        interface: String,
        /// The time for everything, in milliseconds.
        ms: u64,
    },
    /// Request the share.
    Release {
        /// The node's key, `ed25519:<64 hex>`.
        peer: String,
        /// Addresses of the node.
        addresses: Vec<String>,
        /// Id of the share there.
        id: String,
        /// Seed of the key with which the share is requested.
        client: HexSecret,
    },
}

/// The output has only the kind: join strings and keys are secrets.
impl fmt::Debug for HelperTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deposit { .. } => "Deposit(..)",
            Self::Metadata { .. } => "Metadata(..)",
            Self::Release { .. } => "Release(..)",
            Self::ReportReady { .. } => "ReportReady(..)",
        })
    }
}

impl HelperTask {
    /// How long PID 1 waits for the outcome.
    #[must_use]
    pub fn time(&self) -> Duration {
        match self {
            Self::Deposit { .. } | Self::Release { .. } => HELPER_TIME,
            Self::Metadata { ms, .. } | Self::ReportReady { ms, .. } => {
                Duration::from_millis(*ms) + CHILD_TIME
            }
        }
    }
}

/// The result of a helper's task.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case", deny_unknown_fields)]
pub enum HelperOutcome {
    /// The other node keeps the share.
    Deposited {
        /// The node's key.
        peer: String,
        /// Addresses of that node, without its key.
        addresses: Vec<String>,
        /// The id of the share at that node.
        id: String,
    },
    /// The metadata service answered.
    Fetched {
        /// The user data of this machine, if it has some.
        document: Option<FetchedDocument>,
    },
    /// The other node refused, or could not be reached.
    Refused {
        /// The kind of the refusal, which decides when PID 1 tries again.
        refusal: HelperRefusal,
        /// A text for people. The other node wrote it, so a reader has to treat it as untrusted
        /// text.
        text: String,
    },
    /// The other node released the share.
    Released {
        /// The share itself.
        share: HexSecret,
    },
    /// Azure took the report.
    Reported,
}

/// Kinds of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HelperRefusal {
    /// The node refuses until its administrator changes something there.
    Denied,
    /// The node has to enrol this key first, and the credentials that this machine presented do not
    /// suffice.
    Enrolment,
    /// An administrator of the node has to approve the request.
    Pending,
    /// The node cannot be reached at present.
    Unreachable,
}

impl HelperRefusal {
    /// How long this machine leaves the node alone, in milliseconds. A node shuts out a client that
    /// presents wrong tokens ten times in a minute.
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

    /// The same outcome with a text that any console can show: one line of printable characters.
    #[must_use]
    pub fn presentable(self) -> Self {
        match self {
            Self::Refused { refusal, text } => {
                // An escape sequence from the other node would otherwise reach the console.
                let plain = |c: char| if c.is_control() { ' ' } else { c };
                let text = text.chars().map(plain).take(TEXT_CHARS_MAX).collect();
                Self::Refused { refusal, text }
            }
            other => other,
        }
    }
}

/// 32 secret bytes. `Debug` does not show them, and they are wiped when the value is dropped. JSON
/// has them as 64 hex digits.
#[derive(PartialEq, Eq)]
pub struct HexSecret(SecretArr<32>);

impl HexSecret {
    /// Copies `bytes`. The caller wipes the original.
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
                // The error does not quote the text: it may be one digit short of a secret.
                bytes
                    .map(HexSecret)
                    .ok_or_else(|| E::custom("these are no 64 lower-case hex digits"))
            }
        }
        from.deserialize_str(HexDigits).map_err(D::Error::custom)
    }
}

/// Bytes of a document, which may have secrets. `Debug` does not show them, and they are wiped when
/// the value is dropped. JSON has them in base64.
#[derive(PartialEq, Eq)]
pub struct FetchedDocument(Zeroizing<Vec<u8>>);

impl FetchedDocument {
    /// A document of these bytes.
    #[must_use]
    pub fn new(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for FetchedDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FetchedDocument({} bytes)", self.0.len())
    }
}

impl Serialize for FetchedDocument {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&Zeroizing::new(BASE64.encode(&self.0)))
    }
}

impl<'de> Deserialize<'de> for FetchedDocument {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Base64Text;

        impl Visitor<'_> for Base64Text {
            type Value = FetchedDocument;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("base64")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<FetchedDocument, E> {
                // The error does not quote the text, which may have a secret.
                let bytes = BASE64.decode(text.as_bytes()).map(Zeroizing::new);
                bytes
                    .map(FetchedDocument)
                    .map_err(|_| E::custom("this is no base64"))
            }
        }
        from.deserialize_str(Base64Text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_of_any_bytes_passes_and_is_not_shown() {
        let bytes = vec![0xff; 64 << 10];
        let document = Some(FetchedDocument::new(Zeroizing::new(bytes)));
        let outcome = HelperOutcome::Fetched { document };
        assert!(!format!("{outcome:?}").contains("255"));
        let line = serde_json::to_string(&outcome).expect("it is JSON");
        assert!(line.len() < LINE_BYTES_MAX, "{}", line.len());
        let read: HelperOutcome = serde_json::from_str(&line).expect("its own line");
        assert_eq!(read, outcome);
        let none = HelperOutcome::Fetched { document: None };
        let line = serde_json::to_string(&none).expect("it is JSON");
        let read: HelperOutcome = serde_json::from_str(&line).expect("its own line");
        assert_eq!(read, none);
        let broken = "{\"t\":\"fetched\",\"document\":\"secret!\"}";
        let error = serde_json::from_str::<HelperOutcome>(broken).expect_err("no base64");
        assert!(!error.to_string().contains("secret"), "{error}");
    }

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
    fn a_message_of_a_peer_moves_no_cursor() {
        let long = format!("\u{1b}[2J\n{}", "x".repeat(1000));
        match HelperOutcome::refused(HelperRefusal::Denied, long).presentable() {
            HelperOutcome::Refused { text, .. } => {
                assert!(text.starts_with(" [2J x") && text.chars().count() == TEXT_CHARS_MAX);
            }
            other => panic!("{other:?}"),
        }
    }
}
