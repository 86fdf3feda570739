//! Who may do what while that changes: in one process, under load, and with the binary.

mod binary;
mod draining;
mod full;
mod guesses;
mod lab;
mod load;
mod newest_connection;
mod stored;
mod subscriptions;
