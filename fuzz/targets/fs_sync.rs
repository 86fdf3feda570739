//! `alknet_fuzz::fs_sync` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    alknet_fuzz::fs_sync(data);
});
