use super::*;
use crate::event::EventFd;
use nix::sys::wait::{WaitStatus, waitpid};
use std::path::{Path, PathBuf};

const SOON: Duration = Duration::from_secs(60);

fn socket_path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("vireo-fd-store-{name}-{}", std::process::id()))
}

/// A service's side that talks to `keeper`, without the environment.
fn store(keeper: &NotifySocket) -> FdStore {
    FdStore { address: Some(UnixAddr::new(keeper.path()).unwrap()), names: BTreeSet::new() }
}

fn take_all(keeper: &NotifySocket, kept: &mut Kept) -> Vec<Outcome> {
    std::iter::from_fn(|| keeper.receive().unwrap())
        .map(|received| {
            assert_eq!(received.pid, std::process::id() as i32);
            kept.apply(&received.notification.store, received.fds)
        })
        .collect()
}

fn names(kept: &Kept) -> Vec<&str> {
    kept.entries().map(|(name, _)| name).collect()
}

#[test]
fn descriptors_are_kept_replaced_and_forgotten() {
    let keeper = NotifySocket::bind(&socket_path("keep")).unwrap();
    let (mut service, mut kept) = (store(&keeper), Kept::new(10));
    let [a, b, c] = std::array::from_fn(|_| EventFd::create().unwrap());
    let name = |id| FdName::new("irq", id).unwrap();
    service.put(&name(1), a.as_fd(), false).unwrap();
    service.put(&name(2), b.as_fd(), false).unwrap();
    take_all(&keeper, &mut kept);
    assert_eq!(
        names(&kept),
        ["irq.1", "irq.2"],
        "two eventfds are two, though they share an inode"
    );
    service.put(&name(1), c.as_fd(), false).unwrap();
    take_all(&keeper, &mut kept);
    assert_eq!(names(&kept), ["irq.2", "irq.1"]);
    let (_, fd) = kept.entries().nth(1).unwrap();
    EventFd::from_client(fd.try_clone_to_owned().unwrap()).unwrap().signal().unwrap();
    assert_eq!((a.drain().unwrap(), c.drain().unwrap()), (0, 1));
    service.remove(&name(2)).unwrap();
    take_all(&keeper, &mut kept);
    assert_eq!(names(&kept), ["irq.1"]);
    // The same open file by another descriptor: kept once.
    service.put(&name(3), c.try_clone().unwrap().as_fd(), false).unwrap();
    take_all(&keeper, &mut kept);
    assert_eq!(names(&kept), ["irq.1"]);
}

#[test]
fn a_full_store_drops_and_says_so() {
    let mut kept = Kept::new(1);
    let keep = StoreRequest::Keep { name: "x.1".into(), poll: false };
    let fds = || (0..3).map(|_| EventFd::create().unwrap().into_fd()).collect();
    assert_eq!(kept.apply(&keep, fds()), Outcome::Full(2));
    assert_eq!(kept.len(), 1);
}

