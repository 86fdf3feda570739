//! The messages of a session, and their form on the wire.

use std::collections::BTreeMap;
use std::io;

use alknet_store::limits::SYNC_TOPS_MAX;
use alknet_store::{BranchName, BucketName, ContentHash, EntryPath};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::error::{ByeCode, SyncError};
use super::limits::{HASHES_MAX, HEADS_MAX, MESSAGE_BYTES_MAX, MESSAGE_TIME};

/// The version of the protocol, which is the first byte in each direction.
pub const PROTOCOL_VERSION: u8 = 1;

/// What distinguishes the identities of documents from other hashes of the same names.
const DOCUMENT_CONTEXT: &str = "alknet 2026-11-30 fs-sync document";

/// The document of a branch that a session is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SyncPart {
    /// The document of the whole branch.
    Whole,
    /// No document: the names in the root of a branch of a split bucket.
    Index,
    /// The document of one name in the root of a branch of a split bucket, with everything below it.
    Top(String),
}

impl SyncPart {
    /// The name that the document is about.
    #[must_use]
    pub fn top(&self) -> Option<&str> {
        match self {
            Self::Top(top) => Some(top),
            Self::Index | Self::Whole => None,
        }
    }

    /// Whether it is a part of a split bucket.
    #[must_use]
    pub const fn is_split(&self) -> bool {
        !matches!(self, Self::Whole)
    }
}

/// What a session is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncHello {
    /// Name of the bucket, which both sides have.
    pub bucket: BucketName,
    /// Name of the branch, which both sides have.
    pub branch: BranchName,
    /// The document of the branch.
    pub part: SyncPart,
    /// The last changes of the sender's document. They say whether both have the same.
    pub heads: Vec<[u8; 32]>,
}

impl SyncHello {
    /// Identity of the document, which follows from the names: every node makes its copy by itself, and all copies merge.
    #[must_use]
    pub fn document_id(&self) -> [u8; 16] {
        let names = match &self.part {
            SyncPart::Whole => format!("{}@{}", self.bucket, self.branch),
            SyncPart::Index => format!("{}@{}:/", self.bucket, self.branch),
            SyncPart::Top(top) => format!("{}@{}:/{top}", self.bucket, self.branch),
        };
        let hash = blake3::derive_key(DOCUMENT_CONTEXT, names.as_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        id
    }
}

/// A message of a session.
///
/// ```
/// use alknet_fs::sync::{ByeCode, SyncMessage};
///
/// let bytes = SyncMessage::Bye(ByeCode::Done).encode().expect("short");
/// let message = SyncMessage::decode(&bytes).expect("its own bytes");
/// assert_eq!(message, SyncMessage::Bye(ByeCode::Done));
/// assert!(SyncMessage::decode(&[0xff]).is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncMessage {
    /// The first message in each direction.
    Hello(SyncHello),
    /// A part of a sync message of the document. The parts of one message follow each other.
    Sync {
        /// Whether the message is complete with this part.
        is_last: bool,
        /// The bytes of the part.
        bytes: Vec<u8>,
    },
    /// Contents that the sender lacks.
    Want(Vec<ContentHash>),
    /// Those of the contents the peer asked for that the sender has.
    Have(Vec<ContentHash>),
    /// The last message. Nothing follows.
    Bye(ByeCode),
    /// The names in the root of a branch for which the sender has documents, each with what [`heads_digest`] makes of its
    /// last changes. [`UNKNOWN_HEADS`] says that the sender has to look at the document.
    Tops(BTreeMap<String, [u8; 32]>),
}

/// The digest of a document that the sender has to look at first.
pub const UNKNOWN_HEADS: [u8; 32] = [0; 32];

/// A digest of the last changes of a document, in any order.
#[must_use]
pub fn heads_digest(heads: &[[u8; 32]]) -> [u8; 32] {
    let mut sorted = heads.to_vec();
    sorted.sort_unstable();
    *blake3::hash(&sorted.concat()).as_bytes()
}

