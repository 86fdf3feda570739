//! One implementation of the functions that no standard defines to the last bit.
//!
//! The engine takes `sin` and its kin from the C library, and glibc picks between variants by what
//! the CPU offers, so that two machines differ in the last bits. The functions below carry the
//! library's own names: a static program's linker takes the first definition it meets, so every
//! double-precision call of these names in the program, the engine's above all, ends in the `libm`
//! crate, which computes with the same operations everywhere. What IEEE 754 defines exactly (`sqrt`,
//! `floor`, `fmod`, …) stays where it is.
//!
//! A test compares the engine's results with the crate's, bit by bit: were the linker to choose
//! otherwise, it would fail.

use std::hint::black_box;

macro_rules! one_argument {
    ($($name:ident),*) => {$(
        // The name is the C library's: see the module.
        #[unsafe(no_mangle)]
        extern "C" fn $name(x: f64) -> f64 {
            libm::$name(x)
        }
    )*};
}

macro_rules! two_arguments {
    ($($name:ident),*) => {$(
        // The name is the C library's: see the module.
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

/// Called where an engine is made, so that the linker meets these definitions before it looks into
/// the C library.
pub(crate) fn linked() {
    let first: extern "C" fn(f64) -> f64 = sin;
    black_box(first);
}
