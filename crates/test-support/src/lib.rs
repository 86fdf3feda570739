//! Shared code of the tests of every package: deadlines that scale with how busy the machine is, a wait for a
//! condition, ports for servers, a process of a test's own, the removal of leftover network namespaces, named skips,
//! and a comparison of response times.
//!
//! `cargo xtask test` sets the first three of these environment variables for the test programs that it starts, so that this
//! library is one of the few that read the environment:
//!
//! | variable | content |
//! |---|---|
//! | `ALKNET_TEST_SLOWDOWN` | a decimal of at least 1: how much slower the machine is than at rest |
//! | `ALKNET_TEST_MACHINES_MIB` | memory that the machines of a test may have together, MiB |
//! | `ALKNET_TEST_SKIPS` | a file to which each test that skips itself, or a part of itself, or starts something again, appends one line |
//! | `ALKNET_SOAK` | `full` in a campaign of `cargo xtask soak`: tests run at full count, and hold times against promises |
//!
//! Without them, deadlines are not scaled, machines have the memory that is free, and skips are only printed, so that
//! `cargo test` works too.

mod alone;
mod campaign;
mod deadline;
pub mod log_capture;
mod machines;
mod memory;
mod namespaces;
mod port;
mod skip;
mod timing;

pub use alone::alone;
pub use campaign::{is_campaign, took};
pub use deadline::{
    ConditionResult, SLOWDOWN_MAX, deadline, eventually, expect_slowdown, limited, parse_slowdown,
    seconds, slowdown,
};
pub use machines::machines_mib;
pub use memory::{peak_bytes, peak_resident_bytes, resident_bytes};
pub use namespaces::remove_orphaned_namespaces;
pub use port::ReservedPort;
pub use skip::{skipped, skipped_whole, started_again};
pub use timing::{TIMING_SAMPLES, TimedKinds, timing_bound, timing_difference, timing_distance};
