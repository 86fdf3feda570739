//! A program that stays where it was linked to, with the C library's start code for one that moves.
//!
//! Rust links every static program of this target so that it can be moved, and has no setting for a
//! single one. `build.rs` takes that back at the linker, but the start code that the compiler chose
//! still calls the C library's function that puts addresses right, which would look for tables that are
//! not there. This one takes its place. In the C library's own start code for programs that stay it is
//! empty just so.

#[unsafe(no_mangle)]
extern "C" fn _dl_relocate_static_pie() {}
