//! The vector registers of this thread. Copies, comparisons and hashes go through them, and little else does:
//! a piece of a seed was seen in one of PID 1's long after its vault was locked.

#![allow(unsafe_code)]

use std::arch::asm;

/// Runs the instructions that zero vector registers. The compiler is told of `$used`, which are all that it
/// puts anything into.
macro_rules! zero {
    ([$($instruction:expr),+ $(,)?], [$($used:tt)+]) => {
        // SAFETY: no memory is touched, and every register that the compiler uses is named.
        unsafe {
            asm!(
                $($instruction,)+
                $(out($used) _,)+
                options(nomem, nostack, preserves_flags)
            );
        }
    };
}

/// Zeroes them.
#[cfg(target_arch = "x86_64")]
#[inline(never)]
pub(super) fn clear() {
    macro_rules! sixteen {
        ($($instruction:expr),+) => {
            zero!(
                [$($instruction),+],
                ["xmm0" "xmm1" "xmm2" "xmm3" "xmm4" "xmm5" "xmm6" "xmm7"
                 "xmm8" "xmm9" "xmm10" "xmm11" "xmm12" "xmm13" "xmm14" "xmm15"]
            )
        };
    }
    macro_rules! with_itself {
        ($name:literal, $($number:literal)+) => {
            sixteen!($(concat!($name, $number, ", xmm", $number)),+)
        };
    }
    if std::arch::is_x86_feature_detected!("avx") {
        // The first sixteen, in their whole width.
        sixteen!("vzeroall");
    } else {
        with_itself!("pxor xmm", 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    }
    if std::arch::is_x86_feature_detected!("avx512f") {
        macro_rules! upper {
            ($($number:literal)+) => {
                sixteen!($(concat!("vpxord zmm", $number, ", zmm", $number, ", zmm", $number)),+)
            };
        }
        upper!(16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31);
    }
}

/// Zeroes them.
#[cfg(target_arch = "aarch64")]
#[inline(never)]
pub(super) fn clear() {
    macro_rules! each {
        ($($number:literal)+) => {
            zero!(
                [$(concat!("movi v", $number, ".2d, #0")),+],
                ["v0" "v1" "v2" "v3" "v4" "v5" "v6" "v7" "v8" "v9" "v10" "v11" "v12" "v13" "v14" "v15"
                 "v16" "v17" "v18" "v19" "v20" "v21" "v22" "v23" "v24" "v25" "v26" "v27" "v28" "v29" "v30" "v31"]
            )
        };
    }
    each!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31);
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// What a few of them hold.
    fn held() -> [u64; 4] {
        let [a, b, c, d]: [u64; 4];
        // SAFETY: they are read.
        unsafe {
            asm!(
                "movq {a}, xmm1", "movq {b}, xmm7", "movq {c}, xmm12", "movq {d}, xmm15",
                a = out(reg) a, b = out(reg) b, c = out(reg) c, d = out(reg) d,
                options(nomem, nostack, preserves_flags)
            );
        }
        [a, b, c, d]
    }

    #[test]
    fn nothing_is_left_in_a_register() {
        let secret = 0x5a5a_a5a5_1234_5678_u64;
        // SAFETY: the registers are named.
        unsafe {
            asm!(
                "movq xmm1, {0}", "movq xmm7, {0}", "movq xmm12, {0}", "movq xmm15, {0}",
                in(reg) secret,
                out("xmm1") _, out("xmm7") _, out("xmm12") _, out("xmm15") _,
                options(nomem, nostack, preserves_flags)
            );
        }
        let before = held();
        clear();
        let after = held();
        assert_eq!((before, after), ([secret; 4], [0; 4]));
    }
}
