//! The machine as it is looked at: its files under a root, and the few things that only a system call tells. Tests put
//! another root and other calls in its place.

use super::access::{AccessList, SEARCH, Who};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statvfs::{FsFlags, statvfs};
use std::collections::BTreeSet;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Most bytes of a file of /proc or /sys that are read, or of a program's output.
const MAX_TEXT: u64 = 1 << 20;
/// The extended attribute that holds a file's access list.
const ACCESS_LIST: &str = "system.posix_acl_access";
/// Most bytes of an access list that is understood: a longer one is as good as none.
const MAX_LIST: usize = 4096;
/// Longest that a program may take.
const PROGRAM: Duration = Duration::from_secs(3);

/// Where to look.
#[derive(Clone, Debug)]
pub struct Machine {
    root: PathBuf,
    /// What only calls tell.
    pub calls: Calls,
    /// As whom the services run.
    pub who: Who,
}

/// What only calls tell.
#[derive(Clone, Copy, Debug)]
pub struct Calls {
    /// Makes memory that can be sealed, as every segment is.
    pub memfd: fn() -> Result<(), Errno>,
    /// Sets a ring up, as the file backend does.
    pub io_uring: fn() -> Result<(), Errno>,
    /// Runs a program that ends by itself; its output.
    pub run: fn(&Path, &[&str]) -> Option<String>,
    /// The file system that a file or directory lies on.
    pub space: fn(&Path) -> Option<Space>,
    /// A file's access list beside its permission bits, as the kernel has it.
    pub access_list: fn(&Path) -> Option<Vec<u8>>,
}

/// A file system, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes in all.
    pub size: u64,
    /// Bytes that users without privileges can have.
    pub free: u64,
    /// It has no room for a further file.
    pub no_files: bool,
    /// It is mounted read-only.
    pub read_only: bool,
}

impl Machine {
    /// The one that this runs on.
    pub fn this() -> Self {
        let calls = Calls { memfd, io_uring, run, space, access_list };
        Self { root: PathBuf::from("/"), calls, who: Who::own() }
    }

    /// Another one, whose files lie under `root`.
    #[cfg(test)]
    pub fn at(root: &Path, calls: Calls, who: Who) -> Self {
        Self { root: root.to_owned(), calls, who }
    }

    /// Where an absolute path of the machine is.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A text, without white space around it; `None` if it cannot be read.
    pub fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let mut bytes = Vec::new();
        let file = File::open(self.path(path)).ok()?;
        // Nothing that blocks: a pipe in its place is not waited for.
        if !file.metadata().ok()?.is_file() {
            return None;
        }
        file.take(MAX_TEXT).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// A number.
    pub fn number(&self, path: impl AsRef<Path>) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// The value of a line `key: value` or `key value`.
    pub fn field(&self, path: impl AsRef<Path>, key: &str) -> Option<String> {
        let text = self.text(path)?;
        let mut values = text.lines().filter_map(|line| line.strip_prefix(key));
        values.next().map(|value| value.trim_start_matches(':').trim().to_owned())
    }

    /// The last part of what a link points to.
    pub fn link(&self, path: impl AsRef<Path>) -> Option<String> {
        let target = fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }

    /// What is in a directory, in order.
    pub fn list(&self, path: impl AsRef<Path>) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// What the file system says of a file.
    pub fn metadata(&self, path: impl AsRef<Path>) -> Option<Metadata> {
        fs::metadata(self.path(path)).ok()
    }

    /// Whether the user that the services run as may do all of `bits` with a file of which this was found.
    pub fn may(&self, path: impl AsRef<Path>, found: &Metadata, bits: u32) -> bool {
        let list = (self.calls.access_list)(&self.path(path));
        self.who.may(found, list.as_deref().and_then(AccessList::parse).as_ref(), bits)
    }

    /// The first directory on the way to `path` that this user may not go through.
    pub fn closed(&self, path: impl AsRef<Path>) -> Option<PathBuf> {
        let mut above: Vec<&Path> = path.as_ref().ancestors().skip(1).collect();
        above.reverse();
        let is_closed = |directory: &&Path| {
            let found = self.metadata(directory);
            found.is_some_and(|found| !self.may(directory, &found, SEARCH))
        };
        above
            .into_iter()
            .filter(|above| above.parent().is_some())
            .find(is_closed)
            .map(Path::to_owned)
    }

