//! A small NVMe controller behind a vfio-user server, that does what a script says: well, late, wrongly, or not at all.
//!
//! One thread serves the socket, another the queues. It knows what a driver needs and no more.
#![allow(dead_code, unused_imports, reason = "each test file uses a part")]

mod commands;
mod device;
mod medium;

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipc::doorbell::DoorbellPage;
use nvme_driver::{Controller, Options};
use nvme_spec::identify::namespace::LbaFormat;
use nvme_spec::{Command, Status};
use vfio_user::server::{Session, serve};
use vfio_user::version::Limits;

pub use commands::{Engine, Held};
pub use device::ScriptedDevice;

/// What becomes of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// It is carried out.
    Serve,
    /// It ends with this status.
    Status(Status),
    /// It never completes.
    Swallow,
    /// It completes when it is aborted.
    UntilAborted,
    /// It never completes, and the controller reports a fatal error (CSTS.CFS).
    Fail,
    /// It completes after this long.
    Late(Duration),
    /// Nothing is done until somebody says so ([`Engine::serve_held`]).
    Hold,
    /// A command that was never sent is completed in its place.
    WrongCid,
    /// A queue that does not exist completes it.
    WrongSqid,
    /// The connection ends.
    Die,
}

/// How the controller is and what it does.
pub struct Script {
    pub mapped_doorbells: bool,
    pub doorbell_buffer: bool,
    pub mqes_z: u16,
    /// CAP.MPSMIN and CAP.MPSMAX.
    pub mps: u8,
    pub queues: u16,
    /// CAP.TO.
    pub to: u8,
    /// CRTO.CRWMT; 0: there is no CRTO.
    pub crwmt: u16,
    /// From CC.EN = 1 to CSTS.RDY.
    pub ready_after: Duration,
    /// Who connects finds CC.EN = 1, and CSTS.RDY still to come.
    pub coming_up: bool,
    /// RTD3E, in microseconds, and how long a shutdown takes.
    pub rtd3e: u32,
    pub shut_after: Duration,
    pub mdts: u8,
    pub noiob: u16,
    pub sgl: bool,
    /// CRDT1.
    pub crdt1: u16,
    pub blocks: u64,
    /// The namespace's only format.
    pub format: LbaFormat,
    pub write_protected: bool,
    /// CSTS.RDY never comes.
    pub never_ready: bool,
    /// CC.EN = 0 is ignored from the second time on.
    pub never_disabled: bool,
    pub io: Box<dyn FnMut(&Command) -> Act + Send>,
    pub admin: Box<dyn FnMut(&Command) -> Act + Send>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            mapped_doorbells: true,
            doorbell_buffer: false,
            mqes_z: 1023,
            mps: 0,
            queues: 8,
            to: 60,
            crwmt: 0,
            ready_after: Duration::ZERO,
            coming_up: false,
            rtd3e: 0,
            shut_after: Duration::ZERO,
            mdts: 5,
            noiob: 0,
            sgl: false,
            crdt1: 0,
            blocks: 4096,
            format: LbaFormat::new().with_lbads(9),
            write_protected: false,
            never_ready: false,
            never_disabled: false,
            io: Box::new(|_| Act::Serve),
            admin: Box::new(|_| Act::Serve),
        }
    }
}

/// Options of a driver that takes no machine that stalls for a controller that failed.
pub fn patient() -> Options {
    let bound = Duration::from_secs(25);
    Options { connect_timeout: bound, admin_timeout: bound, ..Options::default() }
}

/// A running controller.
pub struct Scripted {
    pub engine: Arc<Mutex<Engine>>,
    directory: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    socket_thread: Option<JoinHandle<()>>,
    engine_thread: Option<JoinHandle<()>>,
}

impl Scripted {
    pub fn start(script: Script) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("cntrl")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let page = Arc::new(DoorbellPage::create().unwrap());
        let engine = Arc::new(Mutex::new(Engine::new(script, Arc::clone(&page))));
        let socket_thread = {
            let (engine, stop) = (Arc::clone(&engine), Arc::clone(&stop));
            std::thread::spawn(move || serve_socket(&listener, &engine, &page, &stop))
        };
        let engine_thread = {
            let (engine, stop) = (Arc::clone(&engine), Arc::clone(&stop));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Acquire) {
                    if engine.lock().unwrap().work() == 0 {
                        std::thread::sleep(Duration::from_micros(20));
                    }
                    if engine.lock().unwrap().died {
                        stop.store(true, Ordering::Release);
                    }
                }
            })
        };
        Self {
            engine,
            directory,
            stop,
            socket_thread: Some(socket_thread),
            engine_thread: Some(engine_thread),
        }
    }

    pub fn address(&self) -> String {
        format!("vfio-user:{}", self.endpoint().display())
    }

    /// The directory that its socket is in.
    pub fn endpoint(&self) -> &Path {
        self.directory.path()
    }

    pub fn connect(&self) -> Controller {
        self.connect_with(&patient())
    }

    pub fn connect_with(&self, options: &Options) -> Controller {
        Controller::connect_with(&self.address(), options).unwrap()
    }

    /// Ends the connection and both threads, as a killed process does.
    pub fn kill(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in [self.socket_thread.take(), self.engine_thread.take()].into_iter().flatten() {
            let ended = thread.join();
            // A test that fails says why itself.
            assert!(ended.is_ok() || std::thread::panicking(), "the controller failed");
        }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Serves one client after the other until told to stop.
fn serve_socket(
    listener: &UnixListener,
    engine: &Arc<Mutex<Engine>>,
    page: &DoorbellPage,
    stop: &AtomicBool,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stopped = async || {
        while !stop.load(Ordering::Acquire) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    runtime.block_on(async {
        while !stop.load(Ordering::Acquire) {
            let Ok((stream, _)) = listener.accept() else {
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            };
            stream.set_nonblocking(true).unwrap();
            let stream = tokio::net::UnixStream::from_std(stream).unwrap();
            let (_complete, mut completions) = tokio::sync::mpsc::channel(1);
            let mapped = {
                // Nothing is left of the client before.
                let mut engine = engine.lock().unwrap();
                engine.disable();
                engine.mappings.clear();
                if engine.script.coming_up {
                    engine.come_up();
                }
                engine.script.mapped_doorbells
            };
            let mut session = Session::new(device::description(page, mapped), Limits::default());
            let mut device = ScriptedDevice::new(Arc::clone(engine));
            tokio::select! {
                _ = serve(stream, &mut session, &mut device, &mut completions) => {}
                () = stopped() => {}
            }
        }
    });
}

/// Fails the test if `act` takes longer than `limit`.
pub fn within<T>(limit: Duration, act: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = act();
    assert!(started.elapsed() < limit, "took {:?}, at most {limit:?}", started.elapsed());
    result
}
