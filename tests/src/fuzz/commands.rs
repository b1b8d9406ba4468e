//! Submission queue entries: any bytes, on the admin queue and on I/O queues, through controller, worker and device.

use nvme_spec::command::Psdt;
use nvme_spec::{Command, CommandId, Iova, Nsid};

use super::input::Input;
use super::works_after_reset;
use crate::host::memory::PAGE;
use crate::simulated::{Fate, SimulatedHost, boot};

/// Commands of one input at most.
const COMMANDS: usize = 64;
/// Where lists lie: pages that the input fills.
const LISTS: u64 = 1 << 20;

/// Sends what the input says; then a reset must give a controller that works.
///
/// # Panics
/// If a promise is broken.
pub fn commands(data: &[u8]) {
    let mut input = Input::new(data);
    let (_world, mut host) = boot(1, Fate { by_ring: input.u8() & 1 == 1, ..Fate::default() });
    host.create_queue_of(2, 8);
    let lists = usize::from(input.u8()) * 16;
    fill_lists(&mut host, input.bytes(lists));
    for _ in 0..COMMANDS {
        if input.is_empty() {
            break;
        }
        let queue = usize::from(input.u8() % 3);
        let command = command(&mut input);
        push(&mut host, queue, command);
        if input.u8().is_multiple_of(4) {
            drain(&mut host);
        }
    }
    (0..20).for_each(|_| drain(&mut host));
    works_after_reset(&mut host);
    host.transport.disconnect();
}

/// Any command, made likely: opcodes that exist, a namespace that exists, data that is memory.
fn command(input: &mut Input<'_>) -> Command {
    let choice = input.u8();
    let mut words = [0_u64; 8];
    for word in &mut words {
        *word = input.number();
    }
    let mut command = Command::from_words(words);
    command.cdw0.set_opcode(match choice % 4 {
        0 => input.u8(),
        _ => input.u8() % 0x1A,
    });
    command.cdw0.set_cid(CommandId(input.u16()));
    if choice & 4 == 0 {
        command.nsid = Nsid(1);
    }
    if choice & 8 == 0 {
        command.cdw12 &= 0xFFFF_003F;
    }
    if choice & 16 == 0 {
        let address =
            |number: u64| Iova(crate::host::driver::MEMORY_BASE.0 + LISTS + number % LISTS);
        let (first, second) = (input.number(), input.number());
        if choice & 32 == 0 {
            command = command.with_prps(address(first), Iova(address(second).0 / PAGE * PAGE));
        } else {
            let kind = input.u8() % 16;
            command.dptr[..8].copy_from_slice(&address(first / 16 * 16).0.to_le_bytes());
            command.dptr[8..12].copy_from_slice(&(second as u32 % 4096).to_le_bytes());
            command.dptr[12..].copy_from_slice(&[0, 0, 0, kind << 4]);
            command.cdw0.set_psdt(Psdt::SGL_METADATA_BUFFER);
        }
    }
    command
}

/// Fills the lists with entries that are mostly addresses of this memory, or descriptors.
fn fill_lists(host: &mut SimulatedHost, bytes: &[u8]) {
    let base = host.memory.base().0 + LISTS;
    for (index, chunk) in bytes.chunks(16).enumerate() {
        let mut entry = [0; 16];
        entry[..chunk.len()].copy_from_slice(chunk);
        if entry[15] & 1 == 0 {
            let number = u64::from(entry[0]) << 8 | u64::from(entry[1]);
            entry[..8].copy_from_slice(&(base + number * 16).to_le_bytes());
            entry[15] = entry[15] >> 2 << 4;
        } else {
            for half in entry.chunks_exact_mut(8) {
                let page = base + u64::from(half[0]) * PAGE;
                half.copy_from_slice(&page.to_le_bytes());
            }
        }
        host.memory.write(Iova(base + index as u64 * 16), &entry);
    }
}

/// Puts a command on a queue, as long as it has a place.
fn push(host: &mut SimulatedHost, queue: usize, command: Command) {
    let memory = &host.memory;
    let pair = match queue {
        0 => &mut host.admin,
        _ => &mut host.queues[queue - 1],
    };
    pair.push(memory, command);
    let (doorbell, tail) = (pair.doorbell(), pair.tail);
    crate::host::Transport::ring(&mut host.transport, doorbell, tail);
}

/// Lets the target go on, and takes every completion.
fn drain(host: &mut SimulatedHost) {
    (0..4).for_each(|_| crate::host::Transport::relax(&mut host.transport));
    host.poll_admin();
    for queue in 0..host.queues.len() {
        while host.poll(queue).is_some() {}
    }
}
