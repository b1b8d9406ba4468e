//! Logs and counters of every Vireo process.
