//! Configuration, start, readiness, shutdown and pinning of every Vireo process.
