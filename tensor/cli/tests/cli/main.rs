//! The verbs of `alknet tensor` as a person at a terminal uses them.

mod failures;
mod page;
mod shell;
mod verbs;
