//! Views of the store of files.

pub mod dav;
