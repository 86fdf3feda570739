//! The container as strangers meet it: what they make opens here, what is made here opens there, and
//! what is wrong is refused by name.

mod common;
mod files;
mod memory;
mod mutation;
mod python;
mod reject;
mod roundtrip;
mod tools;
