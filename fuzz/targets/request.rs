//! `alknet_fuzz::request` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    alknet_fuzz::request(data);
});
