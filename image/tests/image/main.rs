//! What is built, looked at by programs of other projects.

mod forms;
mod linuxkit;
mod support;
