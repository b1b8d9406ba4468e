//! See `vireo_tests::fuzz::walks`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vireo_tests::fuzz::walks(data));
