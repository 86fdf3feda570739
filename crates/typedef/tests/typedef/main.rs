//! What holds for every schema, held against random ones, against compilers and against TypeBox.

mod agree;
mod identity;
mod native;
mod page;
mod plan;
mod typebox;
