//! Views of the store of files.

pub mod dav;
mod mount;

pub use mount::{DavFiles, DavMount};
