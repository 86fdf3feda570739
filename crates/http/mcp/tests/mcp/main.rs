//! Models' way in, against clients and servers that others wrote: the Python and TypeScript kits of the protocol, new
//! and old, and its conformance suite. `crates/tasks` pins them and `cargo xtask test` says where they lie:
//! `ALKNET_TEST_MCP_PYTHON`, `ALKNET_TEST_MCP_PYTHON_OLD`, `ALKNET_TEST_MCP_NODE`.

mod conformance;
mod exhaustion;
mod fixtures;
mod hostile;
mod imports;
mod kits;
mod node;
mod requests;
mod shares;
