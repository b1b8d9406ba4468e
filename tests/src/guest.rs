//! A Linux guest: `tests/guest/run.sh` as a child, its output kept, its lifetime bounded.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::log::Log;
use crate::wait::{PATIENCE, until, within};

/// Guests at a time, over all tests of the machine: emulation takes a core each.
const SLOTS: usize = 2;

/// How to boot a guest.
pub struct Guest {
    directory: TempDir,
    script: PathBuf,
    arguments: Vec<OsString>,
    files: Vec<PathBuf>,
    seconds: u64,
    control: bool,
}

/// A guest that runs.
pub struct RunningGuest {
    directory: TempDir,
    child: Child,
    log: Log,
    control: Option<Control>,
    _slot: File,
}

/// The line channel to the script in the guest (`tell` and `await` there).
struct Control {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Guest {
    /// A guest that runs this bash script, under `set -euo pipefail` and traced on failure.
    pub fn new(script: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("vireo-test.").tempdir().expect("tempdir");
        let path = directory.path().join("script.sh");
        let text = format!(
            "set -euo pipefail\ntrap 'echo \"line $LINENO failed: $BASH_COMMAND\" >&2' ERR\n{script}"
        );
        fs::write(&path, text).expect("write script");
        let (arguments, files) = (Vec::new(), Vec::new());
        Self { directory, script: path, arguments, files, seconds: 400, control: false }
    }

    /// A vfio-user drive served in this directory; the first is nvme0.
    pub fn drive(self, endpoint: impl AsRef<Path>) -> Self {
        self.option("--drive", endpoint.as_ref())
    }

    /// Virtual CPUs.
    pub fn cpus(self, cpus: u32) -> Self {
        self.option("--cpus", cpus.to_string())
    }

    /// Memory in MiB.
    pub fn memory(self, mebibytes: u32) -> Self {
        self.option("--memory", mebibytes.to_string())
    }

    /// More of the kernel's command line.
    pub fn kernel(self, arguments: &str) -> Self {
        self.option("--kernel", arguments)
    }

    /// An IOMMU before every drive.
    pub fn iommu(mut self) -> Self {
        self.arguments.push("--iommu".into());
        self
    }

    /// Its first process is systemd (`make guest-systemd`).
    pub fn systemd(mut self) -> Self {
        self.arguments.push("--systemd".into());
        self
    }

    /// A file of the host's, beside the script.
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.push(path.into());
        self
    }

    /// One more device of QEMU's own, with the file that it keeps its data in.
    pub fn emulated_drive(self, image: &Path) -> Self {
        let image = image.to_str().expect("temporary paths are UTF-8");
        let backing = format!("file={image},format=raw,if=none,id=emulated,discard=unmap");
        let arguments = ["-drive", &backing, "-device", "nvme,serial=EMULATED,drive=emulated"];
        arguments.into_iter().fold(self, |guest, argument| guest.option("--qemu", argument))
    }

    /// More arguments for QEMU itself.
    pub fn qemu(self, arguments: &[&str]) -> Self {
        arguments.iter().fold(self, |guest, argument| guest.option("--qemu", argument))
    }

    /// Time limit in seconds; 400 unless said.
    pub fn seconds(mut self, seconds: u64) -> Self {
        self.seconds = seconds;
        self
    }

    /// With the line channel, for [`RunningGuest::await_line`] and [`RunningGuest::tell`].
    pub fn controlled(mut self) -> Self {
        self.control = true;
        self
    }

    /// Boots it, once fewer than two others run on this machine.
    #[track_caller]
    pub fn start(self) -> RunningGuest {
        let slot = take_slot();
        let directory = self.directory;
        let pid_file = directory.path().join("pid");
        let mut command = Command::new("bash");
        command
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/guest/run.sh"))
            .args(&self.arguments)
            .arg("--time")
            .arg(self.seconds.to_string())
            .arg("--pid-file")
            .arg(&pid_file);
        let listener = self.control.then(|| {
            let path = directory.path().join("control");
            command.arg("--control").arg(&path);
            UnixListener::bind(path).expect("bind control socket")
        });
        command.arg(&self.script).args(&self.files);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("spawn run.sh");
        let log = Log::of(&mut child);
        let mut guest = RunningGuest { directory, child, log, control: None, _slot: slot };
        if let Some(listener) = listener {
            guest.control = Some(guest.accept(&listener));
        }
        guest
    }

