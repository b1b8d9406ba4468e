//! The controller without its I/O, driven as a client and its workers would: registers, admin commands in guest memory,
//! acknowledgements in the queues segments.

mod abort;
mod event;
mod feature;
mod format;
mod host;
mod hostile;
mod identify;
mod lifecycle;
mod log_page;
mod namespace;
mod queue;
mod register;
