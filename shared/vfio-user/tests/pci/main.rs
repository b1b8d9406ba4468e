//! PCI configuration space and MSI-X as software sees them.

mod config;
mod model;
mod msix;
