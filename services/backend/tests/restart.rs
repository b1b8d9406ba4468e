//! The process itself under a keeper: killed and started again, it has its memory devices' data.

use ipc::device_memory::DeviceMemory;
use ipc::event::EventFd;
use ipc::fd_store::{Kept, Launched, NotifySocket, StoreRequest, launch, signal};
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use service::control::{Client, Session};
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vireo_proto::handoff::{
    ApplyBdevs, Bdev, ChannelKind, MallocDriver, OpenChannel, bdev as pb, reply, request,
};

const SIZE: u64 = 4 << 20;

fn configuration(directory: &Path) -> String {
    let at = directory.display();
    format!(
        r#"
runtime_dir = "{at}"
state_dir = "{at}"
[[worker]]
name = "w0"
[[backend]]
name = "b0"
[[frontend]]
name = "f0"
[[bdev]]
name = "mem0"
driver = "malloc"
size = "4MiB"
[[subsystem]]
name = "s0"
serial = "S"
[[subsystem.namespace]]
nsid = 1
bdev = "mem0"
[[endpoint]]
name = "vm0"
subsystem = "s0"
"#
    )
}

/// A keeper in a thread of its own.
struct Keeper {
    kept: Arc<Mutex<Kept>>,
    stop: Arc<AtomicBool>,
}

impl Keeper {
    fn start(path: &Path) -> Self {
        let socket = NotifySocket::bind(path).unwrap();
        let kept = Arc::new(Mutex::new(Kept::new(16)));
        let stop = Arc::new(AtomicBool::new(false));
        let (ours, stopped) = (kept.clone(), stop.clone());
        std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match socket.receive().unwrap() {
                    Some(received) => {
                        ours.lock().unwrap().apply(&received.notification.store, received.fds);
                    }
                    None => std::thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        Self { kept, stop }
    }

    fn launch(&self, directory: &Path) -> Launched {
        let program = Path::new(env!("CARGO_BIN_EXE_vireo-backend"));
        let (file, notify) = (directory.join("vireo.toml"), directory.join("notify"));
        let arguments =
            [OsStr::new("--config"), file.as_os_str(), OsStr::new("--name"), OsStr::new("b0")];
        let variables = [("NOTIFY_SOCKET", notify.as_os_str())];
        launch(program, &arguments, &variables, self.kept.lock().unwrap().entries()).unwrap()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

async fn apply(session: &Session, names: &[&str]) {
    let bdev = |name: &&str| Bdev {
        name: (*name).into(),
        size_bytes: SIZE,
        driver: Some(pb::Driver::Malloc(MallocDriver {})),
        ..Bdev::default()
    };
    let bdevs = names.iter().map(bdev).collect();
    let answer = session.call(request::Body::ApplyBdevs(ApplyBdevs { bdevs }), &[]).await.unwrap();
    let reply::Body::ApplyResult(result) = answer.body else { panic!("{:?}", answer.body) };
    assert_eq!(result.failures, []);
}

async fn memory(session: &Session, bdev: &str) -> DeviceMemory {
    let open = OpenChannel { controller_id: vec![0; 16], bdev: bdev.into(), force_ring: false };
    let event = EventFd::create().unwrap();
    let answer = session.call(request::Body::OpenChannel(open), &[event.as_fd()]).await.unwrap();
    let reply::Body::ChannelGrant(grant) = answer.body else { panic!("{:?}", answer.body) };
    assert_eq!(grant.kind(), ChannelKind::LeaseMalloc);
    DeviceMemory::open(answer.fds.into_iter().next().unwrap()).unwrap()
}

#[tokio::test]
async fn what_is_kept_of_a_drive_that_is_gone_is_given_up_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    std::fs::write(at.join("vireo.toml"), configuration(at)).unwrap();
    let keeper = Keeper::start(&at.join("notify"));
    // A set of a function that does not exist, and parts of another; one comes with a lease.
    let names = ["nvtable.fffffffffff8", "nvspace.fffffffffff8", "nvgroup.fffffffffff8"];
    let parts = ["nvdrive.fffffffffff8", "nvgroup.fffffffffff0", "nvlease.fffffffffff80002"];
    for name in names.into_iter().chain(parts).chain(["other.7"]) {
        let request = StoreRequest::Keep { name: name.to_owned(), poll: false };
        // Each an open file of its own.
        let fd = std::fs::File::open("/dev/null").unwrap().into();
        keeper.kept.lock().unwrap().apply(&request, vec![fd]);
    }
    let backend = keeper.launch(at);
    let client = Client::new(at.join("backend-b0.sock"), "test");
    let session = client.session(Duration::from_secs(60)).await.unwrap();
    apply(&session, &["mem0"]).await;
    let kept: Vec<String> =
        keeper.kept.lock().unwrap().entries().map(|(name, _)| name.to_owned()).collect();
    let mut kinds: Vec<&str> = kept.iter().filter_map(|name| name.split('.').next()).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["mem", "other"]);
    signal(backend.pidfd.as_fd(), Signal::SIGKILL).unwrap();
    waitpid(backend.pid, None).unwrap();
}

#[tokio::test]
async fn a_killed_backend_comes_back_with_its_data() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    std::fs::write(at.join("vireo.toml"), configuration(at)).unwrap();
    let keeper = Keeper::start(&at.join("notify"));
    let first = keeper.launch(at);
    let client = Client::new(at.join("backend-b0.sock"), "test");
    let session = client.session(Duration::from_secs(60)).await.unwrap();
    apply(&session, &["mem0", "mem1"]).await;
    for (name, fill) in [("mem0", 1), ("mem1", 2)] {
        memory(&session, name).await.slice(4096, 4096).unwrap().fill(fill);
    }
    assert_eq!(keeper.kept.lock().unwrap().len(), 2);
    signal(first.pidfd.as_fd(), Signal::SIGKILL).unwrap();
    waitpid(first.pid, None).unwrap();
    session.closed().await;

    let second = keeper.launch(at);
    let session = client.session(Duration::from_secs(60)).await.unwrap();
    apply(&session, &["mem0", "mem1"]).await;
    for (name, fill) in [("mem0", [1; 4096]), ("mem1", [2; 4096])] {
        assert!(memory(&session, name).await.slice(4096, 4096).unwrap().compare(&fill), "{name}");
    }
    assert_eq!(keeper.kept.lock().unwrap().len(), 2, "kept once each");

    // A device that is removed is forgotten, and a new one of its name starts empty.
    apply(&session, &["mem0"]).await;
    apply(&session, &["mem0", "mem1"]).await;
    assert!(memory(&session, "mem1").await.slice(4096, 4096).unwrap().compare(&[0; 4096]));
    signal(second.pidfd.as_fd(), Signal::SIGTERM).unwrap();
    let status = waitpid(second.pid, None).unwrap();
    assert_eq!(status, nix::sys::wait::WaitStatus::Exited(second.pid, 0));
    assert!(!at.join("backend-b0.sock").exists(), "the socket stays");
}
