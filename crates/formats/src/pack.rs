//! Codes as a dense string of bits: the native layout of [`crate::group`]'s codes and zero points.
//!
//! Code `i` of a string occupies its bits `[i·b, (i+1)·b)`, bit `n` being bit `n mod 8` of byte `n
//! / 8`; the string is padded with zero bits to whole bytes. So 4-bit codes lie low nibble first,
//! and 32 3-bit codes fill three little-endian u32, as in GPTQ; read as little-endian u32, 2-, 4-
//! and 8-bit codes are in the order of compressed-tensors' `pack-quantized`.

/// Bytes of `n` codes of `bits` bits.
pub const fn packed_bytes(bits: u32, n: usize) -> usize {
    (n * bits as usize).div_ceil(8)
}

/// Packs `codes`, each less than `2^bits`, into `out`.
///
/// # Panics
/// `bits` is not in 1..=8, or `out` is not [`packed_bytes`] long.
pub fn pack(bits: u32, codes: &[u8], out: &mut [u8]) {
    assert!((1..=8).contains(&bits), "codes of {bits} bits");
    assert_eq!(out.len(), packed_bytes(bits, codes.len()), "packed length");
    let (mut window, mut held) = (0u32, 0);
    let mut bytes = out.iter_mut();
    for &code in codes {
        debug_assert!(u32::from(code) < 1 << bits, "{code} in {bits} bits");
        window |= u32::from(code) << held;
        held += bits;
        while held >= 8 {
            if let Some(byte) = bytes.next() {
                *byte = window as u8;
            }
            window >>= 8;
            held -= 8;
        }
    }
    if let Some(byte) = bytes.next() {
        *byte = window as u8;
    }
}

/// Unpacks `codes.len()` codes.
///
/// # Panics
/// `bits` is not in 1..=8, or `packed` is not [`packed_bytes`] long.
pub fn unpack(bits: u32, packed: &[u8], codes: &mut [u8]) {
    assert_eq!(packed.len(), packed_bytes(bits, codes.len()), "packed length");
    unpack_with(bits, packed, codes.len(), |i, code| codes[i] = code);
}

/// Calls `f(i, code)` for each of `n` codes in order, without a buffer in between.
///
/// # Panics
/// `bits` is not in 1..=8, or `packed` is shorter than [`packed_bytes`].
#[inline]
pub fn unpack_with(bits: u32, packed: &[u8], n: usize, mut f: impl FnMut(usize, u8)) {
    assert!((1..=8).contains(&bits), "codes of {bits} bits");
    match bits {
        8 => {
            for (i, &byte) in packed[..n].iter().enumerate() {
                f(i, byte);
            }
        }
        4 => {
            for (j, &byte) in packed[..n / 2].iter().enumerate() {
                f(2 * j, byte & 15);
                f(2 * j + 1, byte >> 4);
            }
            if n % 2 == 1 {
                f(n - 1, packed[n / 2] & 15);
            }
        }
        _ => {
            for i in 0..n {
                f(i, get(bits, packed, i));
            }
        }
    }
}

/// Code `i` of a string.
///
/// # Panics
/// The string is too short.
#[inline]
pub fn get(bits: u32, packed: &[u8], i: usize) -> u8 {
    let bit = i * bits as usize;
    let (byte, shift) = (bit / 8, bit % 8);
    let mut window = u16::from(packed[byte]);
    if shift + bits as usize > 8 {
        window |= u16::from(packed[byte + 1]) << 8;
    }
    ((window >> shift) & ((1 << bits) - 1)) as u8
}

/// Replaces code `i` of a string.
///
/// # Panics
/// The string is too short.
#[inline]
pub fn set(bits: u32, packed: &mut [u8], i: usize, code: u8) {
    let bit = i * bits as usize;
    let (byte, shift) = (bit / 8, bit % 8);
    let mask = ((1u16 << bits) - 1) << shift;
    let value = u16::from(code) << shift & mask;
    packed[byte] = packed[byte] & !(mask as u8) | value as u8;
    if mask > 0xff {
        packed[byte + 1] = packed[byte + 1] & !((mask >> 8) as u8) | (value >> 8) as u8;
    }
}
