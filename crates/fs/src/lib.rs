//! Serves the store of files ([`alknet_store`]) as operations `fs/*`.
//!
//! An [`FsService`] opens the store when it is first used, keeps it in order by a thread of its own, and says as
//! [`FsProblem`] why a store is not served. [`operations`] makes the operations of a service. A caller may do what the
//! scopes of its identity say ([`FsRight`]): a bucket for which it has no scope at all looks to it like one that does not
//! exist.

mod chores;
pub mod dav;
mod error;
mod lease;
pub mod limits;
mod mount;
mod ops;
mod path;
mod requester;
mod rights;
mod service;
pub mod sync;
mod watches;

pub use error::FsError;
pub use lease::StoreLease;
pub use mount::{DavFiles, DavMount};
pub use ops::operations;
pub use path::{address_at, parse_address};
pub use requester::FsRequester;
pub use rights::{FsRight, VisibleBuckets};
pub use service::{FsProblem, FsService};
