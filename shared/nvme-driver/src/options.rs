//! What a caller may choose.

use std::time::Duration;

/// Of a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Longest wait for the target's first answers.
    pub connect_timeout: Duration,
    /// Longest wait for an admin command (Format NVM has its own) or a register. A controller that is slower is taken for
    /// failed.
    pub admin_timeout: Duration,
    /// After this long an I/O command is aborted; half as long again, and the controller is reset.
    pub io_timeout: Duration,
    /// How often a command is tried again whose status does not forbid it.
    pub retries: u8,
    /// I/O queue pairs to ask for; the controller may grant fewer.
    pub queues: u16,
    /// Whether completions raise interrupts on the queues that ask for them; without it everything is polled.
    pub interrupts: bool,
    /// Whether to use shadow doorbells (Doorbell Buffer Config).
    pub shadow_doorbells: ShadowDoorbells,
    /// How commands point to their data.
    pub data_pointer: DataPointer,
}

/// When to use shadow doorbells. NVMe Base 2.0c 5.8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ShadowDoorbells {
    /// Where the controller offers them and a doorbell costs more than a store into memory.
    #[default]
    Auto,
    /// Where the controller offers them.
    Offered,
    /// Never.
    Never,
}

/// How commands point to their data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DataPointer {
    /// One SGL data block where the controller takes it and PRPs would need a list; PRPs otherwise.
    #[default]
    Auto,
    /// Always PRPs.
    Prp,
    /// One SGL data block wherever the controller takes it.
    Sgl,
}

/// Of a queue pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueOptions {
    /// Commands outstanding at a time; the controller may grant fewer: see [`crate::QueuePair::depth`].
    pub depth: u16,
    /// Whether completions raise an interrupt, if [`Options::interrupts`] allows it.
    pub interrupt: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            admin_timeout: Duration::from_secs(5),
            io_timeout: Duration::from_secs(30),
            retries: 4,
            queues: 64,
            interrupts: false,
            shadow_doorbells: ShadowDoorbells::default(),
            data_pointer: DataPointer::default(),
        }
    }
}

impl Default for QueueOptions {
    fn default() -> Self {
        Self { depth: 128, interrupt: false }
    }
}
