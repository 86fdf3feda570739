//! Volumes made by the tools people make them with, and read with them.

mod labels;
mod tools;
mod volumes;
