//! Starting a service with kept descriptors: LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID (sd_listen_fds(3)).
//!
//! LISTEN_PID is the child's own process id, which is known only after fork; std's `Command` cannot say it. So this
//! forks itself; everything that needs memory is made before, and the child makes system calls only.

use super::FdStoreError;
use nix::errno::Errno;
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// First descriptor that is passed (SD_LISTEN_FDS_START).
pub(super) const FIRST: RawFd = 3;
/// Room for a process id, and the zero after it.
const PID_ROOM: usize = 11;
/// Exit status of a child whose program could not be run, as systemd has it (EXIT_EXEC).
pub const EXIT_EXEC: i32 = 203;

/// A process that was started.
#[derive(Debug)]
pub struct Launched {
    /// Its process id; valid until it is reaped.
    pub pid: Pid,
    /// Readable once it is dead.
    pub pidfd: OwnedFd,
}

/// Starts `program` in a process group of its own (a terminal's Ctrl-C is the keeper's business), standard input from
/// /dev/null, with this process's environment, `variables` over it and the kept descriptors.
///
/// # Errors
/// No memory, descriptors or processes left, or a zero byte in a path. A program that cannot be run shows as a child
/// that exits with status [`EXIT_EXEC`].
pub fn launch<'f>(
    program: &Path,
    arguments: &[&OsStr],
    variables: &[(&str, &OsStr)],
    kept: impl Iterator<Item = (&'f str, BorrowedFd<'f>)>,
) -> Result<Launched, FdStoreError> {
    let system = |call| move |source| FdStoreError::System { call, source };
    let (names, fds): (Vec<&str>, Vec<BorrowedFd<'_>>) = kept.unzip();
    let words = std::iter::once(program.as_os_str()).chain(arguments.iter().copied());
    let mut words = words.map(terminated).collect::<Result<Vec<_>, _>>()?;
    let mut environment = environment(variables, &names)?;
    // Above every number that is used as a target, so that no dup2 overwrites a source of a later one.
    let floor = FIRST + fds.len() as RawFd;
    let moved = fds.iter().map(|fd| duplicate(*fd, floor)).collect::<Result<Vec<_>, _>>()?;
    let sources: Vec<RawFd> = moved.iter().map(AsRawFd::as_raw_fd).collect();
    let null =
        nix::fcntl::open("/dev/null", nix::fcntl::OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())
            .map_err(system("open /dev/null"))?;
    let argv = pointers(&mut words);
    let envp = pointers(&mut environment);
    let child = Child { argv: &argv, envp: &envp, sources: &sources, null: null.as_raw_fd() };
    // SAFETY: the child runs `Child::run`, which makes async-signal-safe calls only, on memory made before.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: we are the child of fork; argv and envp are null-terminated arrays of zero-terminated strings that live
        // in `words` and `environment`, and the last variable is LISTEN_PID with PID_ROOM bytes of value.
        unsafe { child.run() }
    }
    let pid = Errno::result(pid).map_err(system("fork"))?;
    // SAFETY: a plain system call. The child is not reaped before this returns, so the number is its own.
    let pidfd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
        .map_err(system("pidfd_open"))?;
    // SAFETY: the descriptor is new and nobody else's; closed on exec by definition.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd as RawFd) };
    Ok(Launched { pid: Pid::from_raw(pid), pidfd })
}

/// A pidfd of a process that is no child of ours, to wait for its death.
pub fn watch(pid: Pid) -> Result<OwnedFd, FdStoreError> {
    // SAFETY: a plain system call.
    let pidfd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })
        .map_err(|source| FdStoreError::System { call: "pidfd_open", source })?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd as RawFd) })
}

/// Sends a signal to the very process that the pidfd is of, whatever became of its number.
pub fn signal(pidfd: BorrowedFd<'_>, signal: nix::sys::signal::Signal) -> Result<(), FdStoreError> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a plain system call; without siginfo it is like kill.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal as libc::c_int,
            none,
            0,
        )
    };
    Errno::result(result)
        .map(drop)
        .map_err(|source| FdStoreError::System { call: "pidfd_send_signal", source })
}

