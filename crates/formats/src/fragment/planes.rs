//! Where the codes of a row lie in a block: the planes, slots and words that the module above describes.

use std::ops::Range;

use super::{BLOCK_COLS, BLOCK_ROWS, FragmentCode};

/// The part of a block that has `width` bits of every code, those from bit `shift` on.
#[derive(Clone, Copy)]
struct Plane {
    width: u32,
    shift: u32,
}

impl Plane {
    /// Where it lies in a block.
    fn bytes(self) -> Range<usize> {
        let at = |bits: u32| BLOCK_ROWS * BLOCK_COLS / 8 * bits as usize;
        at(self.shift)..at(self.shift + self.width)
    }
}

/// The planes that hold codes of `bits` bits, lowest bits first.
fn planes(bits: usize) -> &'static [Plane] {
    const fn plane(width: u32, shift: u32) -> Plane {
        Plane { width, shift }
    }
    match bits {
        2 => const { &[plane(2, 0)] },
        3 => const { &[plane(2, 0), plane(1, 2)] },
        4 => const { &[plane(4, 0)] },
        5 => const { &[plane(4, 0), plane(1, 4)] },
        6 => const { &[plane(4, 0), plane(2, 4)] },
        8 => const { &[plane(8, 0)] },
        16 => const { &[plane(16, 0)] },
        _ => const { &[plane(32, 0)] },
    }
}

/// Puts the codes of row `r` into a block, whose bits there are zero.
#[inline]
pub(super) fn put_row(code: FragmentCode, r: usize, values: &[u32; BLOCK_COLS], block: &mut [u8]) {
    for &plane in planes(code.bits()) {
        let (shift, plane, width) = (plane.shift, &mut block[plane.bytes()], plane.width);
        match width {
            1 => put_plane::<1>(r, values, shift, plane),
            2 => put_plane::<2>(r, values, shift, plane),
            4 => put_plane::<4>(r, values, shift, plane),
            8 => put_plane::<8>(r, values, shift, plane),
            16 => put_plane::<16>(r, values, shift, plane),
            _ => put_plane::<32>(r, values, shift, plane),
        }
    }
    if code == FragmentCode::Fp4 {
        take_apart(r, block);
    }
}

/// The codes of row `r` of a block.
#[inline]
pub(super) fn row(code: FragmentCode, r: usize, block: &[u8]) -> [u32; BLOCK_COLS] {
    let mut values = [0; BLOCK_COLS];
    if code == FragmentCode::Fp4 {
        put_together(r, block, &mut values);
        return values;
    }
    for &plane in planes(code.bits()) {
        let (shift, plane, width) = (plane.shift, &block[plane.bytes()], plane.width);
        match width {
            1 => take_plane::<1>(r, plane, shift, &mut values),
            2 => take_plane::<2>(r, plane, shift, &mut values),
            4 => take_plane::<4>(r, plane, shift, &mut values),
            8 => take_plane::<8>(r, plane, shift, &mut values),
            16 => take_plane::<16>(r, plane, shift, &mut values),
            _ => take_plane::<32>(r, plane, shift, &mut values),
        }
    }
    values
}

/// The column of a block that is element `j` of the slots 4·g + `t`.
fn column(t: usize, j: usize) -> usize {
    j / 4 * 16 + 4 * t + j % 4
}

/// Words of a slot that a row has to itself in a plane; with one bit it shares one with row g or g + 8.
const fn own_words(width: u32) -> usize {
    if width == 1 { 1 } else { width as usize / 2 }
}

/// Which of a row's words in a slot has element `j`, and at which bit.
fn place<const WIDTH: u32>(r: usize, j: usize) -> (usize, u32) {
    let (p, odd) = (j / 2, (j % 2) as u32);
    let (word, bit) = match WIDTH {
        1 => (0, p + 8 * (r / 8)),
        2 => (0, 2 * p),
        4 => (p / 4, 4 * (p % 4)),
        8 => (p / 2, 8 * (p % 2)),
        16 => (p, 0),
        _ => return (j, 0),
    };
    (word, bit as u32 + 16 * odd)
}

