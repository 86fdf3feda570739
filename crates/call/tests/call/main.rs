//! The protocol over connections within this process. One program, because each links everything;
//! what measures its own process, `announced.rs`, is the other.

#[path = "../common/mod.rs"]
mod common;

mod against_python;
mod calls;
mod composition;
mod descendants;
mod endings;
mod farm;
mod forwarding;
mod generations;
mod hostile;
mod imports;
mod interop;
mod onward;
mod peers;
mod repeat;
mod session;
