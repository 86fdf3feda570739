//! The network manager and time synchronisation against real servers.

mod lab;
mod network;
mod time;
