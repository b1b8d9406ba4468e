//! A service that does nothing but speak its keeper's protocol, for the keeper's tests: it stores one descriptor, says
//! what it was given back, and is ready. What is in its environment makes it misbehave.

#![forbid(unsafe_code)]

use ipc::event::EventFd;
use ipc::fd_store::{FdName, FdStore};
use service::config::{Config, Kind};
use service::control::{Answer, Handler, Incoming, Server};
use service::shutdown::Shutdown;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use vireo_proto::Failure;

struct Silent;

impl Handler for Silent {
    async fn handle(&self, _: Incoming) -> Result<Answer, Failure> {
        Err(Failure::unsupported())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let program = PathBuf::from(std::env::args_os().next().unwrap_or_default());
    let program = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let arguments: Vec<String> = std::env::args().collect();
    let after = |flag: &str| {
        let at = arguments.iter().position(|argument| argument == flag).unwrap();
        arguments[at + 1].clone()
    };
    let kinds = [Kind::Backend, Kind::Worker, Kind::Frontend, Kind::Manager];
    let kind = kinds.into_iter().find(|kind| program == format!("vireo-{kind}")).unwrap();
    let name = after("--name");
    let config = Config::read(&PathBuf::from(after("--config"))).unwrap();
    let wish = |what: &str| {
        std::fs::read_to_string(config.runtime_dir.join(what)).unwrap_or_default().contains(&name)
    };
    if wish("fake-fails") {
        return ExitCode::from(1);
    }
    let shutdown = Shutdown::listen().unwrap();
    let server = Server::bind(&config.socket(kind, &name)).unwrap();
    let (mut store, given) = FdStore::from_environment().unwrap();
    let event = match given.into_iter().next() {
        Some((_, fd)) => EventFd::from_client(fd).unwrap(),
        None => EventFd::create().unwrap(),
    };
    // Counts the lives of this service: the counter lives in the keeper.
    event.signal().unwrap();
    let lives = event.drain().unwrap();
    for _ in 0..lives {
        event.signal().unwrap();
    }
    store.put(&FdName::new("lives", 1).unwrap(), event.as_fd(), false).unwrap();
    store.barrier(Duration::from_secs(60)).unwrap();
    if wish("fake-slow") {
        service::ready::status("waits for ever");
    } else {
        service::ready::ready(&format!("life {lives}"));
    }
    tokio::select! {
        () = server.serve(Arc::new(Silent)) => {}
        () = shutdown.requested() => {}
    }
    if wish("fake-stubborn") {
        std::thread::sleep(Duration::from_secs(3600));
    }
    ExitCode::SUCCESS
}
