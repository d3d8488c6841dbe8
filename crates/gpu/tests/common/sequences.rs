//! Sequences in a cache, for tests of kernels: which tokens a batch has, and where a sequence's blocks are.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file is a crate of its own and uses a part"
)]

use marlin_gpu::ops::kv_cache::KvAddressing;
use marlin_gpu::{Buffer, Device, GpuError};

/// Sequences and positions of tokens, on a device.
pub fn upload_tokens(
    device: &dyn Device,
    tokens: &[(u32, u32)],
) -> Result<(Buffer<u32>, Buffer<u32>), GpuError> {
    let (sequences, positions): (Vec<u32>, Vec<u32>) = tokens.iter().copied().unzip();
    Ok((device.upload_new("sequences", &sequences)?, device.upload_new("positions", &positions)?))
}

/// Where each sequence's blocks are.
pub enum Blocks {
    /// So many of each sequence in a row.
    Contiguous(u32),
    /// In pages.
    Paged { pages: Vec<u32>, table: Buffer<u32>, pages_per_sequence: u32, blocks_per_page: u32 },
}

impl Blocks {
    /// `pages_per_sequence` of `pages` for each sequence.
    pub fn paged(
        device: &dyn Device,
        pages: &[u32],
        pages_per_sequence: u32,
        blocks_per_page: u32,
    ) -> Result<Self, GpuError> {
        let table = device.upload_new("pages", pages)?;
        Ok(Self::Paged { pages: pages.to_vec(), table, pages_per_sequence, blocks_per_page })
    }

    /// As ops want it.
    pub fn addressing(&self) -> KvAddressing<'_> {
        match *self {
            Self::Contiguous(blocks) => KvAddressing::Contiguous { blocks },
            Self::Paged { ref table, pages_per_sequence, blocks_per_page, .. } => {
                KvAddressing::Paged { table: table.view(), pages_per_sequence, blocks_per_page }
            }
        }
    }

    /// Index of a block in the cache, as `kv_cache.h` says.
    pub fn physical(&self, sequence: usize, block: usize) -> usize {
        match self {
            Self::Contiguous(blocks) => sequence * *blocks as usize + block,
            Self::Paged { pages, pages_per_sequence, blocks_per_page, .. } => {
                let blocks_per_page = *blocks_per_page as usize;
                let page = pages[sequence * *pages_per_sequence as usize + block / blocks_per_page];
                page as usize * blocks_per_page + block % blocks_per_page
            }
        }
    }
}
