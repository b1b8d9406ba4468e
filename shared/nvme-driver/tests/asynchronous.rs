//! The async face: many futures of one thread on one queue pair, polled or by interrupts.

mod scripted;

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use nvme_driver::{
    AsyncQueuePair, Controller, IoError, Namespace, Options, QueueOptions, Reason, Request,
};
use nvme_spec::{Lba, Nsid, NvmOpcode};
use scripted::{Act, Script, Scripted, patient};
use tokio::io::unix::AsyncFd;
use tokio::task::{JoinSet, LocalSet};

/// Far above what anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = LocalSet::new();
    let bounded = async { tokio::time::timeout(PATIENCE, future).await.expect("it hangs") };
    local.block_on(&runtime, bounded)
}

fn queue(controller: &Controller, depth: u16, interrupt: bool) -> Rc<AsyncQueuePair> {
    let queue = controller.queue_pair(&QueueOptions { depth, interrupt }).unwrap();
    Rc::new(AsyncQueuePair::new(queue).unwrap())
}

/// Writes and reads back `count` blocks, all at once.
async fn round_trips(
    controller: &Controller,
    namespace: &Namespace,
    queue: &Rc<AsyncQueuePair>,
    count: u64,
) {
    let mut tasks = JoinSet::new();
    for lba in 0..count {
        let mut buffer = controller.allocate(512).unwrap();
        let (queue, namespace) = (Rc::clone(queue), namespace.clone());
        tasks.spawn_local(async move {
            buffer.copy_from(&[lba as u8 ^ 0x5A; 512]);
            let request = Request::write(&namespace, Lba(lba), buffer).with_token(lba);
            let done = queue.run(request).await.unwrap();
            assert_eq!((done.token, done.result), (lba, Ok(0)));
            let request = Request::read(&namespace, Lba(lba), done.buffer.unwrap());
            let done = queue.run(request.with_token(!lba)).await.unwrap();
            assert_eq!((done.token, done.result), (!lba, Ok(0)));
            assert_eq!(done.buffer.unwrap().to_vec(), [lba as u8 ^ 0x5A; 512]);
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    assert_eq!(queue.in_flight(), 0);
}

#[test]
fn many_futures_share_a_queue_that_is_smaller_than_they_are_many() {
    let target = Scripted::start(Script::default());
    let controller = target.connect();
    let namespace = controller.namespace(Nsid(1)).unwrap();
    for depth in [1, 4, 64] {
        let queue = queue(&controller, depth, false);
        block_on(async {
            let driving = Rc::clone(&queue);
            tokio::task::spawn_local(async move { driving.drive().await });
            round_trips(&controller, &namespace, &queue, 50).await;
        });
    }
}

#[test]
fn interrupts_reach_the_executors_reactor() {
    let target = Scripted::start(Script {
        io: Box::new(|_| Act::Late(Duration::from_millis(2))),
        ..Script::default()
    });
    let controller = target.connect_with(&Options { interrupts: true, ..patient() });
    let namespace = controller.namespace(Nsid(1)).unwrap();
    let queue = queue(&controller, 8, true);
    block_on(async {
        let polls = Rc::new(Cell::new(0));
        let (driving, counted) = (Rc::clone(&queue), Rc::clone(&polls));
        tokio::task::spawn_local(async move {
            let event = driving.event().unwrap().try_clone_to_owned().unwrap();
            #[allow(
                deprecated,
                reason = "an OwnedFd closes with it: that is what `register` makes its caller promise"
            )]
            let event = AsyncFd::new(event).unwrap();
            driving
                .drive_by(async || {
                    counted.set(counted.get() + 1);
                    let ready = event.readable();
                    if let Ok(guard) = tokio::time::timeout(Duration::from_millis(20), ready).await
                    {
                        guard.unwrap().clear_ready();
                    }
                })
                .await
        });
        round_trips(&controller, &namespace, &queue, 30).await;
        // 60 commands, 8 at a time, each 2 ms late: whoever polled all the time would have done so far more often.
        assert!((1..500).contains(&polls.get()), "{} polls", polls.get());
    });
}

#[test]
fn a_future_that_is_dropped_harms_nobody() {
    let target = Scripted::start(Script {
        io: Box::new(|command| match command.slba() {
            Lba(7) => Act::Late(Duration::from_millis(500)),
            _ => Act::Serve,
        }),
        ..Script::default()
    });
    let controller = target.connect();
    let namespace = controller.namespace(Nsid(1)).unwrap();
    let queue = queue(&controller, 2, false);
    block_on(async {
        let slow = || Request::read(&namespace, Lba(7), controller.allocate(512).unwrap());
        for _ in 0..3 {
            tokio::select! {
                biased;
                _ = queue.run(slow()) => panic!("it completes late"),
                () = async { queue.progress(); } => {}
            }
        }
        // The third found no room, and was never sent.
        assert_eq!(queue.in_flight(), 2);
        let driving = Rc::clone(&queue);
        tokio::task::spawn_local(async move { driving.drive().await });
        round_trips(&controller, &namespace, &queue, 5).await;
    });
    // Five round trips went to other blocks.
    let seen = &target.engine.lock().unwrap().seen;
    assert_eq!(seen.iter().filter(|(sqid, c)| *sqid != 0 && c.slba() == Lba(7)).count(), 2);
}

#[test]
fn a_dead_target_ends_every_future() {
    let mut target =
        Scripted::start(Script { io: Box::new(|_| Act::Swallow), ..Script::default() });
    let controller = target.connect();
    let namespace = controller.namespace(Nsid(1)).unwrap();
    let queue = queue(&controller, 4, false);
    block_on(async {
        let mut tasks = JoinSet::new();
        for token in 0..12 {
            let (queue, namespace) = (Rc::clone(&queue), namespace.clone());
            let buffer = controller.allocate(512).unwrap();
            tasks.spawn_local(async move {
                queue.run(Request::read(&namespace, Lba(0), buffer).with_token(token)).await
            });
        }
        let driving = Rc::clone(&queue);
        tokio::task::spawn_local(async move { driving.drive().await });
        tokio::task::yield_now().await;
        target.kill();
        let (mut gone, mut refused) = (0, 0);
        while let Some(task) = tasks.join_next().await {
            match task.unwrap() {
                Ok(done) => {
                    assert_eq!(done.result, Err(IoError::Gone));
                    assert!(done.buffer.is_some());
                    gone += 1;
                }
                Err(rejected) => {
                    assert_eq!(rejected.reason, Reason::Gone);
                    refused += 1;
                }
            }
        }
        assert_eq!((gone, refused), (4, 8), "four had room");
    });
}

#[test]
fn what_cannot_be_asked_comes_back_as_it_was() {
    let target = Scripted::start(Script { write_protected: true, ..Script::default() });
    let controller = target.connect();
    let namespace = controller.namespace(Nsid(1)).unwrap();
    let queue = queue(&controller, 4, false);
    block_on(async {
        let buffer = controller.allocate(512).unwrap();
        let request = Request::write(&namespace, Lba(0), buffer).with_token(99);
        let rejected = queue.run(request).await.unwrap_err();
        assert_eq!((rejected.reason, rejected.request.token()), (Reason::WriteProtected, 99));
    });
    assert_eq!((queue.in_flight(), target.engine.lock().unwrap().count(NvmOpcode::WRITE)), (0, 0));
}
