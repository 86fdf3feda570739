//! Serving containers of typed data: a store by content, the protocol `alknet/tensor`, the same as
//! operations, and a view over HTTP.
//!
//! A [`Store`] holds files. [`TensorHandler`] serves them to whoever may read them, each request on a
//! stream of its own; [`operations`] does so over `alknet/call`, and a [`Mirror`] over HTTP. A
//! [`Client`] fetches, and proves what it is sent. Files are read by offset and never mapped.

pub mod limits;

mod access;
mod asker;
mod client;
mod error;
mod flights;
mod handler;
mod mirror;
mod ops;
mod part;
mod path;
mod request;
mod store;
mod tree;
mod uploads;
mod wire;

pub use access::{Deed, allows};
pub use asker::Asker;
pub use client::{Client, ClientError, Pulled};
pub use error::{QUOTA_EXCEEDED, ServeError, TENSOR_INVALID};
pub use handler::{ALPN, Patience, TensorHandler};
pub use mirror::Mirror;
pub use ops::operations;
pub use part::{Head, Part};
pub use path::{Src, StorePath};
pub use request::{Encoding, Fetch, Request, Want};
pub use store::{Object, Store, StoreOptions, Upload};
