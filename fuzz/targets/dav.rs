//! `alknet_fuzz::dav` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    alknet_fuzz::dav(data);
});
