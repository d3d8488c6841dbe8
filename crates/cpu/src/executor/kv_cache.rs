//! The KV cache: where the keys and values of each layer, sequence and head are.

use marlin_backend::{BackendError, CacheInfo, ExecutorOptions, KvFormat};
use marlin_placement::{AccessPattern, Ledger};

use crate::kernels::attention::{KvHead, SPAN, chunk_bytes, span_bytes};
use crate::kernels::prefetch::Ahead;
use crate::memory::Buffer;

/// Keys and values of all layers and slots: `[sequences][spans][layers][heads]` of a span of one
/// head. What a sequence has seen so far is one piece of memory, all layers together, that grows
/// span by span: so it can lie in huge pages, and pages that were not reached take no memory.
pub(super) struct KvCache {
    layers: Vec<Layer>,
    element: usize,
    scaled: bool,
    /// Spans of a slot.
    spans: usize,
    /// Bytes of one span of all layers.
    stride: usize,
    buffer: Buffer,
}

struct Layer {
    info: CacheInfo,
    /// `head_dim` rounded up to 16.
    dim: usize,
    /// Where the layer begins in a span of all layers.
    offset: usize,
    /// Bytes of one head's span.
    head_bytes: usize,
}

impl KvCache {
    pub(super) fn new(
        ledger: &Ledger,
        caches: &[CacheInfo],
        options: &ExecutorOptions,
    ) -> Result<Self, BackendError> {
        let (element, scaled) = match options.kv {
            KvFormat::F32 => (4, false),
            KvFormat::F16 => (2, false),
            KvFormat::Q8 => (1, true),
        };
        let mut stride = 0;
        let layers = caches
            .iter()
            .map(|&info| {
                let dim = info.head_dim.next_multiple_of(16);
                let head_bytes = span_bytes(dim, element, scaled);
                let offset = stride;
                stride += info.kv_heads * head_bytes;
                Layer { info, dim, offset, head_bytes }
            })
            .collect();
        let spans = options.context.div_ceil(SPAN);
        let bytes = options.max_sequences.checked_mul(spans).and_then(|n| n.checked_mul(stride));
        let bytes = bytes.ok_or_else(|| BackendError::OutOfMemory {
            what: format!(
                "a KV cache of {} positions and {} sequences",
                options.context, options.max_sequences
            ),
            bytes: u64::MAX,
        })?;
        let buffer = Buffer::in_huge_pages(ledger, "kv.cache", AccessPattern::DEVICE_ONLY, bytes)?;
        Ok(Self { layers, element, scaled, spans, stride, buffer })
    }

    /// Span `span` of a head.
    pub(super) fn head(
        &self,
        layer: usize,
        sequence: usize,
        kv_head: usize,
        span: usize,
    ) -> KvHead {
        let layer = &self.layers[layer];
        debug_assert!(kv_head < layer.info.kv_heads && span < self.spans);
        let at = (sequence * self.spans + span) * self.stride
            + layer.offset
            + kv_head * layer.head_bytes;
        // SAFETY: sequence, head and span are in range, so the offset is within the buffer.
        let data = unsafe { self.buffer.as_ptr::<u8>().add(at) };
        KvHead { data, dim: layer.dim }
    }

    /// What to ask for, a chunk ahead, while a layer's head and span is looked at, and after it `next`.
    pub(super) fn ahead(&self, layer: usize, head: &KvHead, next: Option<KvHead>) -> Ahead {
        let end = head.data.wrapping_add(self.layers[layer].head_bytes).cast_const();
        let next = next.map_or(std::ptr::null(), |next| next.data.cast_const());
        Ahead::new(chunk_bytes(head.dim, self.element, self.scaled), end, next)
    }

    pub(super) fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Bytes that one token at `position` reads, all layers together.
    pub(super) fn bytes_per_token(&self, position: usize) -> u64 {
        self.layers
            .iter()
            .map(|layer| {
                let seen = (position + 1).min(layer.info.window.unwrap_or(usize::MAX));
                let row = layer.info.head_dim * self.element + if self.scaled { 4 } else { 0 };
                2 * (seen * layer.info.kv_heads * row) as u64
            })
            .sum()
    }

    pub(super) fn bytes(&self) -> usize {
        self.buffer.len()
    }
}