struct Child<'a> {
    argv: &'a [*mut libc::c_char],
    envp: &'a [*mut libc::c_char],
    sources: &'a [RawFd],
    null: RawFd,
}

impl Child<'_> {
    /// What the child does.
    ///
    /// # Safety
    /// In a child of fork only. `argv` and `envp` are as execve wants them, the last string of `envp` has [`PID_ROOM`]
    /// writable bytes after its `=`.
    unsafe fn run(&self) -> ! {
        // SAFETY: system calls that are async-signal-safe, on live memory; the strings as the caller promises.
        unsafe {
            libc::setpgid(0, 0);
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            // dup2 gives a descriptor that stays open on exec.
            let mut failed = libc::dup2(self.null, 0) < 0;
            for (index, &source) in self.sources.iter().enumerate() {
                failed |= libc::dup2(source, FIRST + index as RawFd) < 0;
            }
            if !failed {
                if let Some(&variable) = self.envp.iter().rev().find(|string| !string.is_null()) {
                    write_pid(variable.add("LISTEN_PID=".len()), libc::getpid());
                }
                let argv = self.argv.as_ptr().cast::<*const libc::c_char>();
                libc::execve(*argv, argv, self.envp.as_ptr().cast());
            }
            libc::_exit(EXIT_EXEC)
        }
    }
}

/// Writes a process id in decimal and a zero.
///
/// # Safety
/// `at` has [`PID_ROOM`] writable bytes.
unsafe fn write_pid(at: *mut libc::c_char, pid: libc::pid_t) {
    let mut digits = [0; PID_ROOM];
    let (mut rest, mut count) = (pid.unsigned_abs(), 0);
    while count == 0 || rest > 0 {
        digits[count] = b'0' + (rest % 10) as u8;
        rest /= 10;
        count += 1;
    }
    for index in 0..=count {
        let digit = if index == count { 0 } else { digits[count - 1 - index] };
        // SAFETY: a 32-bit number has at most 10 digits, so index <= 10 < PID_ROOM.
        unsafe { at.add(index).write(digit as libc::c_char) };
    }
}

fn environment(variables: &[(&str, &OsStr)], names: &[&str]) -> Result<Vec<Vec<u8>>, FdStoreError> {
    let mut all: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
    // What this process got from its own keeper is not its children's.
    let own = [
        "LISTEN_FDS",
        "LISTEN_FDNAMES",
        "LISTEN_PID",
        "LISTEN_PIDFDID",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
        "NOTIFY_SOCKET",
    ];
    for name in own {
        all.remove(OsStr::new(name));
    }
    all.extend(variables.iter().map(|(name, value)| ((*name).into(), (*value).into())));
    if !names.is_empty() {
        all.insert("LISTEN_FDS".into(), names.len().to_string().into());
        all.insert("LISTEN_FDNAMES".into(), names.join(":").into());
    }
    let mut strings = Vec::with_capacity(all.len() + 1);
    for (mut name, value) in all {
        name.push("=");
        name.push(value);
        strings.push(terminated(&name)?);
    }
    // Without descriptors it means nothing, and does no harm.
    let mut pid = b"LISTEN_PID=".to_vec();
    pid.resize(pid.len() + PID_ROOM, 0);
    strings.push(pid);
    Ok(strings)
}

fn terminated(text: &OsStr) -> Result<Vec<u8>, FdStoreError> {
    let mut bytes = text.to_owned().into_vec();
    if text.as_bytes().contains(&0) {
        return Err(FdStoreError::System { call: "zero byte in argument", source: Errno::EINVAL });
    }
    bytes.push(0);
    Ok(bytes)
}

fn pointers(strings: &mut [Vec<u8>]) -> Vec<*mut libc::c_char> {
    let pointers = strings.iter_mut().map(|string| string.as_mut_ptr().cast());
    pointers.chain([std::ptr::null_mut()]).collect()
}

fn duplicate(fd: BorrowedFd<'_>, floor: RawFd) -> Result<OwnedFd, FdStoreError> {
    let raw = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(floor))
        .map_err(|source| FdStoreError::System { call: "dup", source })?;
    // SAFETY: fcntl has just made this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}
