//! A running target: the real `vireo up` and its processes, in a directory of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::log::Log;
use crate::wait::{PATIENCE, until, within};

/// Longest that a target takes to stop before it counts as hung.
const STOP: Duration = PATIENCE;

/// A configuration with one process of each kind, what most tests need: `bdevs` and what follows are TOML tables.
pub fn configuration(tables: &str) -> String {
    format!(
        "runtime_dir = \"@RUN@\"\nstate_dir = \"@STATE@\"\n\
         [[worker]]\nname = \"w0\"\n[[backend]]\nname = \"b0\"\n[[frontend]]\nname = \"f0\"\n{tables}"
    )
}

/// One malloc namespace of 64 MiB behind each of the endpoints named.
pub fn one_memory_namespace(endpoints: &[&str]) -> String {
    let mut tables = String::from(
        "[[bdev]]\nname = \"mem0\"\ndriver = \"malloc\"\nsize = \"64MiB\"\n\
         [[subsystem]]\nname = \"s0\"\nserial = \"TEST0001\"\n\
         [[subsystem.namespace]]\nnsid = 1\nbdev = \"mem0\"\n",
    );
    for name in endpoints {
        tables += &format!("[[endpoint]]\nname = \"{name}\"\nsubsystem = \"s0\"\n");
    }
    configuration(&tables)
}

/// Where a built program lies: the folder in `VIREO_BIN_DIR`, else that of the test itself.
///
/// # Panics
/// If it is not there.
pub fn program(name: &str) -> PathBuf {
    let folder = std::env::var_os("VIREO_BIN_DIR").map(PathBuf::from).unwrap_or_else(|| {
        let test = std::env::current_exe().expect("a test knows its own path");
        // target/debug/deps/name-hash
        test.ancestors().nth(2).expect("tests lie two folders deep").to_path_buf()
    });
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is not built: cargo build --workspace --bins (with --release for release tests)",
        path.display()
    );
    path
}

/// A directory with a configuration file, before and while a target runs in it.
pub struct Site {
    directory: TempDir,
}

impl Site {
    /// Writes the configuration into a fresh directory. `@RUN@`, `@STATE@` and `@DIR@` in it become paths there.
    pub fn new(configuration: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("vireo-test.").tempdir().expect("tempdir");
        let site = Self { directory };
        fs::create_dir(site.run_dir()).expect("create runtime directory");
        fs::create_dir(site.state_dir()).expect("create state directory");
        site.configure(configuration);
        site
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// `runtime_dir`.
    pub fn run_dir(&self) -> PathBuf {
        self.directory().join("run")
    }

    /// `state_dir`.
    pub fn state_dir(&self) -> PathBuf {
        self.directory().join("state")
    }

    /// The configuration file.
    pub fn file(&self) -> PathBuf {
        self.directory().join("vireo.toml")
    }

    /// Writes another configuration.
    pub fn configure(&self, configuration: &str) {
        let path = |path: PathBuf| path.to_str().expect("temporary paths are UTF-8").to_owned();
        let text = configuration
            .replace("@RUN@", &path(self.run_dir()))
            .replace("@STATE@", &path(self.state_dir()))
            .replace("@DIR@", &path(self.directory().to_path_buf()));
        fs::write(self.file(), text).expect("write configuration");
    }

    /// Runs `vireo` with these arguments and `--config` to its end.
    pub fn vireo(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(program("vireo"));
        command.args(arguments).arg("--config").arg(self.file());
        run(command)
    }
}

/// Runs a command to its end.
///
/// # Panics
/// If it takes longer than twice [`PATIENCE`]; it is killed then.
pub fn run(mut command: Command) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("spawn");
    let pid = Pid::from_raw(child.id() as i32);
    let waiter = std::thread::spawn(move || child.wait_with_output());
    if within(2 * PATIENCE, || waiter.is_finished().then_some(())).is_none() {
        // The thread has not reaped it, so the id is still this child's.
        kill(pid, Signal::SIGKILL).ok();
        let output = waiter.join().expect("waiter").expect("output");
        panic!("{command:?} hung: {}", String::from_utf8_lossy(&output.stderr));
    }
    waiter.join().expect("waiter").expect("output")
}

