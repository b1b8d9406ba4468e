//! I/O commands of the NVM command set.
