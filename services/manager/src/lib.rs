//! Reconciles the host's configuration with its running processes.