/// A running `vireo up`.
pub struct Target {
    site: Site,
    supervisor: Child,
    log: Log,
}

impl Target {
    /// Starts a target and waits until it says that it is ready and every endpoint's socket is there.
    ///
    /// # Panics
    /// If it is not ready within [`PATIENCE`], with all that it printed.
    #[track_caller]
    pub fn start(configuration: &str) -> Self {
        Self::start_in(Site::new(configuration))
    }

    /// The same in a directory that was prepared.
    #[track_caller]
    pub fn start_in(site: Site) -> Self {
        let (supervisor, log) = up(&site);
        let mut target = Self { site, supervisor, log };
        target.await_start();
        target
    }

    /// Starts `vireo up` once more, after the first one was killed.
    #[track_caller]
    pub fn start_another_keeper(mut self) -> Self {
        self.supervisor.wait().expect("wait for the first one");
        (self.supervisor, self.log) = up(&self.site);
        self.await_start();
        self
    }

    #[track_caller]
    fn await_start(&mut self) {
        let ready = within(PATIENCE, || {
            if let Some(status) = self.supervisor.try_wait().expect("wait") {
                panic!("vireo up ended with {status}:\n{}", self.log.whole_text());
            }
            self.is_ready().then_some(())
        });
        assert!(ready.is_some(), "vireo up is not ready within {PATIENCE:?}:\n{}", self.log());
    }

    /// What all processes printed so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// The directory it runs in.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// The directory of an endpoint that has no `path` of its own; its socket is `cntrl` in it.
    pub fn endpoint(&self, name: &str) -> PathBuf {
        self.site.run_dir().join(name)
    }

