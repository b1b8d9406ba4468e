//! A full fence that one side pays for both: the rare side calls [`heavy`], which makes every registered process's
//! running threads execute a full fence; the frequent side then gets by with [`light`], which costs nothing.
//!
//! membarrier(2), MEMBARRIER_CMD_GLOBAL_EXPEDITED: reaches threads of processes that called [`register`].

use std::sync::atomic::{Ordering, compiler_fence};

const GLOBAL_EXPEDITED: libc::c_int = 1 << 1;
const REGISTER_GLOBAL_EXPEDITED: libc::c_int = 1 << 2;

/// Makes this process's threads subject to [`heavy`] of any process. `false` where the kernel does not have it: use a
/// true fence instead.
#[must_use]
pub fn register() -> bool {
    call(REGISTER_GLOBAL_EXPEDITED)
}

/// A full fence on this thread and on every running thread of registered processes. `false` if the kernel refused.
#[must_use]
pub fn heavy() -> bool {
    call(GLOBAL_EXPEDITED)
}

/// The frequent side's half: keeps the compiler from moving loads before stores; the processor is [`heavy`]'s matter.
#[inline]
pub fn light() {
    compiler_fence(Ordering::SeqCst);
}

fn call(command: libc::c_int) -> bool {
    // SAFETY: membarrier takes integers only and touches no memory of the caller.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

#[cfg(test)]
mod tests {
    #[test]
    fn registered_process_may_fence_heavily() {
        // The two agree: a kernel either has the command pair or has neither.
        assert_eq!(super::register(), super::heavy());
    }
}
