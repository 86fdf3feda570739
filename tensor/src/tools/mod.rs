//! The commands over containers as functions: they return data and typed errors and print nothing.

#[cfg(not(target_family = "wasm"))]
mod convert;
mod diff;
mod list;
mod npy;
#[cfg(not(target_family = "wasm"))]
mod npz;
#[cfg(not(target_family = "wasm"))]
mod pack;
mod rewrite;

#[cfg(not(target_family = "wasm"))]
pub use convert::{ArrayFormat, convert, convert_source};
pub use diff::{ChangeKind, DiffChange, diff};
pub use list::{
    ContainerHashes, ContainerListing, FieldRow, KindRow, TensorRow, cat, hashes, list,
};
pub use npy::{Npy, NpyHeader, npy_header};
#[cfg(not(target_family = "wasm"))]
pub use pack::pack;
pub use rewrite::{RewriteOptions, rewrite, select, strip};
