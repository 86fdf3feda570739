//! Frames: a length, a CBOR map, descriptors on the first byte. Bytes in, messages out; [`channel`]
//! is the only part that touches a socket.
//!
//! Both sides take the other for hostile: whatever comes, an error or a message is the outcome,
//! memory stays within one frame and one reading, and no descriptor is kept that no message names.

mod blob;
mod cbor;
pub(crate) mod channel;
mod decoder;
mod revocable;
mod sealed;

pub use blob::FrameBlob;
pub use cbor::{Bytes32, CborBody};
pub use decoder::{Decoder, encode};
pub use revocable::RevocableMemfd;
pub use sealed::{SealedMapping, SealedMemfd};