/// The byte of a plane at which a row's `word` in slot 4·g + `t` begins.
fn word_at<const WIDTH: u32>(r: usize, t: usize, word: usize) -> usize {
    let (g, h) = (r % 8, r / 8);
    let slot = 4 * g + t;
    let index = if WIDTH == 1 { word } else { h * own_words(WIDTH) + word };
    // Words of a chunk: 16 bytes, or all that a slot has.
    let chunk = (WIDTH as usize).min(4);
    4 * ((index / chunk * 32 + slot) * chunk + index % chunk)
}

fn word32(plane: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([plane[at], plane[at + 1], plane[at + 2], plane[at + 3]])
}

/// Puts `WIDTH` bits from `shift` on of each of a row's 64 values into a plane of a block, whose bits there are zero.
fn put_plane<const WIDTH: u32>(r: usize, values: &[u32; BLOCK_COLS], shift: u32, plane: &mut [u8]) {
    let mask = u32::MAX >> (32 - WIDTH);
    for t in 0..4 {
        let mut words = [0_u32; 16];
        for j in 0..16 {
            let (word, bit) = place::<WIDTH>(r, j);
            words[word] |= ((values[column(t, j)] >> shift) & mask) << bit;
        }
        for (i, word) in words[..own_words(WIDTH)].iter().enumerate() {
            let at = word_at::<WIDTH>(r, t, i);
            // One slice for both: with a check for each byte, packing takes half as long again.
            let bytes = &mut plane[at..at + 4];
            let there = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            bytes.copy_from_slice(&(there | word).to_le_bytes());
        }
    }
}

/// What [`put_plane`] put into a plane: the bits of a row's 64 values from `shift` on.
fn take_plane<const WIDTH: u32>(
    r: usize,
    plane: &[u8],
    shift: u32,
    values: &mut [u32; BLOCK_COLS],
) {
    let mask = u32::MAX >> (32 - WIDTH);
    for t in 0..4 {
        for j in 0..16 {
            let (word, bit) = place::<WIDTH>(r, j);
            let word = word32(plane, word_at::<WIDTH>(r, t, word));
            values[column(t, j)] |= ((word >> bit) & mask) << shift;
        }
    }
}

/// Bits of the sign and of the rest of the four E2M1 codes of 16 bits.
const E2M1_BITS: [(u32, u32); 4] = [(15, 9), (12, 6), (14, 3), (13, 0)];

/// Puts the E2M1 codes of row `r` of a block, four to 16 bits in order, where the module's documentation says.
fn take_apart(r: usize, plane: &mut [u8]) {
    for t in 0..4 {
        for half in plane[word_at::<4>(r, t, 0)..][..8].chunks_exact_mut(2) {
            let codes = u16::from_le_bytes([half[0], half[1]]);
            let mut apart = 0;
            for (q, (sign, rest)) in E2M1_BITS.into_iter().enumerate() {
                let code = codes >> (4 * q);
                apart |= (code >> 3 & 1) << sign | (code & 7) << rest;
            }
            half.copy_from_slice(&apart.to_le_bytes());
        }
    }
}

/// The E2M1 codes of a row, from where [`take_apart`] put their bits.
fn put_together(r: usize, plane: &[u8], values: &mut [u32; BLOCK_COLS]) {
    for t in 0..4 {
        let words = &plane[word_at::<4>(r, t, 0)..][..8];
        for (i, half) in words.chunks_exact(2).enumerate() {
            let half = u32::from(u16::from_le_bytes([half[0], half[1]]));
            for (q, (sign, rest)) in E2M1_BITS.into_iter().enumerate() {
                let j = 2 * (i / 2 * 4 + q) + i % 2;
                values[column(t, j)] = (half >> sign & 1) << 3 | half >> rest & 7;
            }
        }
    }
}
