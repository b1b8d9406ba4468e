//! Fuzz targets: functions of any bytes that must return. The test suite runs them on bytes from seeds
//! (`tests/fuzz.rs`), the fuzzer on bytes that it evolves (`tests/fuzz`); both the same code.
//!
//! A target fails by panicking: on a panic of what is under test, on a promise that it broke, or because it does not
//! come to an end.

pub mod commands;
pub mod driver;
pub mod frames;
pub mod input;
pub mod segments;
mod transport;
pub mod walks;

pub use commands::commands;
pub use driver::driver;
pub use frames::frames;
pub use segments::segments;
pub use walks::walks;

use nvme_spec::{Lba, Nsid};

use crate::simulated::SimulatedHost;

/// Whatever came before: a reset gives a controller that works.
fn works_after_reset(host: &mut SimulatedHost) {
    host.memory.release(64 << 10);
    host.enable();
    host.create_queues(1, 16);
    host.write(Nsid(1), Lba(1), &[0x77; 512], 512).expect("a write after a reset");
    let back = host.read(Nsid(1), Lba(1), 1, 512).expect("a read after a reset");
    assert!(back == [0x77; 512], "a read after a reset reads something else");
}
