//! The vector registers of this thread. Copies, comparisons and hashes use them, and other code rarely does: in a
//! test a piece of a seed was in one of PID 1's registers long after its vault was locked.

#![allow(unsafe_code)]

use std::arch::asm;

/// Sets all bits of the registers to one. Zeros would not do: a processor that saves a thread's registers omits those
/// that are zero (Intel's manual, volume 1, "XSAVE-managed state"), and their saved content from before would stay.
#[cfg(target_arch = "x86_64")]
#[inline(never)]
pub(super) fn fill() {
    macro_rules! run {
        ($($instruction:expr),+) => {
            // SAFETY: vector registers are written, and no memory is touched. The clobbers tell the compiler that all
            // of them may change, as in a call. The caller has checked that the processor has the registers.
            unsafe { asm!($($instruction),+, clobber_abi("C"), options(nomem, nostack)) }
        };
    }
    macro_rules! same {
        ($before:literal, $between:literal, $after:literal, $($number:literal)+) => {
            run!($(concat!($before, $number, $between, $number, $after)),+)
        };
    }
    macro_rules! three {
        ($before:literal, $register:literal, $after:literal, $($number:literal)+) => {
            run!($(concat!(
                $before, " ", $register, $number, ", ", $register, $number, ", ", $register, $number, $after
            )),+)
        };
    }
    if std::arch::is_x86_feature_detected!("avx512f") {
        three!("vpternlogd", "zmm", ", 255",
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31);
    } else if std::arch::is_x86_feature_detected!("avx") {
        // Predicate 15 of `vcmpps` is true for every operand.
        three!("vcmpps", "ymm", ", 15", 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    } else {
        same!("pcmpeqd xmm", ", xmm", "", 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    }
}

/// Sets all bits of the registers to one.
#[cfg(target_arch = "aarch64")]
#[inline(never)]
pub(super) fn fill() {
    macro_rules! each {
        ($($number:literal)+) => {
            // SAFETY: vector registers are written, and no memory is touched. The clobbers tell the compiler which
            // registers change, as in a call; it saves the lower halves of the eight that belong to the caller.
            unsafe {
                asm!(
                    $(concat!("movi v", $number, ".16b, #255")),+,
                    out("v8") _, out("v9") _, out("v10") _, out("v11") _,
                    out("v12") _, out("v13") _, out("v14") _, out("v15") _,
                    clobber_abi("C"), options(nomem, nostack)
                );
            }
        };
    }
    each!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31);
}

#[cfg(all(test, target_arch = "x86_64"))]
pub(super) mod tests {
    use super::*;

    /// Fills every register with `pattern`, runs `work`, and returns what the registers hold then.
    pub(in super::super) fn held_after(pattern: u8, work: fn()) -> Vec<u8> {
        let bytes = [pattern; 64];
        let mut held = [0_u8; 32 * 64];
        macro_rules! run {
            ($($instruction:expr),+) => {
                // SAFETY: `bytes` is as long as a register and `held` as all of them; the processor has these
                // registers. `work` is an ordinary function, called as one: the stack is aligned for it, beyond
                // what belongs to this frame below it.
                unsafe {
                    asm!(
                        "push rbx", "push r12", "push r13",
                        "mov rbx, {held}", "mov r12, {work}", "mov r13, rsp",
                        "sub rsp, 256", "and rsp, -64",
                        $($instruction,)+
                        "mov rsp, r13",
                        "pop r13", "pop r12", "pop rbx",
                        held = in(reg) held.as_mut_ptr(),
                        work = in(reg) work,
                        in("rsi") bytes.as_ptr(),
                        clobber_abi("C")
                    );
                }
            };
        }
        macro_rules! all {
            ($move:literal, $register:literal, $($number:literal)+) => {
                run!(
                    $(concat!($move, " ", $register, $number, ", [rsi]"),)+
                    "call r12",
                    $(concat!($move, " [rbx + 64*", $number, "], ", $register, $number)),+
                )
            };
        }
        if std::arch::is_x86_feature_detected!("avx512f") {
            all!("vmovdqu64", "zmm",
                0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31);
        } else if std::arch::is_x86_feature_detected!("avx") {
            all!("vmovdqu", "ymm", 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        } else {
            all!("movdqu", "xmm", 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        }
        held.to_vec()
    }

    #[test]
    fn nothing_is_left_in_any_part_of_a_register() {
        let nothing = || {};
        let found = |held: &[u8]| held.iter().filter(|byte| **byte == 0x5a).count();
        let width = match (
            std::arch::is_x86_feature_detected!("avx512f"),
            std::arch::is_x86_feature_detected!("avx"),
        ) {
            (true, _) => 32 * 64,
            (_, true) => 16 * 32,
            _ => 16 * 16,
        };
        assert_eq!(
            found(&held_after(0x5a, nothing)),
            width,
            "the look is at all of them"
        );
        assert_eq!(found(&held_after(0x5a, fill)), 0);
    }
}
