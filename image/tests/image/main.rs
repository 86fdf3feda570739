//! The built images, checked by programs of other projects.

mod containers;
mod forms;
mod linuxkit;
mod sbom;
mod support;
