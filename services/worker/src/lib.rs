//! Serves I/O queues of virtual NVMe controllers on one core.
