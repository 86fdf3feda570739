//! Frames: a length, a CBOR map, descriptors on the first byte. The codec takes bytes and gives messages; only
//! [`channel`] uses a socket.
//!
//! Both sides treat the other one as hostile: any input gives an error or a message, memory stays within one frame
//! and one read, and no descriptor is kept that no message names.

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
