//! The MSI-X table and the pending bits, each in a BAR of its own.
//!
//! Clients keep the table themselves: QEMU and cloud-hypervisor trap the guest's writes to it,
//! never forward them, and route each vector to the eventfd that SET_IRQS named. What arrives
//! here, from clients that forward, is kept faithfully and read back. The pending bits are read
//! from here by everyone. PCI Local Bus 3.0, 6.8.2.

/// Bytes of a table entry: address low, address high, data, vector control.
pub const ENTRY_SIZE: usize = 16;
/// Offset of vector control within an entry.
const VECTOR_CONTROL: usize = 12;
/// Vector control: mask bit.
const VECTOR_MASKED: u8 = 1;

/// Table and pending bits of a function's vectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Msix {
    table: Vec<u8>,
    pending: Vec<u8>,
    vectors: u16,
}

impl Msix {
    /// `vectors` vectors, each masked and none pending, as after reset.
    #[must_use]
    pub fn new(vectors: u16) -> Self {
        let count = usize::from(vectors);
        let mut msix = Self {
            table: vec![0; count * ENTRY_SIZE],
            pending: vec![0; count.div_ceil(64) * 8],
            vectors,
        };
        msix.reset();
        msix
    }

    /// Every vector masked, none pending, no message.
    pub fn reset(&mut self) {
        self.pending.fill(0);
        for entry in self.table.chunks_exact_mut(ENTRY_SIZE) {
            entry.fill(0);
            entry[VECTOR_CONTROL] = VECTOR_MASKED;
        }
    }

    /// Fills `data` from `offset` within the table's BAR; what is past the table reads 0.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        read(&self.table, offset, data);
    }

    /// Writes within the table's BAR; what is past the table, and reserved bits, are dropped.
    /// Returns the vectors whose mask bit fell, ascending: those of them that are pending are
    /// to be fired.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) -> Vec<u16> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.table.len());
        let mut unmasked = Vec::new();
        for (at, &value) in (start..self.table.len()).zip(data) {
            let writable = match at % ENTRY_SIZE {
                0 => 0xfc, // addresses are of dwords
                VECTOR_CONTROL => VECTOR_MASKED,
                13..ENTRY_SIZE => 0,
                _ => 0xff,
            };
            let old = std::mem::replace(&mut self.table[at], value & writable);
            if at % ENTRY_SIZE == VECTOR_CONTROL && old & !value & VECTOR_MASKED != 0 {
                unmasked.push((at / ENTRY_SIZE) as u16);
            }
        }
        unmasked
    }

    /// Fills `data` from `offset` within the pending bits' BAR; what is past them reads 0.
    /// Writes to that BAR have no effect, and no function here.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        read(&self.pending, offset, data);
    }

    /// Sets or clears a vector's pending bit; one that does not exist is ignored.
    pub fn set_pending(&mut self, vector: u16, pending: bool) {
        if vector < self.vectors {
            let (byte, bit) = (usize::from(vector) / 8, vector % 8);
            let rest = self.pending[byte] & !(1 << bit);
            self.pending[byte] = rest | u8::from(pending) << bit;
        }
    }

    /// Whether a vector's pending bit is set.
    #[must_use]
    pub fn pending(&self, vector: u16) -> bool {
        let byte = self.pending.get(usize::from(vector) / 8).copied().unwrap_or(0);
        vector < self.vectors && byte >> (vector % 8) & 1 != 0
    }

    /// Whether a vector's own mask bit is set, as far as this end was told.
    #[must_use]
    pub fn masked(&self, vector: u16) -> bool {
        let at = usize::from(vector) * ENTRY_SIZE + VECTOR_CONTROL;
        self.table.get(at).is_none_or(|control| control & VECTOR_MASKED != 0)
    }

    /// Number of vectors.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        self.vectors
    }
}

fn read(bytes: &[u8], offset: u64, data: &mut [u8]) {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    let inside = data.len().min(bytes.len() - start);
    let (head, tail) = data.split_at_mut(inside);
    head.copy_from_slice(&bytes[start..start + inside]);
    tail.fill(0);
}
