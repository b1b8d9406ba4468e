//! A drive that fails, hangs, breaks the protocol or has another format: what it says of trying again is kept, what hangs
//! is aborted and then the drive reset, and clients learn of it by an error at most.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use nvme_spec::feature::event::AsyncEvent;
use nvme_spec::identify::namespace::LbaFormat;
use nvme_spec::{AdminOpcode, Command, NvmOpcode};
use vireo_tests::command::vireo;
use vireo_tests::wait::despite_stalls;

use super::*;
use crate::scripted::{Act, Script, Scripted};

/// The backend's own queue, which it makes before any that it leases.
const BACKENDS: u16 = 1;

/// A client of a namespace on a scripted drive.
struct Scene {
    // In the order in which they are to go.
    host: Host,
    _target: Target,
    drive: Scripted,
    /// What becomes of the drive's next commands; those after them are served.
    fate: Arc<Mutex<VecDeque<Act>>>,
    block: u64,
}

impl Scene {
    #[track_caller]
    fn start(channel: &str, script: Script) -> Self {
        let fate: Arc<Mutex<VecDeque<Act>>> = Arc::default();
        let next = Arc::clone(&fate);
        let io = Box::new(move |_: &Command| {
            next.lock().expect("a test that goes on").pop_front().unwrap_or(Act::Serve)
        });
        let block = 1 << script.format.lbads();
        let drive = Scripted::start(Script { io, ..script });
        let of_bdev = format!("channel = \"{channel}\"\n");
        let target = Target::start(&on_drive(drive.endpoint(), &of_bdev));
        let host = Host::connect(target.socket("vm0"));
        let mut scene = Self { host, _target: target, drive, fate, block };
        until("commands come the way that they are to", || {
            scene.read().expect("a drive that works");
            let engine = scene.drive.engine.lock().expect("a drive that works");
            let last = engine.seen.iter().rfind(|(sqid, _)| *sqid != 0);
            last.is_some_and(|(sqid, _)| (*sqid != BACKENDS) == (channel == "lease"))
        });
        scene
    }

    /// From now on.
    fn ordain(&self, acts: impl IntoIterator<Item = Act>) {
        self.drive.engine.lock().expect("a drive that works").seen.clear();
        *self.fate.lock().expect("a test that goes on") = acts.into_iter().collect();
    }

    fn read(&mut self) -> Result<Vec<u8>, Status> {
        self.host.read(NSID, Lba(3), 5, self.block)
    }

    /// Reads that came since it was ordained what becomes of them.
    fn reads(&self) -> usize {
        self.drive.engine.lock().expect("a drive that works").count(NvmOpcode::READ)
    }

    /// Aborts since then, and how often the drive was enabled at all.
    fn remedies(&self) -> (usize, usize) {
        let engine = self.drive.engine.lock().expect("a drive that works");
        (engine.count_admin(AdminOpcode::ABORT), engine.enables)
    }
}

#[test]
fn what_the_drive_says_of_trying_again_is_kept() {
    for channel in ["lease", "ring"] {
        let mut scene = Scene::start(channel, Script { crdt1: 5, ..Script::default() });
        let (passing, lasting) = (Status::INTERNAL_ERROR, Status::INTERNAL_ERROR.with_dnr());
        scene.ordain([Act::Status(Status::NAMESPACE_NOT_READY.with_crd(1))]);
        let started = Instant::now();
        assert!(scene.read().is_ok());
        assert!(started.elapsed() >= Duration::from_millis(500), "{:?}", started.elapsed());
        assert_eq!(scene.reads(), 2, "over the {channel}");
        for (acts, good, reads) in
            [(vec![passing; 4], true, 5), (vec![passing; 5], false, 5), (vec![lasting], false, 1)]
        {
            scene.ordain(acts.into_iter().map(Act::Status));
            assert_eq!((scene.read().is_ok(), scene.reads()), (good, reads), "over the {channel}");
        }
    }
}

#[test]
fn what_hangs_is_aborted_then_the_drive_is_reset_and_asked_again() {
    let mut scene = Scene::start("lease", Script::default());
    let (_, enables) = scene.remedies();
    scene.ordain([Act::Swallow]);
    assert!(scene.read().is_ok());
    let (aborts, after) = scene.remedies();
    assert!(aborts > 0 && after > enables, "{aborts} aborts, enabled {after} times");
    assert!(scene.read().is_ok());
}

