//! The worker's poll loop over real segments, step by step in this thread: the commit order, the bounds, what the
//! frontend asks of it, and what a hostile guest does to it.

mod backends;
mod commands;
mod faults;
mod frontend;
mod interrupts;
mod limits;
mod namespace_pauses;
mod pauses;
mod queues;
mod traces;
mod turns;
mod worker;
