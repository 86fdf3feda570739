//! The Model Context Protocol, as a server and as a client.
//!
//! [`McpServer`] offers this node to models: four tools that find operations and call them, and the operations that
//! an administrator pinned as tools of their own. It has no sessions: every request is complete in itself, in each
//! version of the protocol.
//!
//! [`FromMcp`] makes operations of the tools of other servers. The node calls these over streamable HTTP and does not
//! trust them: it bounds what they send and refuses their requests.

pub mod limits;

mod client;
mod server;

pub use client::{FromMcp, McpImport};
pub use server::{CONTENT_KEYWORD, McpOptions, McpServer};