    /// Boots it and waits for its end, which must be a success. Its output.
    #[track_caller]
    pub fn run(self) -> String {
        self.start().finish()
    }

    fn option(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.arguments.extend([name.into(), value.into()]);
        self
    }
}

impl RunningGuest {
    /// What it and `run.sh` printed so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// The next line that the script told.
    ///
    /// # Panics
    /// If none comes within the channel's bound, or the guest ended.
    #[track_caller]
    pub fn await_line(&mut self) -> String {
        let control = self.control.as_mut().expect("a controlled guest");
        let mut line = String::new();
        match control.lines.read_line(&mut line) {
            Ok(count) if count > 0 => line.trim_end().to_owned(),
            other => panic!("no line from the guest ({other:?}):\n{}", self.log()),
        }
    }

    /// Waits for this line and no other.
    #[track_caller]
    pub fn expect_line(&mut self, wanted: &str) {
        let line = self.await_line();
        assert_eq!(line, wanted, "the guest said:\n{}", self.log());
    }

    /// A line to the script.
    #[track_caller]
    pub fn tell(&mut self, line: &str) {
        let control = self.control.as_mut().expect("a controlled guest");
        let sent = writeln!(control.stream, "{line}");
        assert!(sent.is_ok(), "the guest is gone ({sent:?}):\n{}", self.log());
    }

    /// SIGKILL to QEMU: the machine is gone from one instruction to the next.
    #[track_caller]
    pub fn kill(mut self) {
        let pid_file = self.directory.path().join("pid");
        until("QEMU's process id", || {
            fs::read_to_string(&pid_file).is_ok_and(|text| text.ends_with('\n'))
        });
        let pid = fs::read_to_string(pid_file).expect("pid file");
        let pid: i32 = pid.trim().parse().expect("a process id");
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill the QEMU of our own run.sh");
        self.child.wait().expect("wait for run.sh");
    }

    /// Waits for its end, which must be a success. Its output.
    ///
    /// # Panics
    /// If its exit code is not 0, with all that it printed.
    #[track_caller]
    pub fn finish(mut self) -> String {
        let status = self.child.wait().expect("wait for run.sh");
        let text = self.log.whole_text();
        assert!(status.success(), "the guest ended with {status}:\n{text}");
        text
    }

    #[track_caller]
    fn accept(&mut self, listener: &UnixListener) -> Control {
        listener.set_nonblocking(true).expect("nonblocking");
        let stream = within(PATIENCE, || {
            let ended = self.child.try_wait().expect("wait");
            assert!(ended.is_none(), "run.sh ended ({ended:?}):\n{}", self.log());
            listener.accept().ok()
        });
        let (stream, _) = stream.expect("QEMU connects to the control socket");
        stream.set_nonblocking(false).expect("blocking");
        // Boot and whatever the script does before its next line.
        stream.set_read_timeout(Some(Duration::from_secs(300))).expect("read timeout");
        let lines = BufReader::new(stream.try_clone().expect("second descriptor"));
        Control { stream, lines }
    }
}

impl Drop for RunningGuest {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // It kills its QEMU on SIGTERM; on SIGKILL the kernel does.
            kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).ok();
            if within(Duration::from_secs(5), || self.child.try_wait().ok().flatten()).is_none() {
                self.child.kill().ok();
                self.child.wait().ok();
            }
        }
    }
}

/// A lock file of the machine's, held while a guest runs; waits for one.
fn take_slot() -> File {
    let folder = std::env::temp_dir().join(format!("vireo-guest-slots-{}", nix::unistd::getuid()));
    fs::create_dir_all(&folder).expect("create the folder of guest slots");
    loop {
        for slot in 0..SLOTS {
            let file = File::create(folder.join(slot.to_string())).expect("create a guest slot");
            if file.try_lock().is_ok() {
                return file;
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
