//! Letting others in, as seen from outside of this crate.

mod door;
mod join;
