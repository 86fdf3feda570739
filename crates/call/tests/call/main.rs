//! The protocol over connections within this process.

mod against_python;
mod announced;
mod calls;
mod common;
mod composition;
mod descendants;
mod endings;
mod excused;
mod farm;
mod forwarder;
mod forwarding;
mod generations;
mod hostile;
mod imports;
mod interop;
mod leaving;
mod passed_on;
mod peers;
mod repeat;
mod request_bytes;
mod rights;
mod sent;
mod session;
mod taken;
mod unfinished;
mod unread;
