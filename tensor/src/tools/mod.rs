//! What the command line does with containers, as functions: they return data and typed errors and
//! print nothing.

mod convert;
mod diff;
mod list;
mod npy;
mod npz;
mod pack;
mod rewrite;

pub use convert::{Format, convert, convert_source};
pub use diff::{Change, ChangeKind, diff};
pub use list::{FieldRow, Hashes, KindRow, Listing, TensorRow, cat, hashes, list};
pub use npy::{Npy, NpyHeader, npy_header};
pub use pack::pack;
pub use rewrite::{Options, rewrite, select, strip};
