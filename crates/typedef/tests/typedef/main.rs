//! Properties of every schema, checked with random ones, with compilers and with TypeBox.

mod agree;
mod identity;
mod native;
mod page;
mod plan;
mod typebox;
