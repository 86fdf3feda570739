//! JSON between a script and its host, value by value.
//!
//! Text is never made on the way: what no JSON says (`NaN`, a function, a large `BigInt`, bytes)
//! ends with [`crate::RuntimeCode::Encode`] instead of turning into `null`. Getters, proxies and `toJSON`
//! run as part of the script, inside its limits.

mod from_script;
mod to_script;
pub mod weight;

pub(crate) use from_script::{ScriptValueError, ScriptValueReader};
pub(crate) use to_script::{write, write_mixed};
