//! The container as other programs meet it: what they make opens here, what is made here opens there, and
//! what is wrong is refused by name.

mod common;
mod files;
mod layouts;
mod memory;
mod mutation;
#[path = "../../../crates/typedef/tests/typedef/plan.rs"]
mod plan;
mod python;
mod reject;
mod roundtrip;
mod tools;
