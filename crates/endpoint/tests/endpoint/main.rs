//! The one port over real sockets on loopback.

mod dialer;
mod life;
mod matrix;
mod refusals;
mod support;
mod third_party;
