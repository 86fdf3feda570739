//! Stores, the protocol and the operations as peers meet them.

mod access;
mod changes;
mod hostile;
mod operations;
mod pull;
mod put;
mod scene;
mod streams;
