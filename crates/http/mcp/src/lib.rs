//! The Model Context Protocol, both ways.
//!
//! [`McpServer`] shows this node to models: four tools that find operations and call them, and operations
//! that an administrator pinned as tools of their own. There are no sessions: every request stands for
//! itself, in each version of the protocol.
//!
//! [`FromMcp`] makes operations of the tools of other servers, which are asked over streamable HTTP and
//! never believed: what they say is bounded, and what they ask for is refused.

pub mod limits;

mod client;
mod server;

pub use client::{FromMcp, McpImport};
pub use server::{CONTENT_KEYWORD, McpOptions, McpServer};
