//! Block devices and channels: null, malloc, file; ring and lease.
