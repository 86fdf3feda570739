//! What the node sends to a session: requests, which are answered, and notices.

use std::fmt;
use std::os::fd::OwnedFd;

use crate::{
    Bytes32, CborBody, FrameBlob, ToWorkerMessage, WorkerCallError, WorkerEvent, WorkerReply,
};

/// A request to a session.
#[derive(Clone)]
#[non_exhaustive]
pub enum WorkerRequest {
    /// Run a module.
    Eval {
        /// Its name.
        module: String,
        /// The hash of its source.
        source_hash: Bytes32,
        /// Its source.
        source: Vec<u8>,
    },
    /// Call an operation that the session registered.
    Invoke {
        /// Its name.
        op: String,
        /// Its input, CBOR.
        input: Vec<u8>,
    },
    /// A request in the role's own protocol.
    Role {
        /// The content, as CBOR.
        body: CborBody,
    },
}

impl WorkerRequest {
    /// A request in the role's own protocol, as CBOR.
    #[must_use]
    pub const fn role(cbor: Vec<u8>) -> Self {
        Self::Role {
            body: CborBody::from_cbor(cbor),
        }
    }

    pub(super) fn message(
        self,
        sid: u64,
        id: u64,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<ToWorkerMessage, WorkerCallError> {
        Ok(match self {
            Self::Eval {
                module,
                source_hash,
                source,
            } => ToWorkerMessage::Eval {
                sid,
                id,
                module,
                source_hash,
                source: FrameBlob::pack(source, fds)?,
            },
            Self::Invoke { op, input } => ToWorkerMessage::Invoke {
                sid,
                id,
                op,
                input: FrameBlob::pack(input, fds)?,
            },
            Self::Role { body } => ToWorkerMessage::Run { sid, id, body },
        })
    }
}

/// Shows names only: sources and inputs are long, and may be secret.
impl fmt::Debug for WorkerRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Eval { module, .. } => write!(f, "Eval({module:?})"),
            Self::Invoke { op, .. } => write!(f, "Invoke({op:?})"),
            Self::Role { body } => write!(f, "Role({body:?})"),
        }
    }
}

/// A message of the host to a session.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SessionNotice {
    /// A part of a subscription of the session.
    Event {
        /// The subscription.
        id: u64,
        /// The part.
        event: WorkerEvent,
    },
    /// The beginning of the session, before any other message.
    Open {
        /// Its capabilities, in the role's own terms.
        caps: CborBody,
        /// Its limits, in the role's own terms.
        limits: CborBody,
        /// The bundle it runs.
        bundle_hash: Option<Bytes32>,
        /// The seed of its randomness.
        seed: Option<Bytes32>,
        /// Its clock, in the role's own terms.
        clock: CborBody,
    },
    /// The response to a call of the session.
    Reply {
        /// The call.
        id: u64,
        /// The answer.
        reply: WorkerReply,
    },
    /// A message in the role's own protocol.
    Role(CborBody),
}

impl SessionNotice {
    /// The message, and the call or subscription of the worker that ends with it.
    pub(super) fn message(self, sid: u64) -> (ToWorkerMessage, Option<u64>) {
        match self {
            Self::Event { id, event } => {
                let last = matches!(event, WorkerEvent::End | WorkerEvent::Fail(_));
                (
                    ToWorkerMessage::Event { sid, id, event },
                    last.then_some(id),
                )
            }
            Self::Open {
                caps,
                limits,
                bundle_hash,
                seed,
                clock,
            } => {
                let open = ToWorkerMessage::Open {
                    sid,
                    caps,
                    limits,
                    bundle_hash,
                    seed,
                    clock,
                };
                (open, None)
            }
            Self::Reply { id, reply } => (ToWorkerMessage::Reply { sid, id, reply }, Some(id)),
            Self::Role(body) => (ToWorkerMessage::Tell { sid, body }, None),
        }
    }
}
