//! `alknet_fuzz::iroh_bytes` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    alknet_fuzz::iroh_bytes(data);
});
