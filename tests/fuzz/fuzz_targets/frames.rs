//! See `vireo_tests::fuzz::frames`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vireo_tests::fuzz::frames(data));
