//! The protocol as a client sees it: one module for each message, valid and invalid side by
//! side, and the sequences that real clients send.

mod support;

mod client_sequences;
mod connection;
mod device_get_info;
mod device_reset;
mod dma_access;
mod dma_map;
mod dma_unmap;
mod get_irq_info;
mod get_region_info;
mod hostile;
mod region_access;
mod region_write_multi;
mod set_irqs;
mod unsupported;
mod version;
