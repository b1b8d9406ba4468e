//! Values out of a fuzzer's bytes; zeroes once they are used up.

/// The bytes that are left.
pub struct Input<'a>(&'a [u8]);

/// Numbers at which things change: sizes of structures, flags, limits and their neighbours.
const EDGES: [u64; 32] = [
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    15,
    16,
    17,
    20,
    24,
    32,
    0x21,
    0x24,
    63,
    64,
    65,
    127,
    128,
    255,
    256,
    511,
    512,
    513,
    4095,
    4096,
    0x1_0000,
    0xFFFF_FFFF,
    1 << 32,
    1 << 63,
    u64::MAX,
];

impl<'a> Input<'a> {
    /// All of them.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Up to `count` bytes.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// The rest.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }

    /// One byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// Four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// One byte of input chooses: an edge, a small number, or eight bytes as they are.
    pub fn number(&mut self) -> u64 {
        match self.u8() {
            choice @ 0..128 => EDGES[usize::from(choice) % EDGES.len()],
            128..192 => u64::from(self.u8()),
            _ => self.u64(),
        }
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.bytes(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }
}
