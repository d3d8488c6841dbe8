//! The key/value cache: its layout, its addressing, and the op that writes it. The layout is described and
//! read in `kv_cache.h`.

use std::marker::PhantomData;

use marlin_kernels::kv_append::{KvAppend, KvAppendArgs, KvAppendConstants};
use marlin_kernels::{Element, Grid, View, ViewMut};

use super::lengths::{expect_len, refuse};
use crate::{CommandList, DeviceProperties, GpuError};

/// Positions of a block.
pub const KV_BLOCK: u32 = 32;

/// The sequence of a token that is not there: padding of a batch whose size is fixed. Nothing is written to
/// the cache for it, and its attention is 0.
pub const NO_SEQUENCE: u32 = u32::MAX;

/// What keys and values are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvStorage {
    /// f16; magnitudes past its range are kept at 65504.
    F16,
    /// 8-bit integers, one f32 scale `max|x| / 127` per head and position.
    Int8,
    /// E2M1, one f16 scale `max|x| / 6` per 32 dimensions: the format `fp4-g32`.
    Fp4,
    /// f32.
    F32,
}

impl KvStorage {
    /// Every storage.
    pub const ALL: [Self; 4] = [Self::F16, Self::Int8, Self::Fp4, Self::F32];

    /// Its number in `kv_cache.h`.
    pub(super) const fn id(self) -> u32 {
        match self {
            Self::F16 => 0,
            Self::Int8 => 1,
            Self::Fp4 => 2,
            Self::F32 => 3,
        }
    }

    /// Elements in 16 bytes.
    pub const fn piece_elements(self) -> u32 {
        match self {
            Self::F16 => 8,
            Self::Int8 => 16,
            Self::Fp4 => 32,
            Self::F32 => 4,
        }
    }
}

/// The shape of a layer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvLayout {
    storage: KvStorage,
    kv_heads: u32,
    head_dim: u32,
}

impl KvLayout {
    /// The layout of `kv_heads` heads of `head_dim` values.
    ///
    /// # Errors
    /// No heads, or a head that is not a multiple of 8 up to 256.
    pub fn new(storage: KvStorage, kv_heads: u32, head_dim: u32) -> Result<Self, GpuError> {
        if kv_heads == 0 || head_dim == 0 || head_dim > 256 || !head_dim.is_multiple_of(8) {
            return Err(refuse(
                "kv_append",
                format!(
                    "{kv_heads} key heads of {head_dim} values, expected at least one of a multiple of 8 up \
                     to 256"
                ),
            ));
        }
        Ok(Self { storage, kv_heads, head_dim })
    }

    /// What it stores.
    pub fn storage(&self) -> KvStorage {
        self.storage
    }

    /// Heads of keys and values.
    pub fn kv_heads(&self) -> u32 {
        self.kv_heads
    }

    /// Values per head.
    pub fn head_dim(&self) -> u32 {
        self.head_dim
    }

    /// Values of a key with its padding to whole pieces.
    pub(super) fn padded_dim(&self) -> u32 {
        self.head_dim.next_multiple_of(self.storage.piece_elements())
    }

    /// Query heads of a key head, where there are `heads` in all.
    ///
    /// # Errors
    /// `heads` is not a multiple of the key heads, or 0.
    pub(super) fn group(&self, kernel: &str, heads: u32) -> Result<u32, GpuError> {
        if heads == 0 || !heads.is_multiple_of(self.kv_heads) {
            return Err(refuse(
                kernel,
                format!("{heads} query heads for {} key heads, expected a multiple", self.kv_heads),
            ));
        }
        Ok(heads / self.kv_heads)
    }

    /// 16-byte pieces of one block of [`KV_BLOCK`] positions of all heads: the elements that a cache buffer
    /// needs for each block.
    pub fn block_pieces(&self) -> usize {
        let elements = self.storage.piece_elements();
        let keys = KV_BLOCK * self.padded_dim() / elements;
        let values = KV_BLOCK * self.head_dim / elements;
        let scales = match self.storage {
            KvStorage::Int8 => KV_BLOCK * 4 / 16,
            KvStorage::Fp4 => self.head_dim.div_ceil(32) * KV_BLOCK * 2 / 16,
            KvStorage::F16 | KvStorage::F32 => 0,
        };
        (keys + values + 2 * scales) as usize * self.kv_heads as usize
    }

    /// Bytes of keys, values and scales that attention reads for `positions` positions: the floor's numerator.
    pub fn bytes(&self, positions: u64) -> u64 {
        positions * self.block_pieces() as u64 * 16 / u64::from(KV_BLOCK)
    }
}

/// Where a sequence's blocks are.
#[derive(Clone, Copy)]
pub enum KvAddressing<'a> {
    /// Each sequence has so many blocks in a row.
    Contiguous {
        /// Blocks of a sequence.
        blocks: u32,
    },
    /// Pages of several blocks, found in a table.
    Paged {
        /// `[sequences][pages_per_sequence]` page numbers.
        table: View<'a, u32>,
        /// Pages in a row of the table.
        pages_per_sequence: u32,
        /// Blocks of a page.
        blocks_per_page: u32,
    },
}

