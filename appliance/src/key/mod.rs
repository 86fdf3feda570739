//! A key in the place of another: the files of a rotation, and how nodes are told. The command line
//! replaces its own key so, and a node the key that it serves with.

mod files;
mod tell;

pub(crate) use files::{KeyFiles, Keys, Record, Stage};
pub(crate) use tell::{TellError, Told, tell};
