//! Replaces a function of the C library's start code, so that the program can be linked at a fixed address.
//!
//! Rust links every static program of this target as position-independent, and has no setting for a single program.
//! `build.rs` overrides that at the linker, but the start code that the compiler chose still calls the C library's
//! function that relocates addresses, which would look for tables that do not exist. The function of this module
//! replaces it. In the C library's start code for programs at a fixed address, that function is empty as well.

#[unsafe(no_mangle)]
extern "C" fn _dl_relocate_static_pie() {}