impl<'a> KvAddressing<'a> {
    pub(super) fn pages(&self) -> Option<View<'a, u32>> {
        match self {
            Self::Contiguous { .. } => None,
            Self::Paged { table, .. } => Some(*table),
        }
    }

    pub(super) fn stride(&self) -> u32 {
        match *self {
            Self::Contiguous { blocks } => blocks,
            Self::Paged { pages_per_sequence, .. } => pages_per_sequence,
        }
    }

    pub(super) fn blocks_per_page(&self) -> u32 {
        match *self {
            Self::Contiguous { .. } => 0,
            Self::Paged { blocks_per_page, .. } => blocks_per_page,
        }
    }

    /// Most positions of a sequence.
    pub fn positions(&self) -> u64 {
        let blocks = match *self {
            Self::Contiguous { blocks } => u64::from(blocks),
            Self::Paged { pages_per_sequence, blocks_per_page, .. } => {
                u64::from(pages_per_sequence) * u64::from(blocks_per_page)
            }
        };
        blocks * u64::from(KV_BLOCK)
    }

    /// Refuses a table without pages, pages without blocks, and a cache that is not whole.
    pub(super) fn check(
        &self,
        kernel: &str,
        cache_pieces: usize,
        unit_pieces: usize,
    ) -> Result<(), GpuError> {
        if let Self::Paged { table, pages_per_sequence, blocks_per_page } = self
            && (*blocks_per_page == 0
                || *pages_per_sequence == 0
                || !table.len().is_multiple_of(*pages_per_sequence as usize))
        {
            return Err(refuse(
                kernel,
                format!(
                    "a table of {} pages in rows of {pages_per_sequence}, {blocks_per_page} blocks each, \
                     expected whole rows and pages",
                    table.len()
                ),
            ));
        }
        let whole = match *self {
            Self::Contiguous { blocks } => unit_pieces * blocks as usize,
            Self::Paged { blocks_per_page, .. } => unit_pieces * blocks_per_page as usize,
        };
        if whole == 0 || !cache_pieces.is_multiple_of(whole) {
            return Err(refuse(
                kernel,
                format!(
                    "a cache of {cache_pieces} pieces of 16 bytes, expected a multiple of {whole}"
                ),
            ));
        }
        Ok(())
    }
}

/// Refuses rows that overlap or reach past the buffer's end.
pub(super) fn check_rows(
    kernel: &str,
    what: &str,
    found: usize,
    rows: usize,
    width: usize,
    stride: usize,
) -> Result<(), GpuError> {
    let needed = rows.checked_sub(1).map_or(0, |before| before * stride + width);
    if stride >= width && found >= needed {
        return Ok(());
    }
    Err(refuse(
        kernel,
        format!(
            "{what} has {found} elements for {rows} rows of {width}, {stride} apart, expected at least \
             {needed} and rows that do not overlap"
        ),
    ))
}

/// Writes keys and values of new tokens into the cache.
///
/// The cache must have been filled with zero bytes once (16-byte pieces hold several positions of a
/// quantised cache, and may be read before all of them are written).
pub struct AppendKv<'a, T> {
    /// `[tokens][kv_heads · head_dim]`, rows `key_stride` apart.
    pub keys: View<'a, T>,
    /// Elements from one token's keys to the next one's.
    pub key_stride: u32,
    /// `[tokens][kv_heads · head_dim]`, rows `value_stride` apart.
    pub values: View<'a, T>,
    /// Elements from one token's values to the next one's.
    pub value_stride: u32,
    /// The sequence of each token, or [`NO_SEQUENCE`].
    pub sequences: View<'a, u32>,
    /// The position of each token.
    pub positions: View<'a, u32>,
    /// The layer's cache.
    pub cache: ViewMut<'a, [u32; 4]>,
    /// Its layout.
    pub layout: KvLayout,
    /// Where sequences are in it.
    pub addressing: KvAddressing<'a>,
}

impl<T: Element> AppendKv<'_, T> {
    /// Appends the dispatch. No tokens: nothing is appended.
    ///
    /// # Errors
    /// [`GpuError::Launch`] for lengths that do not fit each other.
    pub fn encode(
        self,
        properties: &DeviceProperties,
        commands: &mut CommandList,
    ) -> Result<(), GpuError> {
        let name = "kv_append";
        let KvLayout { storage, kv_heads, head_dim } = self.layout;
        let tokens = self.sequences.len();
        let width = (kv_heads * head_dim) as usize;
        expect_len(name, "positions", self.positions.len(), tokens)?;
        let (keys, values) = (self.keys.len(), self.values.len());
        check_rows(name, "keys", keys, tokens, width, self.key_stride as usize)?;
        check_rows(name, "values", values, tokens, width, self.value_stride as usize)?;
        self.addressing.check(name, self.cache.len(), self.layout.block_pieces())?;
        let simdgroups = (128 / properties.simd_width).clamp(1, 4);
        let items = 2 * tokens * kv_heads as usize;
        let groups = u32::try_from(items.div_ceil(simdgroups as usize))
            .map_err(|_| refuse(name, format!("{tokens} tokens, expected fewer")))?;
        commands.launch(
            KvAppend {
                keys: self.keys,
                values: self.values,
                sequences: self.sequences,
                positions: self.positions,
                pages: self.addressing.pages(),
                cache: self.cache,
                args: KvAppendArgs {
                    tokens: tokens as u32,
                    kv_heads,
                    key_stride: self.key_stride,
                    value_stride: self.value_stride,
                    stride: self.addressing.stride(),
                },
                constants: KvAppendConstants {
                    head_dim,
                    kv_format: storage.id(),
                    blocks_per_page: self.addressing.blocks_per_page(),
                },
                elements: PhantomData,
            },
            Grid::x(groups, simdgroups * properties.simd_width),
        );
        Ok(())
    }
}
