//! The machine's cores: tests of one file share them, but for those that measure times and want them for themselves.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Held by tests while they run.
static CORES: RwLock<()> = RwLock::new(());

/// For a test that measures.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    CORES.write().unwrap_or_else(PoisonError::into_inner)
}

/// For any other.
pub fn beside() -> RwLockReadGuard<'static, ()> {
    CORES.read().unwrap_or_else(PoisonError::into_inner)
}
