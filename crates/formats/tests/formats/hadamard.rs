//! The transforms against the definition of a Hadamard matrix.

use marlin_formats::{FormatError, Hadamard};
use proptest::prelude::*;

/// 2^k, 12·2^k and 20·2^k up to a limit.
fn sizes(limit: usize) -> Vec<usize> {
    let powers = |base: usize| std::iter::successors(Some(base), |n| Some(2 * n));
    [1, 12, 20].into_iter().flat_map(|base| powers(base).take_while(|n| *n <= limit)).collect()
}

/// The matrix, row by row, from the transform's effect on unit vectors.
fn matrix(size: usize) -> Vec<Vec<f32>> {
    let transform = Hadamard::new(size, false).expect("a size that exists");
    (0..size)
        .map(|i| {
            let mut x = vec![0.0; size];
            x[i] = 1.0;
            transform.apply(&mut x);
            x
        })
        .collect()
}

#[test]
fn matrix_is_of_signs_symmetric_and_orthogonal() {
    for size in sizes(320) {
        let h = matrix(size);
        for i in 0..size {
            for j in 0..size {
                assert_eq!(h[i][j].abs(), 1.0, "{size}: ({i}, {j})");
                assert_eq!(h[i][j], h[j][i], "{size}: ({i}, {j})");
                let dot: f32 = h[i].iter().zip(&h[j]).map(|(a, b)| a * b).sum();
                let expected = if i == j { size as f32 } else { 0.0 };
                assert_eq!(dot, expected, "{size}: rows {i} and {j}");
            }
        }
    }
}

#[test]
fn powers_of_two_are_sylvesters_matrix() {
    let h = matrix(64);
    for (i, row) in h.iter().enumerate() {
        for (j, x) in row.iter().enumerate() {
            let sign = if (i & j).count_ones() % 2 == 0 { 1.0 } else { -1.0 };
            assert_eq!(*x, sign, "({i}, {j})");
        }
    }
}

#[test]
fn other_sizes_are_refused() {
    for size in [0, 3, 5, 6, 7, 10, 28, 36, 60, 100, 240 + 12, usize::MAX] {
        let error = Hadamard::new(size, true).expect_err("no such size");
        assert_eq!(error, FormatError::HadamardSize(size));
    }
}

proptest! {
    #[test]
    fn normalised_transform_is_its_own_inverse_and_keeps_lengths(
        which in 0..sizes(5120).len(),
        seed in prop::collection::vec(-10.0f32..10.0, 97),
    ) {
        let size = sizes(5120)[which];
        let x: Vec<f32> = (0..size).map(|i| seed[i * 31 % 97] * (1.0 + (i % 13) as f32)).collect();
        let length = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let transform = Hadamard::new(size, true).expect("a size that exists");
        let mut y = x.clone();
        transform.apply(&mut y);
        prop_assert!((length(&y) - length(&x)).abs() <= 1e-5 * length(&x));
        transform.apply(&mut y);
        let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        for (a, b) in x.iter().zip(&y) {
            prop_assert!((a - b).abs() <= 1e-5 * largest, "{} {}", a, b);
        }
    }

    #[test]
    fn without_normalisation_twice_multiplies_by_the_size(
        which in 0..sizes(320).len(),
        seed in prop::collection::vec(-8i8..8, 320),
    ) {
        let size = sizes(320)[which];
        let x: Vec<f32> = seed[..size].iter().map(|x| f32::from(*x)).collect();
        let transform = Hadamard::new(size, false).expect("a size that exists");
        let mut y = x.clone();
        transform.apply(&mut y);
        transform.apply(&mut y);
        // Small integers: no rounding anywhere.
        prop_assert!(x.iter().zip(&y).all(|(x, y)| x * size as f32 == *y));
    }

    #[test]
    fn runs_are_transformed_one_by_one(runs in 1usize..5, seed in prop::collection::vec(-1.0f32..1.0, 96)) {
        let transform = Hadamard::new(24, true).expect("12·2");
        let mut together: Vec<f32> = seed[..24 * runs.min(4)].to_vec();
        let mut apart = together.clone();
        transform.apply(&mut together);
        apart.chunks_mut(24).for_each(|x| transform.apply(x));
        prop_assert_eq!(together, apart);
    }
}
