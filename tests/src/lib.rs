//! Whole-system tests: the harness that they share.
//!
//! [`target`] runs the real processes, [`faulty`] with devices that fail, [`stranger`] stands where a target should, and
//! [`command`] is what a person types against them. [`guest`] boots Linux on targets, [`host`] is a driver of ours that talks
//! to a controller as a guest would, and as no guest should; [`simulated`] is a whole target in one thread. [`fuzz`] holds
//! the fuzz targets, so that the test suite and the fuzzer run the same code.
//!
//! What fails here fails a test: helpers panic, with what they know.

#![forbid(unsafe_code)]

pub mod admin_client;
pub mod client;
pub mod command;
pub mod cores;
pub mod faulty;
pub mod floor;
pub mod fuzz;
pub mod guest;
pub mod host;
pub mod log;
pub mod measure;
pub mod random;
pub mod simulated;
pub mod stranger;
pub mod target;
pub mod wait;
