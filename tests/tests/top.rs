//! `vireo top` in a terminal, under tmux, as a person has it; and its batch mode.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tempfile::TempDir;
use vireo_tests::target::{Target, configuration, program, run};
use vireo_tests::wait::{PATIENCE, until, within};

/// Between two looks at a screen.
const LOOK: Duration = Duration::from_millis(50);
/// One target at a time: each keeps the cores busy.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Two workers, two controllers on one namespace.
fn start() -> Target {
    Target::start(&configuration(
        "[[worker]]\nname = \"w1\"\n[[bdev]]\nname = \"mem0\"\ndriver = \"malloc\"\nsize = \"16MiB\"\n\
         [[subsystem]]\nname = \"s0\"\n[[subsystem.namespace]]\nnsid = 1\nbdev = \"mem0\"\n\
         [[endpoint]]\nname = \"vm0\"\nsubsystem = \"s0\"\n\
         [[endpoint]]\nname = \"vm1\"\nsubsystem = \"s0\"\ndoorbells = \"shadow\"\n",
    ))
}

/// I/O on a controller, until this is dropped.
struct Load(Child);

impl Load {
    fn on(target: &Target, endpoint: &str) -> Self {
        let address = format!("vfio-user:{}", target.endpoint(endpoint).display());
        let mut command = Command::new(program("vireo"));
        command.args(["perf", &address, "--pattern", "randrw", "--depth", "4", "--queues", "2"]);
        // It sleeps between them: what is looked at needs the cores as well.
        command.args(["--rate", "1000", "--completions", "interrupt", "--time", "300s"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect("spawn vireo perf"))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A terminal with a shell in it.
struct Terminal {
    directory: TempDir,
}

impl Terminal {
    fn start(width: u16, height: u16) -> Self {
        install();
        let directory = tempfile::Builder::new().prefix("vireo-top.").tempdir().expect("tempdir");
        let terminal = Self { directory };
        let (width, height) = (width.to_string(), height.to_string());
        let size = ["-x", &width, "-y", &height];
        let shell = ["env", "PS1=$ ", "LC_ALL=C.UTF-8", "bash", "--norc", "--noprofile"];
        terminal.tmux(&[&["new-session", "-d"][..], &size, &shell].concat());
        terminal
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("tmux")
    }

    #[track_caller]
    fn tmux(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("tmux");
        command.env_remove("TMUX").args(["-u", "-f", "/dev/null", "-S"]).arg(self.socket());
        command.args(arguments);
        let output = run(command);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Types a line.
    fn line(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
        self.tmux(&["send-keys", "Enter"]);
    }

    fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits for what has to be on the screen.
    #[track_caller]
    fn until(&self, what: &str, shows: impl Fn(&str) -> bool) -> String {
        let seen = within(PATIENCE, || {
            let screen = self.screen();
            let shown = shows(&screen);
            // Each look is a process of its own, and a person does not look more often.
            if !shown {
                std::thread::sleep(LOOK);
            }
            shown.then_some(screen)
        });
        seen.unwrap_or_else(|| panic!("{what} is not on the screen:\n{}", self.screen()))
    }

    /// Starts `vireo top` on a target and waits for rates.
    fn top(&self, target: &Target) {
        let (vireo, directory) = (program("vireo"), target.site().run_dir());
        let options = "--interval 200ms";
        self.line(&format!(
            "{} top {options} --runtime-dir {}",
            vireo.display(),
            directory.display()
        ));
        self.until("a rate", |screen| cell(screen, "vm0", "RD IOPS").is_some_and(is_rate));
    }

    /// What the shell runs.
    fn child(&self) -> Option<Pid> {
        let shell = self.tmux(&["display-message", "-p", "#{pane_pid}"]);
        let shell = shell.trim();
        let path = format!("/proc/{shell}/task/{shell}/children");
        let children = std::fs::read_to_string(path).ok()?;
        children.split_whitespace().next()?.parse().ok().map(Pid::from_raw)
    }

    /// The shell has its terminal back as it was.
    #[track_caller]
    fn is_given_back(&self) {
        until("it has ended", || self.child().is_none());
        self.line("clear; stty -a | tr ' ;' '\\n\\n' | grep -cxE 'echo|icanon|isig'");
        let screen = self.until("the shell", |screen| screen.lines().any(|line| line == "3"));
        assert!(!screen.contains("vireo top"), "{screen}");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let mut command = Command::new("tmux");
        command.env_remove("TMUX").arg("-S").arg(self.socket()).arg("kill-server");
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().ok();
    }
}

/// Debian's tmux.
fn install() {
    if Command::new("tmux").arg("-V").output().is_ok() {
        return;
    }
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let status = Command::new("bash").arg(tree.join(".ci/apt")).arg("tmux").status();
    assert!(status.expect("run .ci/apt").success(), "Debian's tmux is needed for this test");
}

/// The value below a heading whose end it shares, in the row that begins with a name.
fn cell<'s>(screen: &'s str, row: &str, title: &str) -> Option<&'s str> {
    let head = screen.lines().find(|line| line.contains(title))?;
    let end = head.find(title)? + title.len();
    let line = screen.lines().find(|line| line.split_whitespace().next() == Some(row))?;
    line.get(..end)?.split_whitespace().last()
}

/// Not zero, and known.
fn is_rate(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit()) && text != "0"
}

#[test]
fn a_person_sees_what_goes_on_and_finds_the_way() {
    let _turn = turn();
    let target = start();
    let _load = Load::on(&target, "vm0");
    let terminal = Terminal::start(80, 24);
    terminal.top(&target);

    terminal.until("the client, and an endpoint without one", |screen| {
        let is_idle = cell(screen, "vm1", "RD IOPS") == Some("0");
        screen.contains("connected") && screen.contains("waiting") && is_idle
    });
    terminal.until("that all is well", |screen| screen.contains(" ready "));
    terminal.until("latencies", |screen| cell(screen, "vm0", "P99").is_some_and(is_rate));

    terminal.keys(&["1"]);
    terminal.until("workers", |screen| {
        let shares = ["w0", "w1"].map(|worker| cell(screen, worker, "BUSY"));
        shares.iter().all(|share| share.is_some_and(|share| share.ends_with('%')))
    });
    terminal.keys(&["Tab", "Tab"]);
    terminal.until("queues", |screen| cell(screen, "vm0", "CMDS/s").is_some_and(is_rate));
    terminal.until("their latencies", |screen| cell(screen, "vm0", "P99").is_some_and(is_rate));
    terminal.keys(&["4"]);
    terminal.until("namespaces", |screen| cell(screen, "s0/1", "WR IOPS").is_some_and(is_rate));

    terminal.keys(&["2", "/", "V", "M", "1", "Enter"]);
    terminal.until("one row", |screen| {
        screen.contains("/VM1") && screen.contains("waiting") && !screen.contains("connected")
    });
    terminal.keys(&["Escape"]);
    terminal.until("all rows", |screen| screen.contains("connected"));
    // By reads, the greatest first; then the other way round.
    let first = |screen: &str| {
        let mut lines = screen.lines().skip_while(|line| !line.starts_with("CONTROLLER"));
        lines.nth(1).map(|line| line.split_whitespace().next().unwrap_or_default().to_owned())
    };
    terminal.keys(&[">", ">"]);
    terminal.until("the order", |screen| screen.contains("IOPSv"));
    terminal.until("the greatest", |screen| first(screen).as_deref() == Some("vm0"));
    terminal.keys(&["r"]);
    terminal.until("the least", |screen| first(screen).as_deref() == Some("vm1"));

    terminal.keys(&["p"]);
    terminal.until("a pause", |screen| screen.contains("PAUSED"));
    terminal.keys(&["p", "?"]);
    terminal.until("help", |screen| screen.contains("sort the other way round"));
    terminal.keys(&["?", "+"]);
    terminal.until("an interval", |screen| screen.contains("every 0.5 s"));

    terminal.tmux(&["resize-window", "-x", "40", "-y", "8"]);
    terminal.until("a complaint", |screen| screen.contains("too small: 40x8"));
    terminal.tmux(&["resize-window", "-x", "200", "-y", "50"]);
    terminal.until("everything", |screen| {
        screen.contains("SUBSYSTEM") && screen.contains("LAST MINUTE")
    });
    terminal.keys(&["q"]);
    terminal.is_given_back();
}

#[test]
fn it_outlives_the_manager_and_gives_the_terminal_back_when_it_is_killed() {
    let _turn = turn();
    let target = start();
    let _load = Load::on(&target, "vm0");
    let terminal = Terminal::start(100, 24);
    terminal.top(&target);
    // Its successor is found, and counters go on.
    target.kill_and_await_successor("m0");
    terminal.until("the successor", |screen| {
        !screen.contains("no manager") && cell(screen, "vm0", "RD IOPS").is_some_and(is_rate)
    });
    // Nobody is there any more.
    let stopped = kill(target.supervisor(), Signal::SIGTERM);
    stopped.expect("stop a process of our own");
    terminal.until("the loss", |screen| {
        ["trying again", "no manager", "vm0"].into_iter().all(|word| screen.contains(word))
    });
    let child = terminal.child().expect("it still runs");
    kill(child, Signal::SIGTERM).expect("kill a process of our own");
    terminal.is_given_back();
}

#[test]
fn it_ends_with_its_terminal() {
    let _turn = turn();
    let target = start();
    let _load = Load::on(&target, "vm0");
    let terminal = Terminal::start(80, 24);
    terminal.top(&target);
    let child = terminal.child().expect("it runs");
    terminal.tmux(&["kill-server"]);
    // Whoever takes it on then may leave it a zombie.
    until("it has ended", || {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat"));
        !stat.is_ok_and(|stat| !stat.contains(") Z "))
    });
}

#[test]
fn one_reading_is_for_programs_and_for_pipes() {
    let _turn = turn();
    let target = start();
    let _load = Load::on(&target, "vm0");
    let top = |arguments: &[&str]| {
        let mut command = Command::new(program("vireo"));
        command.arg("top").args(arguments).arg("--runtime-dir").arg(target.site().run_dir());
        run(command)
    };
    let json = || -> Value {
        let output = top(&["-o", "json", "--interval", "300ms"]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{error}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    // The load may still be on its way.
    let found = within(PATIENCE, || {
        let json = json();
        let controller = &json["controllers"][0];
        let reads = controller["rates"]["reads"].as_f64();
        let seen = reads.is_some_and(|reads| reads > 0.0) && controller["state"] == "connected";
        (seen && json["ready"] == true).then_some(json)
    });
    let json = found.expect("reads of a client are seen");
    let names = |kind: &str| -> Vec<String> {
        let all = json[kind].as_array().expect("a list").iter();
        all.map(|one| one["name"].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(names("controllers"), ["vm0", "vm1"]);
    assert_eq!(names("workers"), ["w0", "w1"]);
    assert_eq!(names("namespaces"), ["s0/1"]);
    assert!(json["queues"].as_array().is_some_and(|queues| !queues.is_empty()), "{json}");

    let table = String::from_utf8(top(&["--once"]).stdout).expect("UTF-8");
    for word in ["CONTROLLER", "WORKER", "NAMESPACE", "vm0", "vm1", "w1", "s0/1"] {
        assert!(table.contains(word), "{word} in\n{table}");
    }
    let output = top(&[]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");
    assert!(error.contains("no terminal") && error.contains("--once"), "{error}");

    let mut nobody = Command::new(program("vireo"));
    nobody.args(["top", "--once", "--runtime-dir", "/nowhere"]);
    let output = run(nobody);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");
    assert!(error.contains("/nowhere/api.sock"), "{error}");
}
