//! What is built, looked at by programs nobody here wrote.

mod forms;
mod linuxkit;
mod support;
