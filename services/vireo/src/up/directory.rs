//! The runtime directory as `vireo up` sees it: one keeper at a time, and who runs, so that a successor can adopt.

use super::UpError;
use nix::unistd::Pid;
use service::config::{Config, Kind};
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Names in the runtime directory.
const LOCK: &str = "up.lock";
const RUNNING: &str = "up.running";
const NOTIFY: &str = "notify.sock";
const EFFECTIVE: &str = "effective.toml";

/// The runtime directory, held by this process alone.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    _lock: File,
}

/// A process that an earlier keeper started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// What it is.
    pub kind: Kind,
    /// Which one.
    pub name: String,
    /// Its process id.
    pub pid: i32,
    /// When it started, in clock ticks since boot: tells it from a later process of the same number.
    pub started: u64,
}

impl Directory {
    /// Makes the runtime and state directories where they are missing (mode 0750) and takes the lock.
    ///
    /// # Errors
    /// [`UpError::Kept`] if another `vireo up` has it.
    pub fn take(config: &Config) -> Result<Self, UpError> {
        for directory in [&config.runtime_dir, &config.state_dir] {
            let made = DirBuilder::new().recursive(true).mode(0o750).create(directory);
            made.map_err(|source| UpError::Directory { path: directory.clone(), source })?;
        }
        let path = config.runtime_dir.clone();
        let failed = |source| UpError::Directory { path: path.join(LOCK), source };
        let mut options = OpenOptions::new();
        let mut lock = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o640)
            .open(path.join(LOCK))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                lock.read_to_string(&mut pid).ok();
                let pid = pid.trim().to_owned();
                return Err(UpError::Kept { directory: path, pid });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(failed)?;
        Ok(Self { path, _lock: lock })
    }

    /// Where services notify their keeper.
    pub fn notify_socket(&self) -> PathBuf {
        self.path.join(NOTIFY)
    }

    /// Writes the checked configuration for services to read, so that one that starts again while the person's file is
    /// being edited finds what was checked.
    pub fn write_effective(&self, config: &Config) -> Result<PathBuf, UpError> {
        let path = self.path.join(EFFECTIVE);
        service::state::write(&path, config.to_toml().as_bytes())
            .map_err(|source| UpError::Directory { path: path.clone(), source })?;
        Ok(path)
    }

    /// Who an earlier keeper left running, if they still are.
    pub fn left_running(&self) -> Vec<Running> {
        let text = std::fs::read_to_string(self.path.join(RUNNING)).unwrap_or_default();
        let running = text.lines().filter_map(parse);
        running.filter(|r| start_time(r.pid) == Some(r.started)).collect()
    }

    /// Writes down who runs.
    pub fn write_running(&self, running: &[Running]) {
        let lines: String = running
            .iter()
            .map(|r| format!("{} {} {} {}\n", r.kind, r.name, r.pid, r.started))
            .collect();
        // A full disk costs a successor its adoption, not us our services.
        if let Err(error) = service::state::write(&self.path.join(RUNNING), lines.as_bytes()) {
            super::say(&format!("cannot write {RUNNING}: {error}"));
        }
    }

    /// Takes away what is of no use after everything has stopped.
    pub fn clear(&self) {
        for name in [RUNNING, EFFECTIVE] {
            std::fs::remove_file(self.path.join(name)).ok();
        }
    }
}

impl Running {
    /// A process that runs now; `None` if it is gone.
    pub fn now(kind: Kind, name: &str, pid: Pid) -> Option<Self> {
        let started = start_time(pid.as_raw())?;
        Some(Self { kind, name: name.to_owned(), pid: pid.as_raw(), started })
    }
}

fn parse(line: &str) -> Option<Running> {
    let mut words = line.split(' ');
    let kind = words.next()?;
    let kind = [Kind::Backend, Kind::Worker, Kind::Frontend, Kind::Manager]
        .into_iter()
        .find(|known| known.as_str() == kind)?;
    let name = words.next()?.to_owned();
    Some(Running {
        kind,
        name,
        pid: words.next()?.parse().ok()?,
        started: words.next()?.parse().ok()?,
    })
}

/// Field 22 of /proc/<pid>/stat (proc_pid_stat(5)); `None` for a process that is gone or only waits to be reaped.
fn start_time(pid: i32) -> Option<u64> {
    let stat =
        std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The command, field 2, may hold anything, also parentheses.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    if state == "Z" || state == "X" { None } else { fields.nth(18)?.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn config(directory: &Path) -> Config {
        let text = format!(
            "runtime_dir = \"{0}/run\"\nstate_dir = \"{0}/state\"\n[[worker]]\nname = \"w\"\n\
             [[backend]]\nname = \"b\"\n[[frontend]]\nname = \"f\"\n",
            directory.display()
        );
        Config::parse(&text, []).unwrap()
    }

    #[test]
    fn one_keeper_at_a_time() {
        use std::os::unix::fs::PermissionsExt;
        let temporary = tempfile::tempdir().unwrap();
        let config = config(temporary.path());
        let first = Directory::take(&config).unwrap();
        let mode = std::fs::metadata(&config.runtime_dir).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o750);
        match Directory::take(&config) {
            Err(UpError::Kept { pid, .. }) => assert_eq!(pid, std::process::id().to_string()),
            other => panic!("{other:?}"),
        }
        drop(first);
        // A process that another test is just starting has a copy of the lock until its program is executed.
        let until = Instant::now() + Duration::from_secs(60);
        while let Err(error) = Directory::take(&config) {
            assert!(Instant::now() < until, "{error}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn only_the_very_process_counts_as_left_running() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::take(&config(temporary.path())).unwrap();
        let us = Running::now(Kind::Worker, "w", Pid::this()).unwrap();
        let other = Running { started: us.started + 1, name: "x".into(), ..us.clone() };
        let dead = Running { pid: i32::MAX, name: "y".into(), ..us.clone() };
        directory.write_running(&[us.clone(), other, dead]);
        assert_eq!(directory.left_running(), [us]);
        std::fs::write(directory.path.join(RUNNING), "worker\nnothing x y z\n\n").unwrap();
        assert!(directory.left_running().is_empty());
    }
}
