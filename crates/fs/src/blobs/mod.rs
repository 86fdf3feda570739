//! Contents by their hash between nodes: the protocol `/iroh-bytes/4` of iroh-blobs, as provider and as getter.
//!
//! A stream carries one request. The response has the length of each content and its bytes with the hashes that verify
//! them, in the encoding of bao-tree with groups of 16 KiB, so that a receiver checks each group as it arrives.
//!
//! A hash is no capability: [`BlobHandler`] sends a content to an identity that may read a bucket which has it, and to the
//! holder of a key with which it was shared. To all others it looks like a content that does not exist.

mod fetch;
mod handler;
mod pace;
mod peers;
mod penalties;
mod policy;
mod rate;
mod receive;
mod sequence;
mod serve;
#[cfg(test)]
mod tests;
mod wanted;
mod wire;

pub(crate) use fetch::{
    BlobFetches, FetchFailure, FetchOrder, FetchProgress, JoinedFetch, MissingBytes,
};
pub use handler::{BLOBS_ALPN, BlobHandler, BlobOptions};
pub use peers::BlobPeers;
pub(crate) use peers::{ProviderStatus, ask_provider};
pub use wire::{BlobRequest, BlobRequestError, BlobRequestParser, BlobSelections};
