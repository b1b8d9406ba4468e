//! The NVMe controller, sans-IO: registers, admin, queues, I/O commands, PRP and SGL.
