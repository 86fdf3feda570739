//! Converts JSON between a script and its host, value by value.
//!
//! The conversion makes no text: a value without a JSON form (`NaN`, a function, a large `BigInt`, bytes) ends with
//! [`crate::RuntimeCode::Encode`] instead of becoming `null`. Getters, proxies and `toJSON` run as part of the
//! script, within its limits.

mod from_script;
mod names;
mod to_script;
pub mod weight;

pub(crate) use from_script::{ScriptValueError, ScriptValueReader};
pub(crate) use to_script::{ScriptValueWriter, WriterStop, send, write, write_bounded};
