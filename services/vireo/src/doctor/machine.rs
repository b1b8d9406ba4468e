//! The machine as it is looked at: its files under a root, and the few things that only a system call tells. Tests put
//! another root and other calls in its place.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::collections::BTreeSet;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Most bytes of a file of /proc or /sys that are read, or of a program's output.
const MAX_TEXT: u64 = 1 << 20;
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
}

/// A user, as files' permissions see him.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// His name.
    pub name: String,
    /// His number.
    pub uid: u32,
    /// His groups.
    pub groups: Vec<u32>,
}

impl Who {
    /// This process's user.
    pub fn own() -> Self {
        let uid = nix::unistd::geteuid();
        let found = nix::unistd::User::from_uid(uid).ok().flatten();
        let mut groups: Vec<u32> =
            nix::unistd::getgroups().unwrap_or_default().iter().map(|gid| gid.as_raw()).collect();
        groups.push(nix::unistd::getegid().as_raw());
        let name = found.map_or_else(|| uid.to_string(), |user| user.name);
        Self { name, uid: uid.as_raw(), groups }
    }

    /// A user by his name, if there is one.
    pub fn named(name: &str) -> Option<Self> {
        let user = nix::unistd::User::from_name(name).ok().flatten()?;
        let c_name = std::ffi::CString::new(name).ok()?;
        let groups = nix::unistd::getgrouplist(&c_name, user.gid).unwrap_or_default();
        let groups = groups.iter().map(|gid| gid.as_raw()).chain([user.gid.as_raw()]).collect();
        Some(Self { name: name.to_owned(), uid: user.uid.as_raw(), groups })
    }

    /// Whether the permission bits let him do all of `bits` (4 read, 2 write, 1 execute). Access lists are not looked at.
    pub fn may(&self, file: &Metadata, bits: u32) -> bool {
        let mode = file.mode();
        let granted = if self.uid == 0 {
            7
        } else if file.uid() == self.uid {
            mode >> 6
        } else if self.groups.contains(&file.gid()) {
            mode >> 3
        } else {
            mode
        };
        granted & bits == bits
    }
}

impl Machine {
    /// The one that this runs on.
    pub fn this() -> Self {
        let calls = Calls { memfd, io_uring, run };
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
    fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).map(|_| ())
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
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn lists_of_cores_are_read_whatever_is_in_them() {
        assert_eq!(cores("0-2,8"), BTreeSet::from([0, 1, 2, 8]));
        assert_eq!(cores(""), BTreeSet::new());
        assert_eq!(cores("x,3-1,5"), BTreeSet::from([5]));
        assert!(cores("0-4294967295").len() < 10_000);
    }

    #[test]
    fn permissions_are_those_of_the_user_in_question() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("f");
        fs::write(&file, "").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let found = fs::metadata(&file).unwrap();
        let who = |uid, group| Who { name: "x".into(), uid, groups: vec![group] };
        let (stranger, no_group) = (found.uid() + 1, found.gid() + 1);
        assert!(who(0, no_group).may(&found, 6));
        assert!(who(stranger, found.gid()).may(&found, 4));
        assert!(!who(stranger, found.gid()).may(&found, 2));
        assert!(!who(stranger, no_group).may(&found, 4));
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
