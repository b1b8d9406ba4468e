//! What a person types: `vireo up` keeps a host's services running, `vireo check` looks at a configuration, `vireo reload`
//! and `vireo status` talk to the manager, and so do [`admin`] with the verbs of its API and [`top`];
//! [`doctor`] looks at the machine; `vireo perf` and `vireo identify` drive a controller themselves.

#![forbid(unsafe_code)]

pub mod admin;
pub mod client;
pub mod doctor;
pub mod generate;
pub mod identify;
pub mod perf;
pub mod reach;
pub mod status;
pub mod text;
pub mod top;
pub mod up;
