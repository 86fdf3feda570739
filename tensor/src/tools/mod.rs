//! What the command line does with containers, as functions: they return data and typed errors and
//! print nothing.

mod convert;
mod diff;
mod list;
mod npy;
mod npz;
mod pack;
mod rewrite;

pub use convert::{ArrayFormat, convert, convert_source};
pub use diff::{ChangeKind, DiffChange, diff};
pub use list::{
    ContainerHashes, ContainerListing, FieldRow, KindRow, TensorRow, cat, hashes, list,
};
pub use npy::{Npy, NpyHeader, npy_header};
pub use pack::pack;
pub use rewrite::{RewriteOptions, rewrite, select, strip};
