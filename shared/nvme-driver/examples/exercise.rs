//! Exercises any controller: `exercise ADDRESS [NSID [QUEUES]]`. DESTROYS what the namespace holds.
//!
//! Identify, verified writes and reads of many lengths and alignments on every queue pair, each by a thread of its own,
//! a reset under outstanding requests, verification again, and a shutdown. It prints one line a step and ends with
//! status 1 at the first thing that is not as it has to be.

use std::error::Error;
use std::time::{Duration, Instant};

use nvme_driver::{Controller, IoError, Namespace, Options, QueueOptions, QueuePair, Request};
use nvme_spec::{Lba, Nsid};

/// Blocks that each thread has for itself.
const SPAN: u64 = 4096;
/// Rounds of verified I/O of a thread.
const ROUNDS: u64 = 40;
/// Requests outstanding while the controller is reset.
const OUTSTANDING: u64 = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().ok_or("usage: exercise ADDRESS [NSID [QUEUES]]")?;
    let nsid = Nsid(arguments.next().map_or(Ok(1), |text| text.parse())?);
    let queues = arguments.next().map_or(Ok(2), |text| text.parse::<u16>())?;
    for interrupts in [false, true] {
        let options = Options { interrupts, queues, ..Options::default() };
        match Controller::connect_with(&address, &options) {
            Ok(controller) => exercise(&controller, nsid, queues, interrupts)?,
            Err(error) => {
                eprintln!("{error}");
                std::process::exit(1);
            }
        }
    }
    println!("all is well");
    Ok(())
}

fn exercise(
    controller: &Controller,
    nsid: Nsid,
    queues: u16,
    interrupt: bool,
) -> Result<(), Box<dyn Error>> {
    let identify = controller.identify();
    println!(
        "{controller:?}: model {:?}, version {:?}, {} queue pairs, {} bytes a command, doorbells cost {:?}, shadow: {}",
        String::from_utf8_lossy(&identify.mn).trim(),
        controller.version(),
        controller.granted_queues(),
        controller.max_transfer(),
        controller.doorbell_cost(),
        controller.uses_shadow_doorbells(),
    );
    println!("active namespaces: {:?}", controller.active_namespaces()?);
    let namespace = controller.namespace(nsid)?;
    println!("namespace {nsid}: {} blocks of {}", namespace.blocks(), namespace.block_size());
    println!("temperature: {} K", controller.smart()?.composite_temperature);
    let started = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..queues.min(controller.granted_queues()))
            .map(|index| {
                let namespace = &namespace;
                scope.spawn(move || {
                    verified(controller, namespace, index, interrupt).map_err(|e| e.to_string())
                })
            })
            .collect();
        for thread in threads {
            let bytes = thread.join().map_err(|_| "a thread panicked")??;
            println!("thread verified {bytes} bytes (interrupts: {interrupt})");
        }
        Ok::<(), Box<dyn Error>>(())
    })?;
    println!("verified in {:?}", started.elapsed());
    reset_under_load(controller, &namespace)?;
    println!("reset under outstanding requests, and all of them ended");
    controller.shutdown()?;
    println!("shut down");
    Ok(())
}

fn pattern(lba: u64, seed: u64, block_size: usize, bytes: &mut [u8]) {
    for (index, block) in bytes.chunks_mut(block_size).enumerate() {
        let mut state = (lba + index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed << 32 | 1;
        for word in block.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
        }
    }
}

fn run(queue: &mut QueuePair, request: Request) -> Result<nvme_driver::DmaBuffer, Box<dyn Error>> {
    let done = queue.run(request).map_err(|rejected| rejected.reason)?;
    done.result?;
    Ok(done.buffer.ok_or("the buffer did not come back")?)
}

/// Writes and reads back blocks of this thread's own.
fn verified(
    controller: &Controller,
    namespace: &Namespace,
    index: u16,
    interrupt: bool,
) -> Result<u64, Box<dyn Error>> {
    let mut queue = controller.queue_pair(&QueueOptions { depth: 64, interrupt })?;
    let block_size = namespace.block_size() as usize;
    let first = u64::from(index) * SPAN;
    let mut total = 0;
    for round in 0..ROUNDS {
        let blocks = 1 + (round * round * 3) % (SPAN / 4);
        let lba = first + (round * 37) % (SPAN - blocks);
        let len = blocks as usize * block_size;
        let offset = ((round as usize % 5) * 508) & !3;
        let mut buffer = controller.allocate(len + offset)?;
        if offset > 0 {
            buffer = buffer.split_off(offset).ok_or("no buffer")?;
        }
        let mut expected = vec![0; len];
        pattern(lba, round, block_size, &mut expected);
        buffer.copy_from(&expected);
        let mut buffer = run(&mut queue, Request::write(namespace, Lba(lba), buffer))?;
        buffer.copy_from(&vec![0xA5; len]);
        let buffer = run(&mut queue, Request::read(namespace, Lba(lba), buffer))?;
        if buffer.to_vec() != expected {
            return Err(format!("{blocks} blocks at {lba} came back changed, round {round}").into());
        }
        total += len as u64;
    }
    run_plain(&mut queue, Request::flush(namespace))?;
    Ok(total)
}

fn run_plain(queue: &mut QueuePair, request: Request) -> Result<(), Box<dyn Error>> {
    queue.run(request).map_err(|rejected| rejected.reason)?.result?;
    Ok(())
}

/// Resets the controller while requests are outstanding: each ends, well or by the reset; then the queue works again.
fn reset_under_load(controller: &Controller, namespace: &Namespace) -> Result<(), Box<dyn Error>> {
    let mut queue = controller.queue_pair(&QueueOptions::default())?;
    let len = namespace.max_transfer().min(64 * 1024) as usize;
    let buffers = controller.allocate(len * OUTSTANDING as usize)?.into_chunks(len);
    for buffer in buffers {
        queue.submit(Request::read(namespace, Lba(0), buffer)).map_err(|error| error.reason)?;
    }
    queue.ring();
    controller.reset()?;
    let (started, mut ended) = (Instant::now(), 0);
    while let Some(done) = queue.wait_next() {
        match done.result {
            Ok(_) | Err(IoError::Reset) => ended += 1,
            Err(error) => return Err(format!("request {ended} before the reset: {error}").into()),
        }
    }
    if ended != OUTSTANDING || started.elapsed() > Duration::from_secs(5) {
        return Err(format!("{ended} requests ended after {:?}", started.elapsed()).into());
    }
    let buffer = controller.allocate(4096)?;
    run(&mut queue, Request::read(namespace, Lba(0), buffer))
        .map(drop)
        .map_err(|error| format!("after the reset: {error}").into())
}
