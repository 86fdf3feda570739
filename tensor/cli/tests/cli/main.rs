//! The verbs of `alknet tensor` as somebody at a terminal uses them.

mod failures;
mod shell;
mod verbs;
