//! Everything shared between processes: segments, guest memory, rings, events, handoff, fd store.
