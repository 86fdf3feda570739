//! From the seed to a key: SLIP-0010, and which path belongs to which purpose.

mod path;
mod purpose;
pub(crate) mod slip10;

pub use path::{DerivationPath, Index};
pub use purpose::{Curve, KeyVersion, MacPurpose, Purpose};
