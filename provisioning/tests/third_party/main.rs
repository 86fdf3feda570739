//! Volumes made and read with the usual tools.

mod labels;
mod tools;
mod volumes;
