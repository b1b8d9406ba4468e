//! The admin client: every method of the API as a command.
//!
//! `arguments` says what a person types, `session` speaks to the manager, `json` turns messages into JSON and back by the
//! API's own descriptors, `show` prints them, `manifest` applies and exports whole configurations.

mod arguments;
mod fault;
mod json;
mod limits;
mod manifest;
mod run;
mod session;
mod show;
mod stats;
mod trace;

pub use arguments::AdminCommand;
pub(crate) use arguments::{Access, Format};
pub use run::run;
pub(crate) use session::Session;
