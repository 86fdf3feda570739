//! Scripts in their engine, against a host in memory.

mod declared;
mod determinism;
mod documented;
mod files;
mod globals;
mod hostile;
mod json;
mod layout;
mod limits;
mod modules;
mod ops;
mod small_floats;
mod support;
mod tensor_file;
mod test262;
mod topics;
mod typed;
mod ujsx;
