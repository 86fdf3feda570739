//! What tests of the booted appliance share: the built image, a command line with keys of its own,
//! and nodes on machines and on this host.
//!
//! ```no_run
//! use alknet_tests::{TestBench, BootVariant};
//!
//! let bench = TestBench::new();
//! let node = bench.machine(BootVariant::MicrovmErofs).boot();
//! let info = node.call("node/info", &serde_json::json!({}));
//! assert_eq!(info["name"], "alknet");
//! node.end();
//! ```
//!
//! Everything here panics when it fails: a test has nothing better to do, and the message carries
//! the console.

mod bench;
mod browser;
mod cli;
mod curl;
mod dialer;
mod draining;
mod file_server;
mod guesses;
mod host;
mod http3;
mod hub;
mod image;
mod labels;
mod node;
pub mod pebble;
mod pem;
mod pictures;
mod png;
pub mod raw;
mod raw_tcp;
mod relay;
mod removed;
mod request_loop;
mod server;
mod snapshot;
pub mod sockets;
pub mod stalled_http3;
mod store;
pub mod tools;
mod wait;
mod web;
pub mod wire;

pub use bench::TestBench;
pub use browser::{Browser, LoadedResource, spki};
pub use cli::{CliOutput, CliRunner, CliSubscription, run_with_input};
pub use curl::Curl;
pub use dialer::patient_dialer;
pub use draining::{TokenCallers, notes_of_tokens};
pub use file_server::FileServer;
pub use guesses::{
    FAILED_LOGINS, guesses_refuse_no_other_client, guesses_until_refused, wrong_token,
};
pub use host::{HostNode, serve};
pub use http3::{Http3Response, http3};
pub use hub::HUB;
pub use image::{BuiltImageFolder, binary};
pub use labels::assert_known_labels;
pub use node::{BootVariant, FAULTS_FILE, MachineBuilder, MachineNode, READY};
pub use pem::PemKeyFiles;
pub use pictures::{DOCS_PICTURES, DocsPicture};
pub use raw_tcp::RawTcpConnection;
pub use relay::RelayOperation;
pub use removed::RemovedPeerFixture;
pub use request_loop::RequestLoop;
pub use server::HostServer;
pub use snapshot::{MachineSnapshot, SnapshotPoint};
pub use wait::{eventually, is_busy, whole_seconds};
pub use web::{CurlEvents, CurlResponse, ParallelCurl, WebNode, curl, health};
