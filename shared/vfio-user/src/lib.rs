//! The vfio-user protocol, both ends, and PCI configuration space.
