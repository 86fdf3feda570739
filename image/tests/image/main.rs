//! The built images, checked by programs of other projects.

mod bios;
mod containers;
mod forms;
mod linuxkit;
mod sbom;
mod support;
