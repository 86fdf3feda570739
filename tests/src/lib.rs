//! What tests of the booted appliance share: the built image, a command line with keys of its own,
//! and nodes on machines and on this host.
//!
//! ```no_run
//! use alknet_tests::{Bench, Boot};
//!
//! let bench = Bench::new();
//! let node = bench.machine(Boot::MicrovmErofs).boot();
//! let info = node.call("node/info", &serde_json::json!({}));
//! assert_eq!(info["name"], "alknet");
//! node.end();
//! ```
//!
//! Everything here panics when it fails: a test has nothing better to do, and the message carries
//! the console.

mod asking;
mod bench;
mod browser;
mod cli;
mod curl;
mod elsewhere;
mod guesses;
mod host;
mod http3;
mod hub;
pub mod idle;
mod image;
mod labels;
mod node;
pub mod pebble;
mod pem;
pub mod raw;
mod relay;
mod removed;
mod server;
mod snapshot;
pub mod sockets;
mod store;
pub mod tools;
mod wait;
mod web;
pub mod wire;

pub use asking::Asking;
pub use bench::Bench;
pub use browser::{Browser, Loaded, spki};
pub use cli::{Answer, Cli, Stream, run_with_input};
pub use curl::Curl;
pub use elsewhere::Elsewhere;
pub use guesses::{FAILED_LOGINS, guesses_refuse_nobody_else, wrong_token};
pub use host::{HostNode, serve};
pub use http3::{Heard, http3};
pub use hub::HUB;
pub use image::{Image, binary};
pub use labels::assert_known_labels;
pub use node::{Boot, Machine, Node, READY};
pub use pem::Pem;
pub use relay::Relay;
pub use removed::Follower;
pub use server::Server;
pub use snapshot::{Point, Snapshot};
pub use wait::{eventually, is_busy, whole_seconds};
pub use web::{AtOnce, Events, Told, Web, curl, health};
