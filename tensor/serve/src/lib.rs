//! Serves containers of typed data: a content-addressed store, the protocol `alknet/tensor`, the same as operations,
//! and a view over HTTP.
//!
//! A [`TensorStore`] holds files. [`TensorHandler`] serves them to the peers that may read them, each request on a
//! stream of its own; [`operations`] does so over `alknet/call`, and a [`Mirror`] over HTTP. A [`TensorClient`]
//! fetches, and verifies what the server sends. Files are read by offset and never mapped.

pub mod limits;

mod access;
mod client;
mod describe;
mod error;
mod handler;
mod mirror;
mod ops;
mod part;
mod path;
mod pending;
mod request;
mod requester;
mod store;
mod upload_memory;
mod uploads;
mod wire;

pub use access::{ReadablePaths, TensorAccess, allows};
pub use client::{ClientError, PullResult, TensorClient};
pub use error::{QUOTA_EXCEEDED, ServeError, TENSOR_INVALID};
pub use handler::{ALPN, ServeTimeouts, TensorHandler};
pub use mirror::Mirror;
pub use ops::operations;
pub use part::{FilePart, TensorResponseHead};
pub use path::{StorePath, TensorFileRef};
pub use request::{Fetch, PartEncoding, PartSelector, TensorRequest};
pub use requester::TensorRequester;
pub use store::{
    Object, StoreOptions, StoreScrubReport, StoredFileScrub, StoredPathPage, StoredTensorPath,
    TensorRemoval, TensorStore, TensorUpload,
};
