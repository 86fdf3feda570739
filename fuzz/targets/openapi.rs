//! `alknet_fuzz::openapi` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    alknet_fuzz::openapi(data);
});
