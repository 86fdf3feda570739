//! Shared code of this crate's test programs: a node with operations of every kind, both carriages, and peers by
//! hand.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "every test program uses its own part of this"
)]

mod dialer;
mod held_connection;
mod identities;
mod node;
mod operations;
mod probe;
mod raw;
mod single;

pub use dialer::*;
pub use held_connection::*;
pub use identities::*;
pub use node::*;
pub use operations::*;
pub use probe::*;
pub use raw::*;
pub use single::*;
