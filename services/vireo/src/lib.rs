//! What a person types: `vireo up` keeps a host's services running, `vireo check` looks at a configuration, `vireo reload`
//! and `vireo status` talk to the manager.

#![forbid(unsafe_code)]

pub mod client;
pub mod generate;
pub mod identify;
pub mod perf;
pub mod status;
pub mod up;
