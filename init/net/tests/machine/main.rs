//! The network manager and the time keeper against real servers.

mod lab;
mod network;
mod time;
