//! The built images, checked by programs of other projects.

mod forms;
mod linuxkit;
mod support;
