//! Stores, the protocol and the operations as peers meet them.

mod access;
mod changes;
mod hostile;
mod mirror;
mod operations;
mod page;
mod pull;
mod put;
mod quic;
mod scene;
mod several;
mod streams;