/// The form on the wire, in postcard. The order of the variants is their number.
#[derive(Serialize, Deserialize)]
enum WireMessage {
    Hello {
        doc_id: [u8; 16],
        bucket: String,
        branch: String,
        part: SyncPart,
        heads: Vec<[u8; 32]>,
    },
    Sync {
        is_last: bool,
        bytes: Vec<u8>,
    },
    Want {
        hashes: Vec<[u8; 32]>,
    },
    Have {
        hashes: Vec<[u8; 32]>,
    },
    Bye {
        code: u8,
    },
    Tops {
        tops: Vec<(String, [u8; 32])>,
    },
}

impl SyncMessage {
    /// The bytes of the message without their length.
    ///
    /// # Errors
    /// The message is longer than [`MESSAGE_BYTES_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>, SyncError> {
        let bytes = match self {
            // Not through the form on the wire, which would copy the part.
            Self::Sync { is_last, bytes } => {
                let head = postcard::to_allocvec(&(1_u8, is_last, bytes.len()));
                let mut whole = head.map_err(|error| invalid(error.to_string()))?;
                whole.extend_from_slice(bytes);
                whole
            }
            other => {
                let wire = other.to_wire();
                postcard::to_allocvec(&wire).map_err(|error| invalid(error.to_string()))?
            }
        };
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(too_large(bytes.len()));
        }
        Ok(bytes)
    }

    fn to_wire(&self) -> WireMessage {
        let digests = |hashes: &[ContentHash]| hashes.iter().map(|hash| *hash.as_bytes()).collect();
        match self {
            Self::Hello(hello) => WireMessage::Hello {
                doc_id: hello.document_id(),
                bucket: hello.bucket.to_string(),
                branch: hello.branch.to_string(),
                part: hello.part.clone(),
                heads: hello.heads.clone(),
            },
            Self::Sync { is_last, bytes } => WireMessage::Sync {
                is_last: *is_last,
                bytes: bytes.clone(),
            },
            Self::Want(hashes) => WireMessage::Want {
                hashes: digests(hashes),
            },
            Self::Have(hashes) => WireMessage::Have {
                hashes: digests(hashes),
            },
            Self::Bye(code) => WireMessage::Bye {
                code: code.number(),
            },
            Self::Tops(tops) => WireMessage::Tops {
                tops: tops
                    .iter()
                    .map(|(top, heads)| (top.clone(), *heads))
                    .collect(),
            },
        }
    }

    /// Reads the bytes of a message.
    ///
    /// # Errors
    /// They are no message, or have a byte more or less than one, or a list above its limit.
    pub fn decode(bytes: &[u8]) -> Result<Self, SyncError> {
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(too_large(bytes.len()));
        }
        let (wire, rest) = postcard::take_from_bytes::<WireMessage>(bytes)
            .map_err(|_| invalid("the bytes are no message"))?;
        if !rest.is_empty() {
            return Err(invalid("bytes follow the message"));
        }
        let message = Self::from_wire(wire)?;
        // A number has a shorter form than the one that came: no program of ours writes it.
        match message.encode()? == bytes {
            true => Ok(message),
            false => Err(invalid("the message is not in its shortest form")),
        }
    }

    fn from_wire(wire: WireMessage) -> Result<Self, SyncError> {
        let hashes = |digests: Vec<[u8; 32]>| match digests.len() {
            len if len > HASHES_MAX => Err(SyncError::refused(
                ByeCode::TooLarge,
                format!("{len} hashes in a message"),
            )),
            _ => Ok(digests.into_iter().map(ContentHash::new).collect()),
        };
        Ok(match wire {
            WireMessage::Hello {
                doc_id,
                bucket,
                branch,
                part,
                heads,
            } => {
                if heads.len() > HEADS_MAX {
                    let reason = format!("{} heads in a hello", heads.len());
                    return Err(SyncError::refused(ByeCode::TooLarge, reason));
                }
                let bucket = BucketName::parse(&bucket).map_err(|it| invalid(it.to_string()))?;
                let branch = BranchName::parse(&branch).map_err(|it| invalid(it.to_string()))?;
                if part.top().is_some_and(|top| !is_top(top)) {
                    return Err(invalid("a document is about no name"));
                }
                let hello = SyncHello {
                    bucket,
                    branch,
                    part,
                    heads,
                };
                if hello.document_id() != doc_id {
                    return Err(invalid("the document is not that of the branch"));
                }
                Self::Hello(hello)
            }
            WireMessage::Sync { is_last, bytes } => Self::Sync { is_last, bytes },
            WireMessage::Want { hashes: wanted } => Self::Want(hashes(wanted)?),
            WireMessage::Have { hashes: there } => Self::Have(hashes(there)?),
            WireMessage::Bye { code } => {
                let known = ByeCode::ALL.into_iter().find(|it| it.number() == code);
                Self::Bye(known.unwrap_or(ByeCode::Internal))
            }
            WireMessage::Tops { tops } => {
                if tops.len() > SYNC_TOPS_MAX {
                    let reason = format!("{} names in the root of a branch", tops.len());
                    return Err(SyncError::refused(ByeCode::TooLarge, reason));
                }
                if !tops.iter().all(|(top, _)| is_top(top)) {
                    return Err(invalid("a list of names has an invalid one"));
                }
                // Names that come twice, or in another order, make another message of it, which the caller refuses.
                Self::Tops(tops.into_iter().collect())
            }
        })
    }
}

