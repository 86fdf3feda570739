//! The functions that generated code may call.
//!
//! A compiler turns some operations into calls: copies of memory, functions of the mathematics library, conversions
//! of half floats, arithmetic of 128 bits. Which ones depends on the processor: with AVX2 no function was ever
//! needed, with SSE2 alone the first `floor` of a 64-bit float is. The table lists every function that could be
//! needed.

/// Address of a function whose signature does not matter.
#[derive(Clone, Copy)]
pub(crate) struct SymbolAddress(pub(crate) unsafe extern "C" fn());

macro_rules! table {
    ($($name:ident)*) => {
        unsafe extern "C" {
            $(fn $name();)*
        }
        /// Each name with the address of the function that is linked under it.
        static TABLE: &[(&str, SymbolAddress)] = &[$((stringify!($name), SymbolAddress($name))),*];
    };
}

table! {
    memcmp memcpy memmove memset
    abort free malloc
    acos acosf asin asinf atan atan2 atan2f atanf ceil ceilf cos cosf cosh coshf exp exp10 exp10f exp2
    exp2f expf floor floorf fma fmaf fmax fmaxf fmin fminf fmod fmodf ldexp ldexpf log log10 log10f log2
    log2f logf nearbyint nearbyintf pow powf rint rintf round roundeven roundevenf roundf sin sinf sinh
    sinhf sqrt sqrtf tan tanf tanh tanhf trunc truncf
    __divti3 __fixunsdfti __fixunssfti __floatuntidf __floatuntisf __modti3 __multi3 __udivti3 __umodti3
    __extendhfsf2 __truncdfhf2 __truncsfhf2
}

// The getrandom crate looks it up by name before it falls back to the system call.
unsafe extern "C" {
    fn getrandom();
}

/// The function with that name, if generated code may call it.
pub(crate) fn find(name: &[u8]) -> Option<SymbolAddress> {
    if name == b"getrandom" {
        return Some(SymbolAddress(getrandom));
    }
    let row = TABLE.iter().find(|(known, _)| known.as_bytes() == name)?;
    Some(row.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_is_the_function() {
        let floor = find(b"floor").expect("in the table").0;
        // SAFETY: the C library's floor has exactly this type.
        let floor: unsafe extern "C" fn(f64) -> f64 = unsafe { std::mem::transmute(floor) };
        // SAFETY: floor has no preconditions.
        assert_eq!(unsafe { floor(-1.5) }, -2.0);
        assert!(find(b"floo").is_none() && find(b"").is_none() && find(b"dlopen").is_none());
    }

    #[test]
    fn every_row_has_an_address_of_its_own_name() {
        for (name, address) in TABLE {
            assert!(address.0 as usize != 0, "{name}");
        }
        // Thirty of mathematics in two widths each, seven of memory, twelve of the compiler.
        assert_eq!(TABLE.len(), 2 * 30 + 7 + 12);
    }
}
