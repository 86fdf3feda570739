//! The machine's network and time, for PID 1.
//!
//! [`NetManager`] finds every network card, now and later, and configures it: DHCPv4, IPv6 by
//! router advertisements and DHCPv6, or what the configuration says. It keeps `resolv.conf` and
//! reports what it did as [`NetEvent`]s. [`time::TimeSync`] sets the clock from SNTP servers.
//!
//! ```no_run
//! # async fn example() -> Result<(), alknet_init_net::NetError> {
//! use alknet_init_net::{NetEvent, NetManager, NetPlan};
//!
//! let (events, mut news) = tokio::sync::mpsc::channel(64);
//! let network = NetManager::start(NetPlan::automatic("box"), events)?;
//! while let Some(event) = news.recv().await {
//!     if let NetEvent::Changed(state) = event
//!         && state.ready()
//!     {
//!         break;
//!     }
//! }
//! network.stop();
//! # Ok(())
//! # }
//! ```
//!
//! The protocols ([`dhcp4`], [`dhcp6`], [`time::sntp`]) are state machines without sockets or
//! clocks; the manager is the only part that touches the kernel.

mod dns;
mod entropy;
mod error;
mod link;
mod manager;
mod neighbour;
mod netlink;
mod plan;
mod resolver;
mod retry;
mod state;
mod sysctl;

pub mod dhcp4;
pub mod dhcp6;
pub mod time;

pub use error::NetError;
pub use manager::{NetHandle, NetManager};
pub use plan::NetPlan;
pub use state::{LinkState, NetEvent, NetLogLevel, NetState};