    /// The socket of such an endpoint.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.endpoint(name).join("cntrl")
    }

    /// Process id of `vireo up`.
    pub fn supervisor(&self) -> Pid {
        Pid::from_raw(self.supervisor.id() as i32)
    }

    /// Process id of the process that was started with `--name NAME`, if it runs.
    pub fn find(&self, name: &str) -> Option<Pid> {
        self.processes()
            .into_iter()
            .find(|(_, arguments)| is_named(arguments, name))
            .map(|found| found.0)
    }

    /// Process id of the process that was started with `--name NAME`.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn pid(&self, name: &str) -> Pid {
        self.find(name).unwrap_or_else(|| panic!("no process {name}:\n{}", self.log()))
    }

    /// Kills a process as a crash would, and waits until another one has its name.
    #[track_caller]
    pub fn kill_and_await_successor(&self, name: &str) -> Pid {
        let before = self.pid(name);
        kill(before, Signal::SIGKILL).expect("kill a process of our own");
        until("a successor", || self.find(name).is_some_and(|pid| pid != before));
        self.pid(name)
    }

    /// Writes another configuration and has it taken over. The output is the command's.
    pub fn reload(&self, configuration: &str) -> Output {
        self.site.configure(configuration);
        self.site.vireo(&["reload"])
    }

    /// Writes another configuration and has it taken over.
    ///
    /// # Panics
    /// If it is refused, again and again: a process that stalls for longer than the manager waits for it is told of once.
    #[track_caller]
    pub fn reload_ok(&self, configuration: &str) {
        let mut last = None;
        let taken = within(PATIENCE, || {
            let output = self.reload(configuration);
            let taken = output.status.success().then_some(());
            last = Some(output);
            taken
        });
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = last.map(|output| text(&output.stdout) + &text(&output.stderr));
        assert!(taken.is_some(), "reload: {}\n{}", said.unwrap_or_default(), self.log());
    }

    /// Stops it as a person would; how it ended.
    ///
    /// # Panics
    /// If it does not within [`PATIENCE`].
    #[track_caller]
    pub fn stop(mut self) -> ExitStatus {
        let status = self.terminate();
        status.unwrap_or_else(|| panic!("vireo up does not stop:\n{}", self.log()))
    }

    /// The state of all processes, as `vireo status -o json` tells it.
    #[track_caller]
    pub fn status(&self) -> serde_json::Value {
        let output = self.site.vireo(&["status", "-o", "json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("status: {error}: {}\n{}", String::from_utf8_lossy(&output.stderr), self.log())
        })
    }

    /// Waits until every process says that it is ready.
    #[track_caller]
    pub fn await_all_ready(&self) {
        until("every process is ready", || {
            self.site.vireo(&["status", "-o", "json"]).status.success()
        });
    }

    /// Closes the other end of its output, as a terminal that is gone does.
    pub fn close_terminal(&self) {
        self.log.close();
        // The streams end at the next line that somebody prints, which a death is worth.
        kill(self.pid("m0"), Signal::SIGKILL).expect("kill a process of our own");
        until("nobody listens", || self.log.is_closed());
        until("the manager is back", || self.find("m0").is_some());
    }

    /// Whether `vireo up` itself still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.supervisor.try_wait(), Ok(None))
    }

    fn is_ready(&self) -> bool {
        self.log().lines().any(|line| line.starts_with("ready"))
            && self.endpoint_names().iter().all(|name| self.socket(name).exists())
    }

    /// Endpoints of the configuration that have no path of their own.
    fn endpoint_names(&self) -> Vec<String> {
        let text = fs::read_to_string(self.site.file()).unwrap_or_default();
        let tables = text.split("[[").filter_map(|table| table.strip_prefix("endpoint]]"));
        let value = |table: &str, key: &str| {
            let line = table.lines().find(|line| line.starts_with(key))?;
            Some(line.split('"').nth(1)?.to_owned())
        };
        tables
            .filter(|table| value(table, "path").is_none())
            .filter_map(|table| value(table, "name"))
            .collect()
    }

    /// Processes of Vireo that run in our directory: id and arguments.
    fn processes(&self) -> Vec<(Pid, Vec<String>)> {
        let directory = self.site.directory().to_string_lossy().into_owned();
        let entries = fs::read_dir("/proc").expect("/proc");
        let process = |pid: i32| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
            let arguments: Vec<String> = line.split('\0').map(str::to_owned).collect();
            let program = Path::new(arguments.first()?).file_name()?.to_str()?.to_owned();
            let ours = arguments.iter().any(|argument| argument.contains(&directory));
            (ours && program.starts_with("vireo")).then_some((Pid::from_raw(pid), arguments))
        };
        entries
            .filter_map(|entry| process(entry.ok()?.file_name().to_str()?.parse().ok()?))
            .collect()
    }

    fn terminate(&mut self) -> Option<ExitStatus> {
        if let Ok(Some(status)) = self.supervisor.try_wait() {
            return Some(status);
        }
        kill(self.supervisor(), Signal::SIGTERM).ok();
        within(STOP, || self.supervisor.try_wait().ok().flatten())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if self.terminate().is_none() {
            self.supervisor.kill().ok();
            self.supervisor.wait().ok();
        }
        // What outlived its supervisor: each was started with a path in this directory.
        for (pid, _) in self.processes() {
            kill(pid, Signal::SIGKILL).ok();
        }
        if std::thread::panicking() {
            eprintln!("--- what the target printed ---\n{}---", self.log());
        }
    }
}

fn up(site: &Site) -> (Child, Log) {
    let mut command = Command::new(program("vireo"));
    command.arg("up").arg("--config").arg(site.file());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("spawn vireo up");
    let log = Log::of(&mut child);
    (child, log)
}

fn is_named(arguments: &[String], name: &str) -> bool {
    arguments.windows(2).any(|pair| pair[0] == "--name" && pair[1] == name)
        || arguments.iter().any(|argument| argument.strip_prefix("--name=") == Some(name))
}
