//! See `vireo_tests::fuzz::driver`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vireo_tests::fuzz::driver(data));
