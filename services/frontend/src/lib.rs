//! vfio-user sockets, PCI, registers and admin queue of virtual NVMe controllers.
