//! Scripts in their engine, against a host in memory.

mod declared;
mod determinism;
mod documented;
mod globals;
mod hostile;
mod json;
mod limits;
mod modules;
mod ops;
mod support;
mod test262;
mod typed;
mod ujsx;