#[test]
fn what_hangs_up_is_dropped_unless_told_otherwise() {
    let mut kept = Kept::new(10);
    let (a, peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let (b, _alive) = std::os::unix::net::UnixStream::pair().unwrap();
    let keep = |name: &str, poll| StoreRequest::Keep { name: name.into(), poll };
    kept.apply(&keep("client.1", true), vec![a.try_clone().unwrap().into()]);
    kept.apply(&keep("client.2", true), vec![b.into()]);
    let (c, other) = std::os::unix::net::UnixStream::pair().unwrap();
    kept.apply(&keep("client.3", false), vec![c.into()]);
    drop((peer, other));
    let start = Instant::now();
    // A process that another test is just starting has copies of all descriptors until its program is executed.
    while names(&kept) != ["client.2", "client.3"] {
        assert!(start.elapsed() < SOON, "{:?}", names(&kept));
        kept.prune();
    }
    kept.prune();
    assert_eq!(names(&kept), ["client.2", "client.3"]);
}

#[test]
fn a_barrier_waits_for_everything_before_it() {
    let keeper = NotifySocket::bind(&socket_path("barrier")).unwrap();
    let mut service = store(&keeper);
    let short = Duration::from_millis(50);
    assert!(matches!(service.barrier(short), Err(FdStoreError::Silent { .. })));
    let event = EventFd::create().unwrap();
    service.put(&FdName::new("irq", 7).unwrap(), event.as_fd(), false).unwrap();
    let keeping = std::thread::spawn(move || {
        let mut kept = Kept::new(10);
        let start = Instant::now();
        while kept.is_empty() || !take_all(&keeper, &mut kept).is_empty() {
            take_all(&keeper, &mut kept);
            assert!(start.elapsed() < SOON);
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(50));
        take_all(&keeper, &mut kept);
        kept.len()
    });
    service.barrier(SOON).unwrap();
    assert_eq!(keeping.join().unwrap(), 1);
}

#[test]
fn names_are_short_and_plain() {
    let name = FdName::new("ctrl", 0xABC).unwrap();
    assert_eq!((name.kind(), name.id(), name.to_string().as_str()), ("ctrl", 0xABC, "ctrl.abc"));
    for bad in ["", "ctrl", ".1", "ctrl.", "ctrl.xyz", "a:b.1", "seventeen-letters.12345678"] {
        assert!(FdName::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_service_gets_its_descriptors_with_names_and_its_own_pid() {
    let (read_end, write_end) = nix::unistd::pipe().unwrap();
    let event = EventFd::create().unwrap();
    let entries = [("irq.1", event.as_fd()), ("out.2", write_end.as_fd())];
    let script = r#"
        test "$LISTEN_PID" = $$ && test -z "$WATCHDOG_USEC" || exit 7
        echo "$LISTEN_FDS $LISTEN_FDNAMES $MARK" >&4
        readlink /proc/self/fd/3 >&4
        read line || echo "no input" >&4"#;
    let arguments = [OsStr::new("-c"), OsStr::new(script)];
    let mark = [("MARK", OsStr::new("here"))];
    let child = launch(Path::new("/bin/sh"), &arguments, &mark, entries.into_iter()).unwrap();
    drop(write_end);
    wait(child.pidfd.as_fd(), PollFlags::POLLIN, Instant::now() + SOON, SOON).unwrap();
    assert_eq!(waitpid(child.pid, None).unwrap(), WaitStatus::Exited(child.pid, 0));
    let mut buffer = [0; 256];
    let length = nix::unistd::read(&read_end, &mut buffer).unwrap();
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    assert_eq!(text, "2 irq.1:out.2 here\nanon_inode:[eventfd]\nno input\n");
}

#[test]
fn a_program_that_is_not_there_shows_as_an_exit() {
    let none = std::iter::empty();
    let child = launch(Path::new("/nonexistent/vireo"), &[], &[], none).unwrap();
    let status = waitpid(child.pid, None).unwrap();
    assert_eq!(status, WaitStatus::Exited(child.pid, EXIT_EXEC));
    assert!(launch(Path::new("/bin/\0"), &[], &[], std::iter::empty()).is_err());
}

#[test]
fn a_signal_goes_to_the_process_of_the_pidfd() {
    let arguments = [OsStr::new("60")];
    let child = launch(Path::new("/bin/sleep"), &arguments, &[], std::iter::empty()).unwrap();
    let watched = watch(child.pid).unwrap();
    signal(watched.as_fd(), nix::sys::signal::Signal::SIGKILL).unwrap();
    let status = waitpid(child.pid, None).unwrap();
    assert!(matches!(status, WaitStatus::Signaled(_, nix::sys::signal::Signal::SIGKILL, _)));
    assert!(signal(watched.as_fd(), nix::sys::signal::Signal::SIGKILL).is_err());
}
