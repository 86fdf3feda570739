//! One implementation of the functions that no standard defines to the last bit.
//!
//! The engine takes `sin` and related functions from the C library, and glibc chooses between
//! variants by the features of the CPU, so the last bits would differ between machines. The
//! functions below have the library's own names. The linker of a static program uses the first
//! definition that it finds, so all double-precision calls of these names in the program, above all
//! those of the engine, use the `libm` crate, which computes with the same operations everywhere.
//! Functions that IEEE 754 defines exactly (`sqrt`, `floor`, `fmod`, …) stay in the C library.
//!
//! A test compares the engine's results with the crate's bit by bit, and would fail if the linker
//! chose differently.

use std::hint::black_box;

macro_rules! one_argument {
    ($($name:ident),*) => {$(
        // The name is the C library's; see the module's documentation.
        #[unsafe(no_mangle)]
        extern "C" fn $name(x: f64) -> f64 {
            libm::$name(x)
        }
    )*};
}

macro_rules! two_arguments {
    ($($name:ident),*) => {$(
        // The name is the C library's; see the module's documentation.
        #[unsafe(no_mangle)]
        extern "C" fn $name(x: f64, y: f64) -> f64 {
            libm::$name(x, y)
        }
    )*};
}

one_argument!(
    acos, acosh, asin, asinh, atan, atanh, cbrt, cos, cosh, exp, expm1, log, log10, log1p, log2,
    sin, sinh, tan, tanh
);
two_arguments!(atan2, hypot, pow);

/// Called when an engine is made, so that the linker finds these definitions before it searches the
/// C library.
pub(crate) fn linked() {
    let first: extern "C" fn(f64) -> f64 = sin;
    black_box(first);
}