/// Whether a text is the name of an entry in the root of a branch.
fn is_top(text: &str) -> bool {
    let path = EntryPath::root().child(text);
    // An empty name leads to the root itself.
    !text.contains('/') && path.is_ok_and(|path| !path.is_root())
}

/// Reads the version of the peer.
pub(super) async fn read_version(input: &mut (impl AsyncRead + Unpin)) -> Result<(), SyncError> {
    match input.read_u8().await? {
        PROTOCOL_VERSION => Ok(()),
        other => Err(invalid(format!("version {other} of the protocol"))),
    }
}

/// Reads one message, whose first byte may take any time. A length above the limit is refused before a byte of the message
/// is read or has memory.
pub(super) async fn read_message(
    input: &mut (impl AsyncRead + Unpin),
) -> Result<SyncMessage, SyncError> {
    let first = input.read_u8().await?;
    let rest = timeout(MESSAGE_TIME, read_behind(first, input)).await;
    let late = || SyncError::refused(ByeCode::Timeout, "a message did not arrive in time");
    rest.map_err(|_| late())?
}

/// Reads a message behind the first byte of its length.
async fn read_behind(
    first: u8,
    input: &mut (impl AsyncRead + Unpin),
) -> Result<SyncMessage, SyncError> {
    let mut rest = [0; 3];
    input.read_exact(&mut rest).await?;
    let [second, third, fourth] = rest;
    let length = u32::from_be_bytes([first, second, third, fourth]);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > MESSAGE_BYTES_MAX {
        return Err(too_large(length));
    }
    // Memory grows with what arrives: a length alone costs nothing.
    let mut bytes = Vec::new();
    let read = input.take(length as u64).read_to_end(&mut bytes).await?;
    if read < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    SyncMessage::decode(&bytes)
}

/// Writes bytes of one message behind their length.
pub(super) async fn write_message(
    output: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    output.write_u32(length).await?;
    output.write_all(bytes).await?;
    output.flush().await
}

fn invalid(reason: impl Into<String>) -> SyncError {
    SyncError::refused(ByeCode::InvalidMessage, reason)
}

fn too_large(bytes: usize) -> SyncError {
    SyncError::refused(ByeCode::TooLarge, format!("a message of {bytes} bytes"))
}