    /// The file system on which a file or directory is, or is to be made.
    pub fn space(&self, path: impl AsRef<Path>) -> Option<Space> {
        let there = path.as_ref().ancestors().find(|path| self.is_there(path))?;
        (self.calls.space)(&self.path(there))
    }

    /// True if it is there.
    pub fn is_there(&self, path: impl AsRef<Path>) -> bool {
        self.metadata(path).is_some()
    }

    /// Cores, as the kernel lists them (`0-3,8`).
    pub fn cores(&self, path: impl AsRef<Path>) -> Option<BTreeSet<u32>> {
        Some(cores(&self.text(path)?))
    }

    /// A program, where the shell would find it, or in one of `others`.
    pub fn program(&self, name: &str, others: &[&str]) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places = std::env::split_paths(&path).map(|directory| directory.join(name));
        let is_program = |path: &PathBuf| {
            self.metadata(path).is_some_and(|found| found.is_file() && found.mode() & 0o111 != 0)
        };
        let mut all = places.chain(others.iter().map(PathBuf::from));
        all.find(|path| path.is_absolute() && is_program(path)).map(|path| self.path(path))
    }
}

/// The cores of a list like `0-3,8`; what is no number is left out.
pub fn cores(text: &str) -> BTreeSet<u32> {
    /// More than any machine has.
    const MAX: u32 = 8192;
    let mut cores = BTreeSet::new();
    for run in text.split(',') {
        let (first, last) = run.split_once('-').unwrap_or((run, run));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<u32>(), last.trim().parse::<u32>()) {
            cores.extend(first..=last.min(MAX));
        }
    }
    cores
}

fn memfd() -> Result<(), Errno> {
    let fd = memfd_create("vireo-doctor", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map(|_| ())
}

fn space(path: &Path) -> Option<Space> {
    let found = statvfs(path).ok()?;
    let unit = found.fragment_size();
    Some(Space {
        size: found.blocks().saturating_mul(unit),
        free: found.blocks_available().saturating_mul(unit),
        // Some file systems have no fixed number of files, and say 0 of 0.
        no_files: found.files() > 0 && found.files_available() == 0,
        read_only: found.flags().contains(FsFlags::ST_RDONLY),
    })
}

fn access_list(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = vec![0; MAX_LIST];
    let length = rustix::fs::getxattr(path, ACCESS_LIST, bytes.as_mut_slice()).ok()?;
    bytes.truncate(length);
    Some(bytes)
}

fn io_uring() -> Result<(), Errno> {
    match io_uring::IoUring::new(2) {
        Ok(_) => Ok(()),
        Err(error) => Err(Errno::from_raw(error.raw_os_error().unwrap_or(0))),
    }
}

/// Standard output of a program that ends well within [`PROGRAM`].
fn run(program: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().ok()?;
    let output = child.stdout.take()?;
    // What it prints is read beside, so that it cannot wait for us.
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        output.take(MAX_TEXT).read_to_end(&mut bytes).map(|_| bytes)
    });
    let started = Instant::now();
    let status = loop {
        match child.try_wait().ok()? {
            Some(status) => break status,
            None if started.elapsed() < PROGRAM => std::thread::sleep(Duration::from_millis(5)),
            None => {
                child.kill().ok();
                child.wait().ok();
                return None;
            }
        }
    };
    // A child of its own may hold the pipe open: that is not waited for.
    while !reader.is_finished() {
        if started.elapsed() >= PROGRAM {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let bytes = reader.join().ok()?.ok()?;
    status.success().then(|| String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_read_whatever_is_in_them() {
        assert_eq!(cores("0-2,8"), BTreeSet::from([0, 1, 2, 8]));
        assert_eq!(cores(""), BTreeSet::new());
        assert_eq!(cores("x,3-1,5"), BTreeSet::from([5]));
        assert!(cores("0-4294967295").len() < 10_000);
    }

    #[test]
    fn a_program_that_hangs_is_given_up() {
        let started = Instant::now();
        assert_eq!(run(Path::new("/bin/sleep"), &["600"]), None);
        assert!(started.elapsed() < Duration::from_secs(60));
        assert_eq!(run(Path::new("/bin/echo"), &["hello"]).as_deref(), Some("hello\n"));
        assert_eq!(run(Path::new("/nowhere"), &[]), None);
    }
}