#[test]
fn what_can_be_aborted_ends_with_an_error_and_the_drive_goes_on() {
    despite_stalls(|| {
        let mut scene = Scene::start("ring", Script::default());
        let (_, enables) = scene.remedies();
        scene.ordain([Act::UntilAborted]);
        let status = scene.read().expect_err("it was aborted");
        assert!(!status.dnr(), "{status} says that it never will");
        assert_eq!(scene.remedies(), (1, enables));
        assert!(scene.read().is_ok());
    });
}

#[test]
fn a_drive_that_breaks_the_protocol_or_fails_is_reset_before_anything_it_says_is_believed() {
    for channel in ["lease", "ring"] {
        let mut scene = Scene::start(channel, Script::default());
        scene.drive.engine.lock().expect("a drive that works").media.fill(0x5A);
        for act in [Act::WrongCid, Act::WrongSqid, Act::Fail] {
            let (_, enables) = scene.remedies();
            scene.ordain([act]);
            assert!(scene.read().expect("it is asked again").iter().all(|&byte| byte == 0x5A));
            let (_, after) = scene.remedies();
            assert!(after > enables, "{act:?} over the {channel}");
        }
    }
}

#[test]
fn a_drive_of_blocks_of_4_kib_is_a_namespace_of_such() {
    for channel in ["lease", "ring"] {
        let format = LbaFormat::new().with_lbads(12);
        let mut scene = Scene::start(channel, Script { format, blocks: 256, ..Script::default() });
        let mut random = Random::new(9);
        for (lba, blocks) in [(0, 1), (255, 1), (7, 40), (1, 255)] {
            let data = random.bytes(blocks << 12);
            scene.host.write(NSID, Lba(lba), &data, scene.block).expect("write");
            let read = scene.host.read(NSID, Lba(lba), blocks as u32, scene.block).expect("read");
            assert!(read == data, "{blocks} blocks at {lba} over the {channel}");
            let start = (lba as usize) << 12;
            let engine = scene.drive.engine.lock().expect("a drive that works");
            assert!(engine.media[start..start + data.len()] == data);
        }
    }
}

#[test]
fn a_drive_that_tells_of_a_change_is_asked_what_has_changed() {
    let mut scene = Scene::start("ring", Script::default());
    let write = |scene: &mut Scene| scene.host.write(NSID, Lba(8), &[1; 512], 512).is_ok();
    assert!(write(&mut scene));
    for protected in [true, false] {
        scene.drive.engine.lock().expect("a drive that works").write_protected = protected;
        // One request for events at least is outstanding, or comes again.
        until("an event is asked for", || {
            let mut engine = scene.drive.engine.lock().expect("a drive that works");
            engine.raise(AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED)
        });
        until("it is known", || write(&mut scene) != protected);
    }
}

/// Checks that a reload refuses a bdev on this drive, by a line with all of these words.
#[track_caller]
fn refused(target: &Target, drive: &Scripted, options: &str, words: &[&str]) {
    let bdev = format!(
        "[[bdev]]\nname = \"nv0\"\ndriver = \"nvme\"\ntarget = \"{}\"\n{options}",
        drive.address()
    );
    let output = target.reload(&(one_memory_namespace(&["vm0"]) + &bdev));
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{text}");
    let told = |line: &str| line.contains("nv0") && words.iter().all(|word| line.contains(word));
    assert!(text.lines().any(told), "{words:?} in\n{text}");
    target.reload_ok(&one_memory_namespace(&["vm0"]));
}

#[test]
fn formats_that_are_not_served_are_refused_by_name_and_described() {
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    let format = LbaFormat::new().with_lbads(9).with_ms(8);
    let drive = Scripted::start(Script { format, ..Script::default() });
    let told = ["namespace 1 with 8 bytes of metadata", "only formats without metadata"];
    refused(&target, &drive, "", &told);
    vireo(["perf", &drive.address()]).refused(1, &[told[0], told[1], "--namespace"]);
    let text = vireo(["identify", &drive.address()]).success();
    assert!(text.contains("0: 512 bytes and 8 of metadata, in use"), "{text}");

    let format = LbaFormat::new().with_lbads(13);
    let drive = Scripted::start(Script { format, blocks: 64, ..Script::default() });
    refused(&target, &drive, "", &["blocks of 8192 bytes, at most 4096"]);
    let format = LbaFormat::new().with_lbads(12);
    let drive = Scripted::start(Script { format, blocks: 64, ..Script::default() });
    let told = ["blocks of 4096 bytes", "leave block_size out"];
    refused(&target, &drive, "block_size = 512\n", &told);
    assert!(target.stop().success());
}
