//! Scatter gather lists: a command's data pointer as descriptors. NVMe Base 2.0c 4.1.2. On the hot path.
//!
//! Descriptors are copied out of guest memory once. A list may say anything, also that its next segment is itself:
//! the walk counts every descriptor against a bound and ends there.

use crate::range_list::{RangeList, fault_status};
use ipc::guest_memory::{Access, GuestMemory};
use nvme_spec::Status;
use nvme_spec::sgl::{SglDescriptor, SglSubtype, SglType};
use zerocopy::IntoBytes;

/// Most descriptors of one list. A data block for each 4 KiB of the largest transfer is 1,025; Linux sends at most
/// 128, SPDK one.
pub const MAX_DESCRIPTORS: u32 = 2048;

/// Descriptors that are copied at a time.
const CHUNK: usize = 32;
/// Bytes of a descriptor.
const DESCRIPTOR: u32 = 16;

/// A segment that is to be read.
struct Segment {
    at: u64,
    descriptors: u32,
    last: bool,
}

/// Appends the `length` bytes that the descriptor `first` names to `list`. `access` is what we do to the memory: bit
/// buckets take data of a read ([`Access::WRITE`]) and mean nothing to a write.
///
/// # Errors
/// All with Do Not Retry. SGL Descriptor Type Invalid for types and sub types that are not offered; Invalid SGL
/// Segment Descriptor for a length of 0 or one that is no multiple of 16, for a segment after the last one, and for a
/// list that ends without a last one; Invalid Number of SGL Descriptors for a segment descriptor that is not its
/// segment's last descriptor, and for more than [`MAX_DESCRIPTORS`]; Data SGL Length Invalid if the data is shorter or
/// longer than `length`; Data Transfer Error where data or list is not memory of the client's.
pub fn walk(
    memory: &GuestMemory,
    first: SglDescriptor,
    length: u32,
    access: Access,
    list: &mut RangeList,
) -> Result<(), Status> {
    let mut left = length;
    check_subtype(&first)?;
    match first.kind() {
        SglType::DATA_BLOCK | SglType::BIT_BUCKET => {
            append(memory, &first, &mut left, access, list)?;
        }
        SglType::SEGMENT | SglType::LAST_SEGMENT => {
            walk_segments(memory, segment(&first)?, &mut left, access, list)?;
        }
        _ => return Err(Status::SGL_DESCRIPTOR_TYPE_INVALID.with_dnr()),
    }
    if left == 0 { Ok(()) } else { Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr()) }
}

fn walk_segments(
    memory: &GuestMemory,
    mut segment: Segment,
    left: &mut u32,
    access: Access,
    list: &mut RangeList,
) -> Result<(), Status> {
    let mut budget = MAX_DESCRIPTORS;
    loop {
        budget = budget
            .checked_sub(segment.descriptors)
            .ok_or(Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS.with_dnr())?;
        match walk_segment(memory, &segment, left, access, list)? {
            Some(_) if segment.last => {
                return Err(Status::INVALID_SGL_SEGMENT_DESCRIPTOR.with_dnr());
            }
            Some(next) => segment = next,
            None if segment.last => return Ok(()),
            None => return Err(Status::INVALID_SGL_SEGMENT_DESCRIPTOR.with_dnr()),
        }
    }
}

/// Walks one segment; the next one if its last descriptor names one.
fn walk_segment(
    memory: &GuestMemory,
    of: &Segment,
    left: &mut u32,
    access: Access,
    list: &mut RangeList,
) -> Result<Option<Segment>, Status> {
    let mut chunk = [SglDescriptor::default(); CHUNK];
    let mut at = of.at;
    let mut unread = of.descriptors;
    while unread > 0 {
        let count = unread.min(CHUNK as u32);
        let chunk = &mut chunk[..count as usize];
        memory.read(ipc::iova::Iova(at), chunk.as_mut_bytes()).map_err(fault_status)?;
        at = at.wrapping_add(u64::from(count * DESCRIPTOR));
        unread -= count;
        for (index, descriptor) in (1..).zip(chunk.iter()) {
            check_subtype(descriptor)?;
            match descriptor.kind() {
                SglType::DATA_BLOCK | SglType::BIT_BUCKET => {
                    append(memory, descriptor, left, access, list)?;
                }
                SglType::SEGMENT | SglType::LAST_SEGMENT if unread == 0 && index == count => {
                    return segment(descriptor).map(Some);
                }
                SglType::SEGMENT | SglType::LAST_SEGMENT => {
                    return Err(Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS.with_dnr());
                }
                _ => return Err(Status::SGL_DESCRIPTOR_TYPE_INVALID.with_dnr()),
            }
        }
    }
    Ok(None)
}

/// Takes a data block or a bit bucket off what is `left` of the command's length.
fn append(
    memory: &GuestMemory,
    descriptor: &SglDescriptor,
    left: &mut u32,
    access: Access,
    list: &mut RangeList,
) -> Result<(), Status> {
    let bucket = descriptor.kind() == SglType::BIT_BUCKET;
    if descriptor.length == 0 || (bucket && access == Access::READ) {
        return Ok(());
    }
    *left =
        left.checked_sub(descriptor.length).ok_or(Status::DATA_SGL_LENGTH_INVALID.with_dnr())?;
    if bucket {
        list.append_bit_bucket(descriptor.length)
    } else {
        list.append(memory, descriptor.address.0, descriptor.length, access)
    }
}

fn check_subtype(descriptor: &SglDescriptor) -> Result<(), Status> {
    match descriptor.identifier.subtype() {
        SglSubtype::ADDRESS => Ok(()),
        _ => Err(Status::SGL_DESCRIPTOR_TYPE_INVALID.with_dnr()),
    }
}

fn segment(descriptor: &SglDescriptor) -> Result<Segment, Status> {
    if descriptor.length == 0 || !descriptor.length.is_multiple_of(DESCRIPTOR) {
        return Err(Status::INVALID_SGL_SEGMENT_DESCRIPTOR.with_dnr());
    }
    Ok(Segment {
        at: descriptor.address.0,
        descriptors: descriptor.length / DESCRIPTOR,
        last: descriptor.kind() == SglType::LAST_SEGMENT,
    })
}
