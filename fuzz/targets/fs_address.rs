//! `alknet_fuzz::fs_address` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    alknet_fuzz::fs_address(data);
});
