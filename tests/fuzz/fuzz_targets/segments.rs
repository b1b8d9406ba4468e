//! See `vireo_tests::fuzz::segments`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vireo_tests::fuzz::segments(data));
